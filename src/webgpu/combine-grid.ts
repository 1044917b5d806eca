/** How the merge is laid over threads. Pure. */
import type { DeviceKind, KernelLimits } from './config.ts';

/** Threads that share a row's columns at least, 4 columns each: what one fetch from memory brings. */
export const LEAST_LANES = 8;
/** Splits that a thread takes at once. */
const SPLITS_AT_ONCE = 4;
/** Splits that a thread may take before a row is cut into more chunks of columns. */
const SPLITS_PER_THREAD = 8;

export interface CombineConfig {
  /** Threads a workgroup. */
  readonly threads: number;
  /** Groups of threads that take the splits in turn, at most. */
  readonly mostGroups: number;
}

/** The same for any number of splits, so that a sequence that grows compiles nothing. */
export function combineConfig(dV: number, kind: DeviceKind, { maxComputeInvocationsPerWorkgroup: most }: Pick<KernelLimits, 'maxComputeInvocationsPerWorkgroup'>): CombineConfig {
  // A software adapter runs threads one after another and pays for each at a barrier: one group meets no other.
  if (kind === 'software') return { threads: dV / 4, mostGroups: 1 };
  const threads = Math.min(256, most);
  return { threads, mostGroups: threads / LEAST_LANES };
}

/** Workgroups that the rows are dealt to, and those that share the columns of a row. */
export interface CombineGrid {
  readonly x: number;
  readonly chunks: number;
}

/** Groups of threads a workgroup, one thread for each 4 columns of a chunk. */
function groupsOf(dV: number, chunks: number, { threads }: CombineConfig): number {
  return Math.floor((threads * chunks) / (dV / 4));
}

/**
 * Where a sequence has few splits, groups that one row leaves idle take others: all wait for the same, one after the other, where each has a
 * workgroup.
 */
export function combineGrid(dV: number, rows: number, splits: number, config: CombineConfig): CombineGrid {
  const chunks = combineChunks(dV, splits, config);
  const groups = groupsOf(dV, chunks, config);
  let together = 1;
  while (2 * together <= groups && splits <= Math.floor(groups / (2 * together)) * SPLITS_AT_ONCE) together *= 2;
  return { x: Math.ceil(rows / together), chunks };
}

/** A narrow chunk leaves threads for more groups; a wide one reads the LSEs less often. */
function combineChunks(dV: number, splits: number, config: CombineConfig): number {
  const quads = dV / 4;
  const groups = (chunks: number): number => groupsOf(dV, chunks, config);
  let chunks = 1;
  while (groups(chunks) < config.mostGroups && splits > groups(chunks) * SPLITS_PER_THREAD && quads % (2 * chunks) === 0 && quads / (2 * chunks) >= LEAST_LANES) chunks *= 2;
  return chunks;
}
