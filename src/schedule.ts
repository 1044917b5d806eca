/**
 * The tile scheduler: cuts the KV blocks of a ragged batch into even, contiguous parts. Pure.
 *
 * All sequences are laid end to end, and parts take KV blocks in turn until they are full (layout.ts). The same input always gives the same
 * parts. A sequence costs each part that works on it what the machine says, besides its blocks. Where a machine takes sequences in any order,
 * they lie so that few are split. A sequence of length zero counts as one block, so that some part writes its (zero) output.
 */
import { MlaError, describe } from './errors.ts';
import { layInAnyOrder, layInOrder, type Layout, type Work } from './layout.ts';
import type { LoadClass, MetadataArgs, MlaMetadata, ScheduleInfo } from './mla.ts';

/** i32 numbers a part in `tileSchedulerMetadata`. */
export const PART_STRIDE = 8;
export const BLOCK_SIZES: readonly number[] = [16, 32, 64, 128];

/** From the least tokens to the most. */
export const LOADS: readonly LoadClass[] = ['short', 'medium', 'long'];
/**
 * Most tokens of a call, all told, whose load is short, or medium. Small row tiles fill a GPU with little work, large ones read the cache
 * fewer times. On an H200, for 128 rows, tiles of 16 and of 32 take 0.037 and 0.047 ms for 8,192 tokens, 1.15 and 0.80 ms for 524,288, so
 * that they are even at about 23,000; with bounds checks, as in a browser, at about 37,000 when it was last measured. Tiles of 32 took
 * 0.056 ms and 1.45 ns a token, tiles of 64 0.081 ms and 1.25, so that they were even at about 120,000; both have become 8 % quicker.
 */
export const LOAD_TOKENS = { short: 32_768, medium: 131_072 } as const;

/** The load of a call on a cache of these lengths. */
export function loadOf(cacheSeqlens: ArrayLike<number>): LoadClass {
  let tokens = 0;
  for (let i = 0; i < cacheSeqlens.length; i++) tokens += cacheSeqlens[i]!;
  if (tokens <= LOAD_TOKENS.short) return 'short';
  return tokens <= LOAD_TOKENS.medium ? 'medium' : 'long';
}

/** The smallest row tile that holds all rows, else the largest there is. */
export function chooseRowTile(rowTiles: readonly number[], rows: number): number {
  return rowTiles.find((tile) => tile >= rows) ?? rowTiles[rowTiles.length - 1]!;
}

/** How many row tiles this many query rows take, in whole groups when there is more than one. */
export function countRowTiles({ rowTiles, rowTileMultiple = 1 }: Pick<ScheduleInfo, 'rowTiles' | 'rowTileMultiple'>, rows: number): number {
  const needed = Math.ceil(rows / chooseRowTile(rowTiles, rows));
  return needed > 1 ? Math.ceil(needed / rowTileMultiple) * rowTileMultiple : 1;
}

/** Query rows that are tuned for together: up to the next power of two, past 16 up to the next multiple of 16. */
export function rowClass(rows: number): number {
  return rows <= 16 ? 2 ** Math.ceil(Math.log2(rows)) : Math.ceil(rows / 16) * 16;
}

/** What of a call says how many parts are wanted. */
export interface ScheduledCall {
  /** Query rows a KV head. */
  readonly rows: number;
  readonly numHeadsK: number;
  readonly blockSize: number;
  readonly load: LoadClass;
}

/** How many parts a machine wants for a call. */
export function partsTarget(machine: ScheduleInfo, { rows, numHeadsK, blockSize, load }: ScheduledCall): number {
  const tuned = machine.tuned?.find((t) => t.rows === rowClass(rows) && t.numHeadsK === numHeadsK && t.load === load && blockSize % t.tokens === 0);
  const [slots, tiles] = tuned ? [tuned.slots, Math.ceil(rows / tuned.rowTile)] : [machine.slots, countRowTiles(machine, rows)];
  return Math.max(1, Math.floor(slots / (tiles * numHeadsK)));
}

/** Most parts that a machine may want for such calls, whatever their load. */
export function mostParts(machine: ScheduleInfo, { rows, numHeadsK, blockSize }: Omit<ScheduledCall, 'load'>): number {
  return Math.max(...LOADS.map((load) => partsTarget(machine, { rows, numHeadsK, blockSize, load })));
}

/** KV blocks of a sequence as the scheduler counts them: one for a sequence of length zero. */
export function blockUnits(length: number, blockSize: number): number {
  return Math.max(1, Math.ceil(length / blockSize));
}

function workOf(cacheSeqlens: Int32Array, blockSize: number, overhead: number): Work {
  return { units: Array.from(cacheSeqlens, (length) => blockUnits(length, blockSize)), blockSize, overhead };
}

/**
 * @param machine what the backend says of its device
 * @throws MlaError invalid-argument (types, block size), out-of-range (negative length)
 */
export function getMlaMetadata(args: MetadataArgs, machine: ScheduleInfo): MlaMetadata {
  const { cacheSeqlens, numQTokensPerHeadK, numHeadsK, blockSize = 64 } = args;
  checkPositiveInteger(numQTokensPerHeadK, 'numQTokensPerHeadK');
  checkPositiveInteger(numHeadsK, 'numHeadsK');
  if (!BLOCK_SIZES.includes(blockSize)) {
    throw new MlaError('invalid-argument', 'block size not supported', {
      argument: 'blockSize', expected: BLOCK_SIZES.join(', '), got: describe(blockSize),
    });
  }
  checkSeqlens(cacheSeqlens);

  const { minTokensPerPart, mostSmallParts = Infinity, sequenceTokens = 0, anyOrder = false } = machine;
  const tokens = cacheSeqlens.reduce((sum, length) => sum + length, 0);
  const wanted = partsTarget(machine, { rows: numQTokensPerHeadK, numHeadsK, blockSize, load: loadOf(cacheSeqlens) });
  const small = Math.min(Math.ceil(tokens / minTokensPerPart), mostSmallParts);
  const worthwhile = Math.max(1, small, Math.ceil(tokens / (2 * minTokensPerPart)), cacheSeqlens.length);
  const lay = anyOrder ? layInAnyOrder : layInOrder;
  const layout = lay(workOf(cacheSeqlens, blockSize, sequenceTokens), Math.min(wanted, worthwhile));
  return metadataOf(layout, { cacheSeqlens: cacheSeqlens.slice(), numQTokensPerHeadK, numHeadsK, blockSize });
}

/** The same call in no more parts, which take sequences in the batch's order: for kernels that take them in no other. */
export function inBatchOrder(metadata: MlaMetadata): MlaMetadata {
  const { order, cacheSeqlens, numQTokensPerHeadK, numHeadsK, blockSize, parts } = metadata;
  if (order.every((sequence, place) => sequence === place)) return metadata;
  return metadataOf(layInOrder(workOf(cacheSeqlens, blockSize, 0), parts), { cacheSeqlens, numQTokensPerHeadK, numHeadsK, blockSize });
}

/**
 * What is wrong with a schedule that somebody else may have made or changed: kernels go where it sends them. Undefined where it covers each block of
 * each sequence once, in one order of the batch, and counts splits as they are. Costs a step some microseconds: hence the plain loops.
 */
export function faultOfSchedule({ order, parts, tileSchedulerMetadata: rows, numSplits, cacheSeqlens, blockSize }: MlaMetadata): string | undefined {
  const b = cacheSeqlens.length;
  if (order.length !== b) return 'order: not [b] i32';
  if (!Number.isSafeInteger(parts) || parts < 1) return 'parts: not a number of parts';
  if (!(rows instanceof Int32Array) || rows.length !== parts * PART_STRIDE) return 'tileSchedulerMetadata: not [parts, 8] i32';
  if (!(numSplits instanceof Int32Array) || numSplits.length !== b + 1 || numSplits[0] !== 0) return 'numSplits: not [b + 1] i32 from 0';
  const placed = new Uint8Array(b);
  for (let place = 0; place < b; place++) {
    const sequence = order[place]!;
    if (sequence < 0 || sequence >= b || placed[sequence]! > 0) return `order[${place}]: not an order of the batch`;
    placed[sequence] = 1;
  }
  // Walked as parts were laid: where the next one must begin, and how many have been at each place.
  const splits = new Int32Array(b);
  let [place, block] = [0, 0];
  for (let p = 0, at = 0; p < parts; p++, at += PART_STRIDE) {
    const [first, last, end] = [rows[at]!, rows[at + 2]!, rows[at + 3]!];
    if (first !== place || rows[at + 1] !== block || last < first || last >= b) return `tileSchedulerMetadata[${p}]: does not begin where the part before ends`;
    const units = blockUnits(cacheSeqlens[order[last]!]!, blockSize);
    if (end <= (last === first ? block : 0) || end > units) return `tileSchedulerMetadata[${p}]: ends outside of its last sequence`;
    if (rows[at + 4] !== splits[first] || rows[at + 7] !== 0) return `tileSchedulerMetadata[${p}]: splits are not counted as they are`;
    for (let i = first; i <= last; i++) splits[i]!++;
    if (end === units) [place, block] = [last + 1, 0];
    else [place, block] = [last, end];
  }
  if (place !== b) return 'tileSchedulerMetadata: leaves sequences out';
  for (let p = 0, at = 0; p < parts; p++, at += PART_STRIDE) {
    if (rows[at + 5] !== Number(splits[rows[at]!]! > 1) || rows[at + 6] !== Number(splits[rows[at + 2]!]! > 1)) return `tileSchedulerMetadata[${p}]: splits are not counted as they are`;
  }
  for (let i = 0; i < b; i++) {
    const sequence = order[i]!;
    if (numSplits[sequence + 1]! - numSplits[sequence]! !== splits[i]) return `numSplits[${sequence + 1}]: not those of tileSchedulerMetadata`;
  }
  return undefined;
}

function metadataOf({ order, parts }: Layout, call: Pick<MlaMetadata, 'cacheSeqlens' | 'numQTokensPerHeadK' | 'numHeadsK' | 'blockSize'>): MlaMetadata {
  const tileSchedulerMetadata = new Int32Array(parts.length * PART_STRIDE);
  /** Of the sequence at each place. */
  const splits = new Int32Array(order.length);
  parts.forEach(({ first, block, last, end }, p) => {
    tileSchedulerMetadata.set([first, block, last, end, splits[first]!], p * PART_STRIDE);
    for (let place = first; place <= last; place++) splits[place]!++;
  });
  parts.forEach(({ first, last }, p) => tileSchedulerMetadata.set([splits[first]! > 1 ? 1 : 0, splits[last]! > 1 ? 1 : 0], p * PART_STRIDE + 5));
  const numSplits = new Int32Array(order.length + 1);
  order.forEach((sequence, place) => (numSplits[sequence + 1] = splits[place]!));
  for (let i = 0; i < order.length; i++) numSplits[i + 1]! += numSplits[i]!;
  return { tileSchedulerMetadata, order: Int32Array.from(order), numSplits, parts: parts.length, ...call };
}

/** @throws MlaError unless `value` is an Int32Array of lengths >= 0, at least one */
export function checkSeqlens(value: unknown): asserts value is Int32Array {
  if (!(value instanceof Int32Array)) {
    throw new MlaError('invalid-dtype', 'not an Int32Array', { argument: 'cacheSeqlens', expected: 'Int32Array [b]', got: describe(value) });
  }
  if (value.length === 0) {
    throw new MlaError('invalid-shape', 'empty batch', { argument: 'cacheSeqlens', expected: 'at least one length', got: '[0]' });
  }
  for (let i = 0; i < value.length; i++) {
    if (value[i]! < 0) {
      throw new MlaError('out-of-range', 'negative length', { argument: `cacheSeqlens[${i}]`, expected: '>= 0', got: String(value[i]) });
    }
  }
}

export function checkPositiveInteger(value: unknown, argument: string): asserts value is number {
  if (!Number.isSafeInteger(value) || (value as number) < 1) {
    throw new MlaError('invalid-argument', 'not a positive integer', { argument, expected: 'an integer >= 1', got: describe(value) });
  }
}
