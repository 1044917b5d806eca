/** What tuning measures: a long and a short batch over one pool of random keys. Pure. */
import type { ShapeClass } from '../shape-class.ts';
import type { DeviceTraits } from './config.ts';

export const TUNE_BLOCK = 64;
/** Past the caches of the largest GPUs, within the smallest binding. */
const POOL_BYTES = 128 << 20;
const SHORT_BLOCKS = 8192 / TUNE_BLOCK;
const LONG_SEQUENCES = 8;
/** Tokens of a first call, which says how fast the device is: few enough for a slow one. */
export const PROBE_TOKENS: number = LONG_SEQUENCES * TUNE_BLOCK;
/** Places that short calls take in turn, so that none finds its keys in a cache. */
const PLACES = 12;

export interface TuneLoad {
  readonly cacheSeqlens: Int32Array;
  readonly maxBlocksPerSeq: number;
  /** Block tables to take in turn, [b, maxBlocksPerSeq] each. */
  readonly blockTables: readonly Int32Array[];
}

export interface TuneLoads {
  readonly numBlocks: number;
  readonly long: TuneLoad;
  readonly short: TuneLoad;
}

/**
 * @param mostTokens that a long call may have, where the device's speed sets a bound
 * @returns undefined where not even a block fits
 */
export function tuneLoads({ hKv, dQk }: Pick<ShapeClass, 'hKv' | 'dQk'>, { limits }: Pick<DeviceTraits, 'limits'>, mostTokens: number): TuneLoads | undefined {
  const blockBytes = TUNE_BLOCK * hKv * dQk * 2;
  const most = Math.floor(Math.min(limits.maxStorageBufferBindingSize, limits.maxBufferSize) / blockBytes);
  const wanted = Math.floor(Math.min(POOL_BYTES / blockBytes, mostTokens / TUNE_BLOCK));
  const numBlocks = Math.min(most, Math.max(LONG_SEQUENCES, wanted));
  if (numBlocks === 0) return undefined;
  // Uneven, as batches are: cuts fall inside sequences.
  const weights = Array.from({ length: Math.min(LONG_SEQUENCES, numBlocks) }, (_, i) => 1 + (i % 3) / 2);
  const total = weights.reduce((x, y) => x + y);
  const counts = weights.map((w) => Math.max(1, Math.floor((w / total) * numBlocks)));
  const shortBlocks = Math.min(SHORT_BLOCKS, numBlocks, Math.max(LONG_SEQUENCES, numBlocks >> 2));
  const places = Math.min(PLACES, Math.floor(numBlocks / shortBlocks));
  return {
    numBlocks,
    long: load(counts, [0]),
    short: load([shortBlocks], Array.from({ length: places }, (_, i) => i * shortBlocks)),
  };
}

/** Sequences of so many blocks each, laid end to end from each of `starts` on. */
function load(counts: readonly number[], starts: readonly number[]): TuneLoad {
  const maxBlocksPerSeq = Math.max(...counts);
  const blockTables = starts.map((start) => {
    const table = new Int32Array(counts.length * maxBlocksPerSeq);
    let next = start;
    counts.forEach((count, i) => {
      for (let j = 0; j < count; j++) table[i * maxBlocksPerSeq + j] = next++;
    });
    return table;
  });
  return { cacheSeqlens: Int32Array.from(counts, (count) => count * TUNE_BLOCK), maxBlocksPerSeq, blockTables };
}

/** Tokens that a long call may have on a device where a warm one of PROBE_TOKENS takes `probeMs`. */
export function tokensWithin(ms: number, probeMs: number): number {
  return Math.floor((ms / probeMs) * PROBE_TOKENS);
}

/** Operations and bytes of a call, as the design counts them. */
export function loadCost({ rows, hKv, dQk, dV }: ShapeClass, { cacheSeqlens }: TuneLoad): { flops: number; bytes: number } {
  const tokens = cacheSeqlens.reduce((x, y) => x + y);
  return { flops: 2 * rows * hKv * (dQk + dV) * tokens, bytes: 2 * (cacheSeqlens.length * rows * hKv * (dQk + dV) + tokens * hKv * dQk) };
}
