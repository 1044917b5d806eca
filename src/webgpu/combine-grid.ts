/** How the merge is laid over threads. Pure. */
import type { DeviceKind, KernelLimits } from './config.ts';

/** Threads that share a row's columns at least, 4 columns each: what one fetch from memory brings. */
export const LEAST_LANES = 8;
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

/**
 * Workgroups that share the columns of a row. A narrow chunk leaves threads for more groups; a wide one reads the LSEs
 * less often.
 */
export function combineChunks(dV: number, splits: number, { threads, mostGroups }: CombineConfig): number {
  const quads = dV / 4;
  const groups = (chunks: number): number => Math.floor((threads * chunks) / quads);
  let chunks = 1;
  while (groups(chunks) < mostGroups && splits > groups(chunks) * SPLITS_PER_THREAD && quads % (2 * chunks) === 0 && quads / (2 * chunks) >= LEAST_LANES) chunks *= 2;
  return chunks;
}
