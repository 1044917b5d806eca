/** Tables of configurations to try, by tier and device, best guess first. Pure. */
import type { DeviceTraits } from './config.ts';

/** What is chosen; the rest of a configuration follows. */
export interface Candidate {
  /** Query rows a workgroup. */
  readonly rows: number;
  /** Keys a step. Divides every block size. */
  readonly tokens: number;
  readonly threads: number;
  /** Rows of S that a thread makes, times 4 tokens. */
  readonly rowTile: number;
}

const GPU: readonly Candidate[] = [
  { rows: 4, tokens: 16, threads: 128, rowTile: 2 },
  { rows: 4, tokens: 8, threads: 128, rowTile: 1 },
  { rows: 16, tokens: 16, threads: 256, rowTile: 2 },
  { rows: 16, tokens: 8, threads: 128, rowTile: 2 },
];

// A software adapter runs threads one after another, 4 lanes at a time, and pays for each at every barrier: few threads
// with much in registers each.
const SOFTWARE: readonly Candidate[] = [
  { rows: 4, tokens: 16, threads: 32, rowTile: 4 },
  { rows: 4, tokens: 8, threads: 32, rowTile: 4 },
  { rows: 16, tokens: 16, threads: 32, rowTile: 8 },
  { rows: 16, tokens: 8, threads: 32, rowTile: 8 },
];

/** Candidates of a tier for a device. */
export function candidates(_tier: 'base' | 'subgroup', { kind }: DeviceTraits): readonly Candidate[] {
  return kind === 'software' ? SOFTWARE : GPU;
}

/** How many workgroups the device is taken to run at once, and how few tokens are worth one. */
export function occupancy({ kind }: DeviceTraits): { slots: number; minTokensPerPart: number } {
  // A software adapter runs a workgroup a core; a GPU several on each of its tens to hundreds of cores.
  return kind === 'software' ? { slots: 8, minTokensPerPart: 256 } : { slots: 264, minTokensPerPart: 64 };
}
