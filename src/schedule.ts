/**
 * The tile scheduler: cuts the KV blocks of a ragged batch into even, contiguous parts. Pure.
 *
 * Work is counted in KV blocks; a sequence of length zero counts as one, so that some part writes its (zero)
 * output. All sequences are laid end to end and the line is cut at `floor(p * total / parts)`, so parts differ by
 * one block at most, a sequence is split only where a cut falls inside it, and the same input always gives the
 * same cut. There are no more parts than the longest one makes necessary: with fewer, larger ones the machine is done
 * at the same time, sequences of one length are cut alike, and there is less to merge.
 */
import { MlaError, describe } from './errors.ts';
import type { MetadataArgs, MlaMetadata, ScheduleInfo } from './mla.ts';

/** i32 numbers a part in `tileSchedulerMetadata`. */
export const PART_STRIDE = 8;
export const BLOCK_SIZES: readonly number[] = [16, 32, 64, 128];

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

/** How many parts a machine wants for a problem with this many query rows a KV head. */
export function partsTarget(machine: ScheduleInfo, rows: number, numHeadsK: number): number {
  const tuned = machine.tuned?.find((t) => t.rows === rowClass(rows) && t.numHeadsK === numHeadsK);
  const [slots, tiles] = tuned ? [tuned.slots, Math.ceil(rows / tuned.rowTile)] : [machine.slots, countRowTiles(machine, rows)];
  return Math.max(1, Math.floor(slots / (tiles * numHeadsK)));
}

/** KV blocks of a sequence as the scheduler counts them: one for a sequence of length zero. */
export function blockUnits(length: number, blockSize: number): number {
  return Math.max(1, Math.ceil(length / blockSize));
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

  const b = cacheSeqlens.length;
  let total = 0;
  let tokens = 0;
  for (const length of cacheSeqlens) {
    total += blockUnits(length, blockSize);
    tokens += length;
  }
  const wanted = partsTarget(machine, numQTokensPerHeadK, numHeadsK);
  const worthwhile = Math.max(1, Math.ceil(tokens / machine.minTokensPerPart), Math.min(b, wanted));
  const longest = Math.ceil(total / Math.min(wanted, worthwhile, total));
  const parts = Math.ceil(total / longest);

  const tileSchedulerMetadata = new Int32Array(parts * PART_STRIDE);
  const numSplits = new Int32Array(b + 1);
  const splits = new Int32Array(b);
  let seq = 0;
  let block = 0; // position of the last cut: sequence and block in it
  for (let p = 0; p < parts; p++) {
    let left = Math.floor(((p + 1) * total) / parts) - Math.floor((p * total) / parts);
    const row = tileSchedulerMetadata.subarray(p * PART_STRIDE, (p + 1) * PART_STRIDE);
    row[0] = seq;
    row[1] = block;
    row[4] = splits[seq]!;
    for (;;) {
      const units = blockUnits(cacheSeqlens[seq]!, blockSize);
      const taken = Math.min(left, units - block);
      splits[seq]!++;
      left -= taken;
      if (left === 0) {
        row[2] = seq;
        row[3] = block + taken;
        block += taken;
        if (block === units) {
          seq++;
          block = 0;
        }
        break;
      }
      seq++;
      block = 0;
    }
  }
  for (let i = 0; i < b; i++) numSplits[i + 1] = numSplits[i]! + splits[i]!;
  for (let p = 0; p < parts; p++) {
    const row = p * PART_STRIDE;
    tileSchedulerMetadata[row + 5] = splits[tileSchedulerMetadata[row]!]! > 1 ? 1 : 0;
    tileSchedulerMetadata[row + 6] = splits[tileSchedulerMetadata[row + 2]!]! > 1 ? 1 : 0;
  }
  return {
    tileSchedulerMetadata, numSplits, cacheSeqlens: cacheSeqlens.slice(),
    numQTokensPerHeadK, numHeadsK, blockSize, parts,
  };
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
