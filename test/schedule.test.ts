/** Properties of the tile scheduler over random ragged batches and machines. */
import fc from 'fast-check';
import { describe, expect, test } from 'vitest';
import type { MetadataArgs, MlaMetadata, ScheduleInfo } from '../src/mla.ts';
import { faultOfSchedule, getMlaMetadata, inBatchOrder } from '../src/schedule.ts';
import { expectRefusal } from './check.ts';

const machines: fc.Arbitrary<ScheduleInfo> = fc.record({
  slots: fc.integer({ min: 1, max: 600 }),
  rowTiles: fc.constantFrom([1], [16], [1, 16, 64], [128]),
  minTokensPerPart: fc.constantFrom(1, 64, 256, 1024),
  mostSmallParts: fc.constantFrom(1, 20, Infinity),
  sequenceTokens: fc.constantFrom(0, 100, 128, 1000),
  anyOrder: fc.boolean(),
});

const problems: fc.Arbitrary<MetadataArgs & { blockSize: number }> = fc.record({
  cacheSeqlens: fc
    .array(fc.oneof(fc.constant(0), fc.integer({ min: 1, max: 300 }), fc.integer({ min: 1, max: 70_000 }), fc.constantFrom(16, 64, 128, 4096)), { minLength: 1, maxLength: 80 })
    .map((lengths) => Int32Array.from(lengths)),
  numQTokensPerHeadK: fc.oneof(fc.integer({ min: 1, max: 16 }), fc.integer({ min: 1, max: 512 })),
  numHeadsK: fc.constantFrom(1, 2, 3, 8),
  blockSize: fc.constantFrom(16, 32, 64, 128),
});

/** Blocks that the scheduler must hand out for a sequence: one for an empty one, so that its output is written. */
const units = (length: number, blockSize: number): number => Math.max(1, Math.ceil(length / blockSize));

interface Piece {
  readonly part: number;
  /** The sequence's place in the schedule's order. */
  readonly place: number;
  readonly sequence: number;
  readonly from: number;
  readonly to: number;
}

/** What each part computes, in order, as the rows of `tileSchedulerMetadata` say. */
function pieces({ tileSchedulerMetadata: rows, order, parts, cacheSeqlens, blockSize }: MlaMetadata): Piece[] {
  const all: Piece[] = [];
  for (let part = 0; part < parts; part++) {
    const [first, from, last, to] = rows.subarray(part * 8) as unknown as [number, number, number, number];
    for (let place = first; place <= last; place++) {
      const sequence = order[place]!;
      all.push({
        part, place, sequence,
        from: place === first ? from : 0,
        to: place === last ? to : units(cacheSeqlens[sequence]!, blockSize),
      });
    }
  }
  return all;
}

function holds(property: (metadata: MlaMetadata, args: MetadataArgs & { blockSize: number }, machine: ScheduleInfo) => void): void {
  fc.assert(fc.property(problems, machines, (args, machine) => property(getMlaMetadata(args, machine), args, machine)), { numRuns: 300 });
}

function expectCovered(metadata: MlaMetadata): void {
  const { cacheSeqlens, blockSize } = metadata;
  let place = 0;
  let block = 0;
  for (const piece of pieces(metadata)) {
    expect([piece.place, piece.from]).toEqual([place, block]);
    expect(piece.to).toBeGreaterThan(piece.from);
    const end = units(cacheSeqlens[piece.sequence]!, blockSize);
    expect(piece.to).toBeLessThanOrEqual(end);
    [place, block] = piece.to === end ? [place + 1, 0] : [place, piece.to];
  }
  expect([place, block]).toEqual([cacheSeqlens.length, 0]);
}

/** What each part costs: its blocks, and its sequences besides. */
function costs(metadata: MlaMetadata, sequenceTokens = 0): number[] {
  const work = Array.from({ length: metadata.parts }, () => 0);
  for (const { part, from, to } of pieces(metadata)) work[part]! += (to - from) * metadata.blockSize + sequenceTokens;
  return work;
}

describe('getMlaMetadata', () => {
  test('says what it was made for', () =>
    holds((metadata, args) => {
      expect(metadata).toMatchObject({ numQTokensPerHeadK: args.numQTokensPerHeadK, numHeadsK: args.numHeadsK, blockSize: args.blockSize });
      expect(metadata.cacheSeqlens).toEqual(args.cacheSeqlens);
      expect(metadata.cacheSeqlens).not.toBe(args.cacheSeqlens);
      expect(metadata.tileSchedulerMetadata.length).toBe(metadata.parts * 8);
      expect(metadata.numSplits.length).toBe(args.cacheSeqlens.length + 1);
    }));

  test('covers every block once, in order, without gaps', () => holds((metadata) => expectCovered(metadata)));

  test('gives each sequence one place, the one it has in the batch unless it may have any', () =>
    holds(({ order }, { cacheSeqlens }, { anyOrder }) => {
      const batch = Int32Array.from(cacheSeqlens.keys());
      expect(order.slice().sort()).toEqual(batch);
      if (!anyOrder) expect(order).toEqual(batch);
    }));

  test('in any order splits fewer sequences or leaves the order alone, and makes no part larger', () =>
    holds((metadata, args, machine) => {
      const other = getMlaMetadata(args, { ...machine, anyOrder: !machine.anyOrder });
      const [free, plain] = machine.anyOrder ? [metadata, other] : [other, metadata];
      if (pieces(free).length === pieces(plain).length) expect(free).toEqual(plain);
      else expect(pieces(free).length).toBeLessThan(pieces(plain).length);
      expect(Math.max(...costs(free, machine.sequenceTokens))).toBeLessThanOrEqual(Math.max(...costs(plain, machine.sequenceTokens)));
    }));

  test('in any order splits less than a third as many sequences of a large ragged batch', () => {
    const cacheSeqlens = Int32Array.from({ length: 128 }, (_, i) => 1700 + ((i * 7919) % 14_000));
    const split = (anyOrder: boolean): number => {
      const { numSplits } = getMlaMetadata({ cacheSeqlens, numQTokensPerHeadK: 128, numHeadsK: 1 }, { slots: 132, rowTiles: [64], minTokensPerPart: 64, sequenceTokens: 192, anyOrder });
      return [...cacheSeqlens.keys()].filter((i) => numSplits[i + 1]! - numSplits[i]! > 1).length;
    };
    expect(split(false)).toBeGreaterThan(55);
    expect(split(true)).toBeLessThan(split(false) / 3);
  });

  test('goes back to the batch’s order for kernels that take no other, in no more parts', () =>
    holds((metadata) => {
      const back = inBatchOrder(metadata);
      expect(back.order).toEqual(Int32Array.from(metadata.order.keys()));
      expect(back.parts).toBeLessThanOrEqual(metadata.parts);
      expectCovered(back);
      const { order, cacheSeqlens, numQTokensPerHeadK, numHeadsK, blockSize } = metadata;
      expect(back).toMatchObject({ cacheSeqlens, numQTokensPerHeadK, numHeadsK, blockSize });
      if (order.every((sequence, place) => sequence === place)) expect(back).toBe(metadata);
    }));

  test('is seen to be sound', () =>
    holds((metadata) => {
      expect(faultOfSchedule(metadata)).toBeUndefined();
      expect(faultOfSchedule(inBatchOrder(metadata))).toBeUndefined();
      expect(faultOfSchedule(structuredClone(metadata))).toBeUndefined();
    }));

  test('is seen not to be, whichever number of it is changed', () =>
    fc.assert(
      fc.property(problems, machines, fc.constantFrom('tileSchedulerMetadata', 'order', 'numSplits'), fc.nat(), fc.oneof(fc.integer({ min: -3, max: 3 }), fc.integer()), (args, machine, field, at, by) => {
        const metadata = getMlaMetadata(args, machine);
        const changed = metadata[field].slice();
        changed[at % changed.length]! += by;
        const same = changed[at % changed.length] === metadata[field][at % changed.length];
        const fault = faultOfSchedule({ ...metadata, [field]: changed });
        if (same) expect(fault).toBeUndefined();
        else expect(fault).toMatch(field === 'order' ? /^order/ : /^(tileSchedulerMetadata|numSplits)/);
      }),
      { numRuns: 500 },
    ));

  test('is seen not to be where parts are missing, or are more than there are', () =>
    holds((metadata) => {
      const { tileSchedulerMetadata: rows, parts } = metadata;
      expect(faultOfSchedule({ ...metadata, parts: parts + 1 })).toBeDefined();
      expect(faultOfSchedule({ ...metadata, parts: parts - 1, tileSchedulerMetadata: rows.slice(0, -8) })).toBeDefined();
      expect(faultOfSchedule({ ...metadata, numSplits: metadata.numSplits.slice(1) })).toBeDefined();
      expect(faultOfSchedule({ ...metadata, tileSchedulerMetadata: Array.from(rows) as never })).toBeDefined();
    }));

  test('gives an empty sequence exactly one unit', () =>
    holds((metadata, { cacheSeqlens }) => {
      const all = pieces(metadata);
      cacheSeqlens.forEach((length, i) => {
        if (length > 0) return;
        expect(all.filter((piece) => piece.sequence === i)).toMatchObject([{ from: 0, to: 1 }]);
        expect(metadata.numSplits[i + 1]! - metadata.numSplits[i]!).toBe(1);
      });
    }));

  test('makes parts as small as can be with so many, none of them empty', () =>
    holds((metadata, { blockSize }, { sequenceTokens }) => {
      const work = costs(metadata, sequenceTokens);
      expect(Math.min(...work)).toBeGreaterThan(0);
      const splits = pieces(metadata).length - metadata.cacheSeqlens.length;
      const total = work.reduce((sum, cost) => sum + cost, 0) + (metadata.parts - 1 - splits) * sequenceTokens!; // had every cut split one
      const least = Math.ceil(total / metadata.parts);
      expect(Math.max(...work)).toBeLessThan(least + blockSize + sequenceTokens!);
      if (sequenceTokens === 0) expect(Math.max(...work)).toBe(Math.ceil(least / blockSize) * blockSize);
    }));

  test('gives parts of many sequences fewer blocks, and every part of a long one as many', () => {
    const heaviest = (lengths: number[], sequenceTokens: number): number =>
      Math.max(...costs(getMlaMetadata({ cacheSeqlens: Int32Array.from(lengths), numQTokensPerHeadK: 128, numHeadsK: 1 }, { slots: 132, rowTiles: [64], rowTileMultiple: 2, minTokensPerPart: 64, sequenceTokens }), 128));
    const ragged = [65536, ...Array.from({ length: 31 }, (_, i) => 257 + 61 * i)];
    expect([heaviest(ragged, 0), heaviest(ragged, 128)]).toEqual([35 * 64, 28 * 64]);
    for (const [lengths, blocks] of [[[8192], 2], [[131072], 32], [Array<number>(8).fill(4096), 8], [Array<number>(32).fill(4096), 32]] as const) {
      expect(heaviest([...lengths], 128)).toBe((blocks + 2) * 64);
    }
  });

  test('counts splits as the parts make them', () =>
    holds((metadata, { cacheSeqlens }) => {
      const { numSplits, tileSchedulerMetadata: rows, order, parts } = metadata;
      const all = pieces(metadata);
      expect(numSplits[0]).toBe(0);
      for (let i = 0; i < cacheSeqlens.length; i++) {
        const mine = all.filter((piece) => piece.sequence === i);
        expect(numSplits[i + 1]! - numSplits[i]!).toBe(mine.length);
      }
      const splitsOf = (place: number): number => numSplits[order[place]! + 1]! - numSplits[order[place]!]!;
      for (let part = 0; part < parts; part++) {
        const [first, , last, , index, firstSplit, lastSplit, zero] = rows.subarray(part * 8) as unknown as number[];
        expect(index).toBe(all.filter((piece) => piece.place === first && piece.part < part).length);
        expect([firstSplit, lastSplit, zero]).toEqual([splitsOf(first!) > 1 ? 1 : 0, splitsOf(last!) > 1 ? 1 : 0, 0]);
        // Only the ends of a part can be split; what lies between is whole.
        for (let place = first! + 1; place < last!; place++) expect(splitsOf(place)).toBe(1);
      }
    }));

  test('never asks for more parts than the machine runs at once', () =>
    holds((metadata, { numQTokensPerHeadK, numHeadsK }, { slots, rowTiles }) => {
      const tile = rowTiles.find((rows) => rows >= numQTokensPerHeadK) ?? rowTiles[rowTiles.length - 1]!;
      const workgroups = metadata.parts * Math.ceil(numQTokensPerHeadK / tile) * numHeadsK;
      if (metadata.parts > 1) expect(workgroups).toBeLessThanOrEqual(slots);
    }));

  test('makes no more parts than the longest one makes necessary', () =>
    holds(({ parts, cacheSeqlens, blockSize }, _, { sequenceTokens }) => {
      if (sequenceTokens !== 0) return;
      const total = cacheSeqlens.reduce((n, length) => n + units(length, blockSize), 0);
      const longest = Math.ceil(total / parts);
      if (parts > 1) expect(Math.ceil(total / (parts - 1))).toBeGreaterThan(longest);
    }));

  test('cuts sequences of one length alike where that takes no longer', () => {
    const { parts, numSplits } = getMlaMetadata(
      { cacheSeqlens: new Int32Array(8).fill(4096), numQTokensPerHeadK: 128, numHeadsK: 1 },
      { slots: 132, rowTiles: [64], rowTileMultiple: 2, minTokensPerPart: 64 },
    );
    expect(parts).toBe(64);
    expect(numSplits).toEqual(Int32Array.from({ length: 9 }, (_, i) => i * 8));
  });

  test('splits few sequences: at most one a cut', () =>
    holds((metadata, { cacheSeqlens }) => {
      expect(metadata.numSplits[cacheSeqlens.length]! - cacheSeqlens.length).toBeLessThan(metadata.parts);
    }));

  test('leaves parts enough tokens to be worth it, twice as many when there are many parts', () =>
    holds((metadata, { cacheSeqlens }, { minTokensPerPart, mostSmallParts }) => {
      const tokens = cacheSeqlens.reduce((n, length) => n + length, 0);
      if (metadata.parts <= cacheSeqlens.length) return;
      expect(tokens / (metadata.parts - 1)).toBeGreaterThanOrEqual(metadata.parts > mostSmallParts! ? 2 * minTokensPerPart : minTokensPerPart);
    }));

  test('is deterministic and leaves its argument alone', () =>
    holds((metadata, args, machine) => {
      const before = args.cacheSeqlens.slice();
      expect(getMlaMetadata(args, machine)).toEqual(metadata);
      expect(args.cacheSeqlens).toEqual(before);
    }));

  test('takes the longest lengths there are', () => {
    const cacheSeqlens = new Int32Array(300).fill(2147483647);
    const metadata = getMlaMetadata({ cacheSeqlens, numQTokensPerHeadK: 1, numHeadsK: 1, blockSize: 16 }, { slots: 264, rowTiles: [64], minTokensPerPart: 64 });
    expect(metadata.parts).toBe(264);
    expect(metadata.tileSchedulerMetadata[263 * 8 + 3]).toBe(2147483648 / 16);
  });

  test('blocks are of 64 tokens unless told', () => {
    expect(getMlaMetadata({ cacheSeqlens: Int32Array.of(1), numQTokensPerHeadK: 1, numHeadsK: 1 }, { slots: 1, rowTiles: [1], minTokensPerPart: 1 }).blockSize).toBe(64);
  });

  const good = { cacheSeqlens: Int32Array.of(5, 0, 70), numQTokensPerHeadK: 16, numHeadsK: 1, blockSize: 64 };
  const machine: ScheduleInfo = { slots: 8, rowTiles: [16], minTokensPerPart: 64 };
  for (const [what, code, argument, change] of [
    ['a plain array', 'invalid-dtype', 'cacheSeqlens', { cacheSeqlens: [5, 0, 70] }],
    ['no lengths', 'invalid-dtype', 'cacheSeqlens', { cacheSeqlens: undefined }],
    ['an empty batch', 'invalid-shape', 'cacheSeqlens', { cacheSeqlens: new Int32Array(0) }],
    ['a negative length', 'out-of-range', 'cacheSeqlens', { cacheSeqlens: Int32Array.of(5, -1) }],
    ['no rows', 'invalid-argument', 'numQTokensPerHeadK', { numQTokensPerHeadK: 0 }],
    ['a fraction of a row', 'invalid-argument', 'numQTokensPerHeadK', { numQTokensPerHeadK: 2.5 }],
    ['NaN heads', 'invalid-argument', 'numHeadsK', { numHeadsK: NaN }],
    ['heads in a string', 'invalid-argument', 'numHeadsK', { numHeadsK: '1' }],
    ['a block size of 48', 'invalid-argument', 'blockSize', { blockSize: 48 }],
  ] as const) {
    test(`refuses ${what}`, () => expectRefusal(() => getMlaMetadata({ ...good, ...change } as MetadataArgs, machine), code, argument).then(() => undefined));
  }
});
