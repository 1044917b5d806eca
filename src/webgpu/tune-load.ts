/** What tuning measures, a batch over a pool of random keys, one for each load; and what it tries kernels with. Pure. */
import type { LoadClass, MlaMetadata, ScheduleInfo } from '../mla.ts';
import { permutation, seededRandom } from '../random.ts';
import { getMlaMetadata } from '../schedule.ts';
import type { ShapeClass } from '../shape-class.ts';
import { bindingBytes, type DeviceTraits } from './config.ts';

/** Tokens a block: what calls have unless they say otherwise. */
export const TUNE_BLOCK = 64;
/** Past the caches of the largest GPUs, within the smallest binding. */
const POOL_BYTES = 128 << 20;
/** Tokens of a call where the device is fast enough: a chat's, a small batch's, and enough to stand for a batch of a million. */
const MOST_TOKENS: Readonly<Record<LoadClass, number>> = { short: 8192, medium: 65_536, long: 524_288 };
const SEQUENCES = 8;
/** Places that short calls take in turn, so that none finds its keys in a cache. */
const PLACES = 12;
/** Of the call that kernels are tried with: more than half in one sequence, so that any cut splits it. */
const CHECK_TOKENS: readonly number[] = [21, 400, 111, 70];
const CHECK_PARTS = 3;
/** A call takes no longer than about this, milliseconds: others may wait for the device. */
export const CALL_MS = 30;

/** Tokens of a first call, which says how fast the device is: few enough for a slow one. */
export const PROBE_TOKENS: number = SEQUENCES * TUNE_BLOCK;
/** A shorter call, milliseconds, says how long a fast device waits for memory, not how much it gets through; and in browsers timestamps are coarse. */
const TELLING_MS = 1;
const PROBE_GROWTH = 8;

export interface TuneLoad {
  /** Blocks of the pool. */
  readonly numBlocks: number;
  readonly cacheSeqlens: Int32Array;
  readonly maxBlocksPerSeq: number;
  /** Block tables to take in turn, [b, maxBlocksPerSeq] each. */
  readonly blockTables: readonly Int32Array[];
}

/**
 * A short load is one sequence, others are several. What is more than the pool goes over it again.
 *
 * @param mostTokens that a call may have, where the device's speed sets a bound; it has PROBE_TOKENS at least
 * @returns undefined where not even a block fits
 */
export function tuneLoad({ hKv, dQk, load }: Pick<ShapeClass, 'hKv' | 'dQk' | 'load'>, { limits }: Pick<DeviceTraits, 'limits'>, mostTokens: number): TuneLoad | undefined {
  const room = Math.floor(Math.min(POOL_BYTES, bindingBytes(limits)) / (TUNE_BLOCK * hKv * dQk * 2));
  if (room === 0) return undefined;
  const blocks = Math.floor(Math.max(PROBE_TOKENS, Math.min(MOST_TOKENS[load], mostTokens)) / TUNE_BLOCK);
  if (load !== 'short') return layOut(uneven(blocks), Math.min(room, blocks), 1);
  const places = Math.min(PLACES, Math.max(1, Math.floor(room / blocks)));
  return layOut([blocks * TUNE_BLOCK], Math.min(room, places * blocks), places);
}

/** A call on the same pool that kernels are tried with: in some loads a part is one block, and none ends within one. */
export function checkLoad({ numBlocks }: TuneLoad): TuneLoad {
  return layOut(CHECK_TOKENS, numBlocks, 1);
}

/** How it is cut: parts of several blocks and of several sequences, the longest of which is split. In no more parts than `most`. */
export function checkMetadata({ rows, hKv }: Pick<ShapeClass, 'rows' | 'hKv'>, { cacheSeqlens }: TuneLoad, { anyOrder = false }: Pick<ScheduleInfo, 'anyOrder'>, most: number): MlaMetadata {
  return getMlaMetadata(
    { cacheSeqlens, numQTokensPerHeadK: rows, numHeadsK: hKv, blockSize: TUNE_BLOCK },
    { slots: Math.min(CHECK_PARTS, most) * hKv, rowTiles: [rows], minTokensPerPart: 1, anyOrder },
  );
}

/** Tokens a sequence, uneven as batches are: cuts fall inside sequences. */
function uneven(blocks: number): number[] {
  const weights = Array.from({ length: SEQUENCES }, (_, i) => 1 + (i % 3) / 2);
  const total = weights.reduce((x, y) => x + y);
  return weights.map((weight) => Math.max(1, Math.floor((weight / total) * blocks)) * TUNE_BLOCK);
}

/** Sequences of so many tokens each, in so many places. */
function layOut(lengths: readonly number[], numBlocks: number, places: number): TuneLoad {
  const counts = lengths.map((length) => Math.ceil(length / TUNE_BLOCK));
  const maxBlocksPerSeq = Math.max(...counts);
  const ids = laps(numBlocks);
  const blockTables = Array.from({ length: places }, () => {
    const table = new Int32Array(counts.length * maxBlocksPerSeq);
    counts.forEach((count, i) => {
      for (let j = 0; j < count; j++) table[i * maxBlocksPerSeq + j] = ids.next().value;
    });
    return table;
  });
  return { numBlocks, cacheSeqlens: Int32Array.from(lengths), maxBlocksPerSeq, blockTables };
}

/**
 * A pool's blocks, lap after lap, each in an order of its own, the same every time: were the orders alike, parts of a call in different
 * laps could walk side by side, and one would find in a cache what another has just read.
 */
function* laps(numBlocks: number): Generator<number, never> {
  const random = seededRandom(1);
  for (;;) yield* permutation(numBlocks, random);
}

/** A call that was made to find out how fast the device is, warm. */
export interface Probe {
  readonly tokens: number;
  readonly ms: number;
}

/** Tokens of the next probe; undefined where the last one tells enough. */
export function nextProbe(load: LoadClass, { tokens, ms }: Probe): number | undefined {
  const enough = ms >= TELLING_MS || tokensWithin({ tokens, ms: TELLING_MS }) >= MOST_TOKENS[load];
  return enough ? undefined : tokens * PROBE_GROWTH;
}

/** Tokens that a call may have on the device that a probe was made on. */
export function tokensWithin({ tokens, ms }: Probe): number {
  return Math.floor((CALL_MS / ms) * tokens);
}

/** Operations and bytes of a call, as the design counts them. */
export function loadCost({ rows, hKv, dQk, dV }: ShapeClass, { cacheSeqlens }: TuneLoad): { flops: number; bytes: number } {
  const tokens = cacheSeqlens.reduce((x, y) => x + y);
  return { flops: 2 * rows * hKv * (dQk + dV) * tokens, bytes: 2 * (cacheSeqlens.length * rows * hKv * (dQk + dV) + tokens * hKv * dQk) };
}
