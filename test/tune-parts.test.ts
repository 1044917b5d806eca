/** Parts of tuning that need no device: classes, keys, loads, the search and what is remembered where. */
import { execFile } from 'node:child_process';
import { mkdir, mkdtemp, readFile, readdir, rm, symlink, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { promisify } from 'node:util';
import fc from 'fast-check';
import { afterEach, beforeEach, describe, expect, test } from 'vitest';
import { fromBf16 } from '../src/bf16.ts';
import { LOADS, LOAD_TOKENS, getMlaMetadata, loadOf, mostParts, partsTarget, rowClass } from '../src/schedule.ts';
import { checkTune, classOf, parseShapeClass, shapeClass, type ShapeClass } from '../src/shape-class.ts';
import { cacheDirectory, fileStore } from '../src/tune-file.ts';
import { indexedDbStore } from '../src/tune-indexed-db.ts';
import { STORE_FORMAT, noStore, readRemembered, siteKey, type TuneSite } from '../src/tune-store.ts';
import type { DeviceTraits, KernelLimits } from '../src/webgpu/config.ts';
import type { TuneDevice } from '../src/webgpu/tune-bench.ts';
import { WRONG, rightRows, rowsOfAll, rowsOfFew, wrongness, type CheckShape, type RightRow, type Row } from '../src/webgpu/tune-check.ts';
import { KV_STRETCH, Q_STRETCH, TuneData } from '../src/webgpu/tune-data.ts';
import { PROBE_TOKENS, TUNE_BLOCK, checkLoad, checkMetadata, loadCost, nextProbe, tokensWithin, tuneLoad, type TuneLoad } from '../src/webgpu/tune-load.ts';
import { search, slotLadder } from '../src/webgpu/tune-search.ts';
import { Tuner } from '../src/webgpu/tuner.ts';
import { referenceDecode } from './reference.ts';

const choice = { config: 'base 16x16/256 r2', slots: 132, ms: 1.5 };

describe('classes', () => {
  test('rows that share a class share its tiles', () => {
    expect([1, 2, 3, 5, 9, 16, 17, 32, 33, 63, 64, 126].map(rowClass)).toEqual([1, 2, 4, 8, 16, 16, 32, 32, 48, 64, 64, 128]);
  });

  test('in words and back, one text a class', () => {
    const shapes = fc.record<ShapeClass>({
      rows: fc.integer({ min: 1, max: 600 }), hKv: fc.integer({ min: 1, max: 8 }), dQk: fc.constantFrom(48, 576), dV: fc.constantFrom(32, 512), dtype: fc.constantFrom('bf16', 'f16'),
      load: fc.constantFrom(...LOADS),
    });
    fc.assert(fc.property(shapes, (shape) => void expect(parseShapeClass(shapeClass(shape))).toEqual(shape)));
    for (const text of ['', 'bf16 576/512, 16 rows', 'bf16 576/512, 16 rows, 1 KV head', 'x bf16 576/512, 16 rows, 1 KV head, long load', 'f32 576/512, 16 rows, 1 KV head, long load', 'bf16 576/512, 16 rows, 1 KV head, middling load']) expect(parseShapeClass(text)).toBeUndefined();
  });

  test('of a call and of the arguments that name it', () => {
    const call = (length: number) => ({
      sQ: 2, hQ: 126, hKv: 2, dQk: 576, dV: 512, dtype: 'f16', metadata: getMlaMetadata({ cacheSeqlens: Int32Array.of(9, length), numQTokensPerHeadK: 126, numHeadsK: 2 }, { slots: 1, rowTiles: [1], minTokensPerPart: 1 }),
    } as const);
    const args = { numQTokensPerHeadK: 126, numHeadsK: 2, dtype: 'f16' } as const;
    expect(checkTune(args)).toEqual([call(5), call(1e5), call(1e6)].map((c) => ({ ...classOf(c), again: false })));
    for (const load of LOADS) expect(checkTune({ ...args, load })).toMatchObject([{ load }]);
  });

  test('of loads: tokens of all sequences together', () => {
    const { short, medium } = LOAD_TOKENS;
    expect([[0], [short], [short, 1], [short - 1, 0, 2], [medium], [medium - 1, 2], Array<number>(300).fill(2147483647)].map(loadOf))
      .toEqual(['short', 'short', 'medium', 'medium', 'medium', 'long', 'long']);
    expect(loadOf(Int32Array.of(2147483647, 2147483647))).toBe('long');
  });
});

describe('the schedule', () => {
  const machine = { slots: 264, rowTiles: [4, 16], minTokensPerPart: 64 };
  const short = { rows: 128, numHeadsK: 1, load: 'short', slots: 132, rowTile: 64, tokens: 16 } as const;
  const medium = { ...short, load: 'medium', slots: 264, tokens: 16 } as const;
  const long = { ...short, load: 'long', slots: 528, tokens: 32 } as const;
  const tuned = { ...machine, tuned: [short, { ...short, slots: 1 }, medium, long] };
  const call = { rows: 128, numHeadsK: 1, blockSize: 64, load: 'short' } as const;

  test('follows what was tuned, for calls of those rows and heads', () => {
    expect(partsTarget(machine, call)).toBe(33);
    expect(partsTarget(tuned, call)).toBe(66);
    expect(partsTarget(tuned, { ...call, rows: 113 })).toBe(66);
    for (const other of [{ ...call, rows: 112 }, { ...call, numHeadsK: 2 }]) expect(partsTarget(tuned, other)).toBe(partsTarget(machine, other));
    const args = { cacheSeqlens: Int32Array.of(8192), numQTokensPerHeadK: 128, numHeadsK: 1 };
    expect([getMlaMetadata(args, machine).parts, getMlaMetadata(args, tuned).parts]).toEqual([32, 64]);
  });

  test('goes by the load of the call, and by nothing where only other loads were tuned', () => {
    expect(LOADS.map((load) => partsTarget(tuned, { ...call, load }))).toEqual([66, 132, 264]);
    const parts = (length: number, ...known: (typeof short | typeof medium | typeof long)[]): number =>
      getMlaMetadata({ cacheSeqlens: Int32Array.of(length), numQTokensPerHeadK: 128, numHeadsK: 1 }, { ...machine, tuned: known }).parts;
    const step = [LOAD_TOKENS.short, LOAD_TOKENS.short + 1];
    expect(step.map((length) => parts(length, short, medium, long))).toEqual([64, 129]);
    expect(step.map((length) => parts(length, short))).toEqual([64, parts(step[1]!)]);
    expect(step.map((length) => parts(length, medium))).toEqual([parts(step[0]!), 129]);
    expect(parts(LOAD_TOKENS.medium, medium, long)).toBeLessThanOrEqual(132);
    expect(parts(LOAD_TOKENS.medium + 1, medium, long)).toBeGreaterThan(132);
  });

  test('does not follow a choice that the blocks of the call do not fit', () => {
    const on = (blockSize: number): number => partsTarget(tuned, { ...call, load: 'long', blockSize });
    expect([16, 32, 64, 128].map(on)).toEqual([33, 264, 264, 264]);
  });

  test('scratch memory is for any load', () => {
    expect(mostParts(machine, call)).toBe(33);
    expect(mostParts(tuned, call)).toBe(264);
    expect(mostParts(tuned, { ...call, blockSize: 16 })).toBe(132);
  });
});

describe('loads', () => {
  const limits = { maxStorageBufferBindingSize: 134217728, maxBufferSize: 268435456 } as KernelLimits;

  const sum = ({ cacheSeqlens }: TuneLoad): number => cacheSeqlens.reduce((x, y) => x + y);
  /** How many times the tables name each block. */
  const uses = ({ numBlocks, cacheSeqlens, maxBlocksPerSeq, blockTables }: TuneLoad): number[] => {
    const counts = Array<number>(numBlocks).fill(0);
    for (const table of blockTables) cacheSeqlens.forEach((length, i) => {
      for (const id of table.subarray(i * maxBlocksPerSeq, i * maxBlocksPerSeq + length / TUNE_BLOCK)) counts[id]!++;
    });
    return counts;
  };

  test('lie within the pool and the limits, and go over it evenly', () => {
    fc.assert(
      fc.property(
        fc.integer({ min: 1, max: 200 }), fc.constantFrom(48, 576), fc.constantFrom(1, 700, 5000, Infinity), fc.constantFrom(...LOADS), fc.constantFrom(1, 8),
        (hKv, dQk, most, load, scarcity) => {
          const small = { ...limits, maxStorageBufferBindingSize: limits.maxStorageBufferBindingSize / scarcity };
          const found = tuneLoad({ hKv, dQk, load }, { limits: small }, most)!;
          expect(sum(found)).toBeLessThanOrEqual(Math.max(Math.min(most, 524_288), PROBE_TOKENS));
          expect(found.numBlocks * TUNE_BLOCK * hKv * dQk * 2).toBeLessThanOrEqual(small.maxStorageBufferBindingSize);
          expect(found.cacheSeqlens.every((length) => length > 0)).toBe(true);
          const counts = uses(found);
          expect(counts).toHaveLength(found.numBlocks);
          expect(Math.max(...counts) - Math.min(...counts)).toBeLessThanOrEqual(1);
        },
      ),
      { numRuns: 60 },
    );
  });

  test('on a fast GPU: a short call finds its keys in no cache, a long one goes over a pool past the caches, in another order each time', () => {
    const bytes = (tokens: number): number => tokens * 576 * 2;
    const short = tuneLoad({ hKv: 1, dQk: 576, load: 'short' }, { limits }, Infinity)!;
    expect(short.cacheSeqlens).toEqual(Int32Array.of(8192));
    expect(bytes(8192) * short.blockTables.length).toBeGreaterThan(100e6);
    expect(uses(short).every((n) => n === 1)).toBe(true);
    expect(loadOf(short.cacheSeqlens)).toBe('short');
    expect(loadCost({ rows: 128, hKv: 1, dQk: 576, dV: 512, dtype: 'bf16', load: 'short' }, short)).toEqual({ flops: 2 * 128 * 1088 * 8192, bytes: 2 * (128 * 1088 + 8192 * 576) });

    const medium = tuneLoad({ hKv: 1, dQk: 576, load: 'medium' }, { limits }, Infinity)!;
    expect(sum(medium)).toBeGreaterThan(64_000);
    expect(loadOf(medium.cacheSeqlens)).toBe('medium');

    const long = tuneLoad({ hKv: 1, dQk: 576, load: 'long' }, { limits }, Infinity)!;
    expect(sum(long)).toBeGreaterThan(520_000);
    expect(bytes(long.numBlocks * TUNE_BLOCK)).toBeGreaterThan(120e6);
    expect(new Set(long.cacheSeqlens).size).toBeGreaterThan(1);
    expect(loadOf(long.cacheSeqlens)).toBe('long');
    const walk = [...long.cacheSeqlens].flatMap((length, i) => [...long.blockTables[0]!.subarray(i * long.maxBlocksPerSeq, i * long.maxBlocksPerSeq + length / TUNE_BLOCK)]);
    const successors = new Set(walk.slice(1).map((id, i) => `${walk[i]} ${id}`));
    expect(successors.size).toBeGreaterThan(0.99 * walk.length);
  });

  test('shrink with the device’s speed, down to a first call', () => {
    const tokens = (most: number): number => sum(tuneLoad({ hKv: 1, dQk: 576, load: 'long' }, { limits }, most)!);
    const within = (ms: number): number => tokensWithin({ tokens: PROBE_TOKENS, ms });
    expect(tokens(PROBE_TOKENS)).toBe(PROBE_TOKENS);
    expect(tokens(within(1000))).toBe(PROBE_TOKENS);
    expect(tokens(within(3))).toBeGreaterThan(8 * PROBE_TOKENS);
    expect(tokens(within(0.02))).toBeGreaterThan(520_000);
  });

  test('the device’s speed is what a call of a millisecond says, or one that leaves no doubt', () => {
    /** Tokens of all probes on a device that takes so long for a call, and for each 1000 tokens of it besides. */
    const probes = (load: 'short' | 'long', latency: number, perThousand: number): number[] => {
      const all: number[] = [];
      for (let tokens: number | undefined = PROBE_TOKENS; tokens !== undefined; ) {
        all.push(tokens);
        tokens = nextProbe(load, { tokens, ms: latency + (perThousand * tokens) / 1000 });
      }
      return all;
    };
    expect(probes('long', 0.04, 0.003)).toEqual([512, 4096, 32768]);
    expect(probes('short', 0.04, 0.003)).toEqual([512]);
    expect(probes('long', 0.1, 1)).toEqual([512, 4096]);
    expect(probes('long', 0.1, 60)).toEqual([512]);
    expect(probes('long', 0, 0)).toEqual([512, 4096, 32768]);
  });

  test('none where no block fits', () => {
    expect(tuneLoad({ hKv: 4000, dQk: 576, load: 'short' }, { limits }, Infinity)).toBeUndefined();
  });
});

describe('what is right', () => {
  const limits = { maxStorageBufferBindingSize: 134217728, maxBufferSize: 268435456 } as KernelLimits;
  const shape: CheckShape = { hQ: 128, hKv: 1, dQk: 576, dV: 512 };
  const narrow: CheckShape = { hQ: 10, hKv: 2, dQk: 48, dV: 32 };
  const load = (of: (typeof LOADS)[number], { hKv, dQk }: CheckShape = shape): TuneLoad => tuneLoad({ hKv, dQk, load: of }, { limits }, Infinity)!;

  function all<T>(work: Generator<void, T>): T {
    for (;;) {
      const { done, value } = work.next();
      if (done) return value;
    }
  }
  const right = (of: CheckShape, on: TuneLoad, rows: readonly Row[], dtype: 'bf16' | 'f16' = 'bf16'): RightRow[] => all(rightRows(of, on, all(TuneData.make(dtype, of.dQk)), rows));
  /** What is said of a row that came out as another one ought to. */
  const judged = (ought: RightRow, got: RightRow): string | undefined => wrongness(ought, Float32Array.from(got.out), Math.fround(got.lse));
  /** The same load with one entry of its first block table replaced. */
  const withBlock = (on: TuneLoad, entry: number, block: number): TuneLoad => ({ ...on, blockTables: [on.blockTables[0]!.with(entry, block)] });

  test.each(['bf16', 'f16'] as const)('is what the oracle says, %s', (dtype) => {
    const on = checkLoad(load('short', narrow));
    const { numBlocks, cacheSeqlens, blockTables } = on;
    const { hQ, hKv, dQk, dV } = narrow;
    const data = all(TuneData.make(dtype, dQk));
    const q = Float32Array.from({ length: cacheSeqlens.length * hQ * dQk }, (_, i) => data.q[data.qAt(i)]!);
    const kvCache = Float32Array.from({ length: numBlocks * TUNE_BLOCK * hKv * dQk }, (_, i) => data.kv[data.kvAt(i)]!);
    const oracle = referenceDecode({ q, kvCache, blockTable: blockTables[0]!, cacheSeqlens, sQ: 1, hQ, hKv, dQk, dV, blockSize: TUNE_BLOCK });
    const rows = right(narrow, on, rowsOfAll(narrow, on), dtype);
    expect(rows.map(({ sequence, head }) => `${sequence}/${head}`)).toEqual([[9, 2, 5], [8, 1, 4], [7, 0, 3], [6, 9, 2]].flatMap((heads, sequence) => heads.map((head) => `${sequence}/${head}`)));
    for (const { sequence, head, length, out, lse } of rows) {
      const row = sequence * hQ + head;
      expect(length).toBe(cacheSeqlens[sequence]);
      expect(lse).toBeCloseTo(oracle.lse[row]!, 10);
      out.forEach((value, d) => expect(value).toBeCloseTo(oracle.out[row * dV + d]!, 10));
    }
  });

  test('numbers: no two tokens begin at one place, nor do two rows of Q, and what goes to the device is what is reckoned with', () => {
    const data = all(TuneData.make('bf16', 576));
    expect(data.bits.byteLength).toBe(KV_STRETCH.bytes + Q_STRETCH.bytes);
    for (const width of [48, 64, 288, 512, 576]) {
      const tokens = Math.min(134217728 / 2 / width, KV_STRETCH.bytes / 4);
      expect(new Set(Array.from({ length: tokens }, (_, i) => data.kvAt(i * width))).size).toBe(Math.floor(tokens));
      expect(new Set(Array.from({ length: 8 * 512 }, (_, i) => data.qAt(i * width))).size).toBe(8 * 512);
    }
    // The first word comes again behind the last.
    expect(data.kv.slice(-576)).toEqual(data.kv.slice(0, 576));
    expect(data.kv[data.kvAt(KV_STRETCH.bytes / 2 + 5)]).toBe(data.kv[5]);
    expect(data.q[7]).toBe(fromBf16(data.bits[Q_STRETCH.at / 2 + 7]!));
    const deviation = Math.sqrt(data.kv.reduce((sum, x) => sum + x * x, 0) / data.kv.length);
    expect(deviation).toBeCloseTo(1, 2);
  });

  test('rows that are looked at: of heads far apart, of the shortest sequence and the longest, and no more than costs little', () => {
    const cost = (rows: readonly Row[], { cacheSeqlens }: TuneLoad): number => rows.reduce((sum, { sequence }) => sum + cacheSeqlens[sequence]! * 1088, 0);
    const few = (on: TuneLoad): Row[] => rowsOfFew(shape, on);
    expect(few(load('short'))).toEqual([{ sequence: 0, head: 127 }, { sequence: 0, head: 52 }]);
    const medium = load('medium');
    expect(few(medium).map(({ sequence }) => medium.cacheSeqlens[sequence])).toEqual([Math.min(...medium.cacheSeqlens), Math.max(...medium.cacheSeqlens)]);
    for (const on of [load('short'), medium]) expect(cost(few(on), on)).toBeLessThan(2e7);
    const long = load('long');
    expect(few(long)).toEqual([{ sequence: 0, head: 127 }]);
    expect(long.cacheSeqlens[0]).toBe(Math.min(...long.cacheSeqlens));
    const probe = tuneLoad({ hKv: 1, dQk: 576, load: 'long' }, { limits }, PROBE_TOKENS)!;
    expect(new Set(few(probe).map(({ head }) => head)).size).toBe(6);
    expect(rowsOfFew({ ...shape, hQ: 1 }, probe)).toEqual([{ sequence: 0, head: 0 }, { sequence: 7, head: 0 }]);
    expect(rowsOfAll({ ...shape, hQ: 2 }, checkLoad(probe)).map(({ head }) => head)).toEqual([1, 0, 0, 1, 1, 0, 0, 1]);
    // In every 16 rows of a tile of 64.
    for (const hQ of [64, 128]) expect(new Set(rowsOfAll({ ...shape, hQ }, checkLoad(probe)).map(({ head }) => (head % 64) >> 4)).size).toBe(4);
  });

  test('the call for checking: ends within blocks, parts of several blocks and of several sequences, one that is split, on any pool and device', () => {
    for (const anyOrder of [false, true]) {
      for (const rows of [1, 16, 128]) {
        const on = checkLoad(load('short'));
        for (const most of [1, 2, 3, 100]) {
          const { parts, numSplits, tileSchedulerMetadata } = checkMetadata({ rows, hKv: 2 }, on, { anyOrder }, most);
          expect(parts).toBe(Math.min(most, 3));
          const splits = [...on.cacheSeqlens.keys()].map((i) => numSplits[i + 1]! - numSplits[i]!);
          expect(splits.some((n) => n > 1)).toBe(parts > 1);
          expect(splits).toContain(1);
          const sequences = Array.from({ length: parts }, (_, p) => tileSchedulerMetadata[8 * p + 2]! - tileSchedulerMetadata[8 * p]! + 1);
          expect(Math.max(...sequences)).toBeGreaterThan(1);
        }
        expect(on.cacheSeqlens.some((length) => length % TUNE_BLOCK !== 0)).toBe(true);
      }
    }
    for (const numBlocks of [1, 8]) expect(Math.max(...checkLoad({ ...load('long'), numBlocks }).blockTables[0]!)).toBeLessThan(numBlocks);
  });

  test('one block in another’s place shows wherever it is, in any load', () => {
    const check = checkLoad(load('short'));
    const rows = rowsOfAll(shape, check);
    const ought = right(shape, check, rows);
    check.cacheSeqlens.forEach((length, sequence) => {
      for (let j = 0; j < Math.ceil(length / TUNE_BLOCK); j++) {
        const entry = sequence * check.maxBlocksPerSeq + j;
        const got = right(shape, withBlock(check, entry, check.blockTables[0]![entry]! ^ 1), rows.filter((row) => row.sequence === sequence));
        const same = ought.filter((row) => row.sequence === sequence);
        same.forEach((row, i) => expect(judged(row, got[i]!), `block ${j} of sequence ${sequence}`).toMatch(/^wrong results: /));
      }
    });
    for (const of of LOADS) {
      const on = load(of);
      const [row] = rowsOfFew(shape, on);
      const [expected] = right(shape, on, [row!]);
      expect(judged(expected!, expected!)).toBeUndefined();
      const middle = on.cacheSeqlens[row!.sequence]! / TUNE_BLOCK >> 1;
      // The one before once more, as a kernel that does not look up the next does it.
      const [other] = right(shape, withBlock(on, row!.sequence * on.maxBlocksPerSeq + middle, on.blockTables[0]![row!.sequence * on.maxBlocksPerSeq + middle - 1]!), [row!]);
      expect(judged(expected!, other!), of).toMatch(/^wrong results: /);
    }
  });

  test('a step of 16 tokens that is left out shows', () => {
    const check = checkLoad(load('short'));
    const rows = rowsOfAll(shape, check);
    const shorter = { ...check, cacheSeqlens: check.cacheSeqlens.map((length) => length - 16) };
    const got = right(shape, shorter, rows);
    right(shape, check, rows).forEach((row, i) => expect(judged(row, got[i]!)).toMatch(/^wrong results: /));
    for (const of of LOADS) {
      const on = load(of);
      const [row] = rowsOfFew(shape, on);
      const [expected] = right(shape, on, [row!]);
      // Half of the steps; the bound on the LSE is a thousandth and more of the tokens of a long load.
      const [other] = right(shape, { ...on, cacheSeqlens: on.cacheSeqlens.map((length) => length / 2) }, [row!]);
      expect(judged(expected!, other!), of).toMatch(/^wrong results: LSE /);
    }
  });

  test('bounds are those that results are held to elsewhere; what is no number is wrong', () => {
    const row: RightRow = { sequence: 0, head: 3, length: 20, out: Float64Array.of(0, 0.5, -1), lse: 3 };
    const say = (out: number[], lse = 3): string | undefined => wrongness(row, Float32Array.from(out), lse);
    expect(say([0, 0.5, -1])).toBeUndefined();
    expect(say([7e-4, 0.5075, -1.0155], 3.0003)).toBeUndefined();
    expect(say([9e-4, 0.5, -1])).toBe(`${WRONG}: out[0] 0.0009 where 0 is right (row 3 of a sequence of 20 tokens)`);
    expect(say([0, 0.5, -1.016])).toContain('out[2] -1.016 where -1 is right');
    expect(say([0, 0.5, -1], 3.0004)).toContain('LSE 3.0004 where 3 is right');
    expect(say([0, NaN, -1])).toContain('out[1] NaN where 0.5 is right');
    for (const lse of [NaN, Infinity, -Infinity]) expect(say([0, 0.5, -1], lse)).toContain(`LSE ${lse} where`);
    expect(say([0, -Infinity, -1])).toContain('out[1] -Infinity');
  });
});

describe('the search', () => {
  interface Config { readonly key: string; readonly rows: number }
  const configs: Config[] = [{ key: 'a', rows: 16 }, { key: 'b', rows: 16 }, { key: 'c', rows: 4 }];
  const run = async (times: Record<string, number | string>, tried: string[] = []) =>
    search({
      configs, rejected: ['d: too: large'], slots: [64, 32, 128, 129],
      parts: ({ rows }, slots) => Math.floor(slots / (64 / rows)),
      measure: async ({ key }, slots, best) => {
        tried.push(`${key} ${slots} ${best === Infinity ? '-' : best.toFixed(1)}`);
        return times[`${key} ${slots}`] ?? times[key] ?? 'not asked for';
      },
    });

  test('tries all with the first guess, then the best with other slots, those of the same parts once', async () => {
    const tried: string[] = [];
    const { trials, chosen, config } = await run({ a: 4, b: 2, 'b 32': 1, c: 'refused' }, tried);
    expect(tried).toEqual(['a 64 -', 'b 64 4.0', 'c 64 2.0', 'b 32 2.0', 'b 128 1.0']);
    expect(chosen).toEqual({ config: 'b', slots: 32, ms: 1 });
    expect(config?.key).toBe('b');
    expect(trials.slice(2)).toEqual([{ config: 'c', slots: 64, refused: 'refused' }, chosen, { config: 'b', slots: 128, ms: 2 }, { config: 'd', refused: 'too: large' }]);
  });

  test('the guess stays where nothing is clearly better', async () => {
    expect((await run({ a: 1, b: 0.99, c: 0.985 })).chosen?.config).toBe('a');
    expect((await run({ a: 1, b: 0.99, c: 0.97 })).chosen?.config).toBe('c');
  });

  test('nothing measured, nothing chosen', async () => {
    const { trials, chosen } = await run({});
    expect(chosen).toBeUndefined();
    expect(trials).toHaveLength(4);
  });

  test('slots around the guess', () => {
    expect(slotLadder(264)).toEqual([264, 132, 528, 66]);
    expect(slotLadder(1)).toEqual([1, 2]);
  });
});

describe('the tuner', () => {
  const shape = { rows: 128, hKv: 1, dQk: 576, dV: 512, dtype: 'bf16', load: 'long' } as const;
  const limits: KernelLimits = {
    maxStorageBufferBindingSize: 1e9, maxBufferSize: 1e9, maxStorageBuffersPerShaderStage: 8, maxComputeWorkgroupStorageSize: 49152,
    maxComputeInvocationsPerWorkgroup: 1024, maxComputeWorkgroupSizeX: 1024, maxComputeWorkgroupsPerDimension: 65535,
  };
  const traits: DeviceTraits = { limits, kind: 'gpu', vendor: 'nvidia', architecture: '', tier: 'matrix', subgroupSize: { min: 32, max: 32 }, matrix: { syntax: 'new', subgroupSize: 32 } };

  test('knows what is remembered by class: configurations that blocks of 64 hold, of each load by itself', async () => {
    const wide = { config: 'matrix 32x32 8/2x2 scores', slots: 528, ms: 1 };
    const remembered = new Map([[`a | ${shapeClass(shape)}`, wide], ['a | bf16 576/512, 128 rows, 1 KV head', wide], [`b | ${shapeClass({ ...shape, load: 'short' })}`, wide]]);
    const tuner = new Tuner({
      device: { traits, schedule: { slots: 264, rowTiles: [64], minTokensPerPart: 64 } } as Partial<TuneDevice> as TuneDevice, mode: 'stored',
      store: { ...noStore('a test'), load: async () => remembered }, prefix: 'a | ', site: 'a', onChange: () => undefined,
    });
    await tuner.load();
    expect(tuner.config(shape)?.key).toBe(wide.config);
    expect(tuner.config({ ...shape, load: 'short' })).toBeUndefined();
    expect(tuner.schedules()).toEqual([{ rows: 128, numHeadsK: 1, load: 'long', slots: 528, rowTile: 32, tokens: 32 }]);
  });
});

describe('what is stored', () => {
  test('only choices as this version writes them', () => {
    expect(readRemembered({ ...choice, more: 1 })).toEqual(choice);
    const wrong = { 'base 4x16/128': 'wrong results: LSE 1 where 2 is right' };
    expect(readRemembered({ ...choice, wrong })).toEqual({ ...choice, wrong });
    for (const bad of [{ ...choice, wrong: [] }, { ...choice, wrong: 'x' }, { ...choice, wrong: { x: 1 } }]) expect(readRemembered(bad)).toBeUndefined();
    for (const bad of [null, 1, 'x', [], {}, { ...choice, config: 1 }, { ...choice, slots: 0 }, { ...choice, slots: 1.5 }, { ...choice, ms: null }, { ...choice, ms: -1 }, { config: 'x', slots: 1, longMs: 1, shortMs: 1 }]) expect(readRemembered(bad)).toBeUndefined();
  });

  test('keys tell sites apart, whatever their names hold', () => {
    const site: TuneSite = { version: '1', vendor: 'v', architecture: 'a', device: 'd', tier: 't', variant: 'x' };
    const keys = [site, ...Object.keys(site).map((name) => ({ ...site, [name]: '' })), { ...site, vendor: 'v | a', architecture: '' }].map(siteKey);
    expect(new Set(keys).size).toBe(keys.length);
    for (const one of keys) for (const other of keys) expect(one !== other && one.startsWith(other)).toBe(false);
  });

  test('nowhere', async () => {
    const store = noStore('because');
    expect(await store.save('k', choice)).toBe('because');
    expect((await store.load()).size).toBe(0);
  });
});

describe('in a file', () => {
  let directory: string;
  beforeEach(async () => {
    directory = await mkdtemp(join(tmpdir(), 'flashmla-store-'));
  });
  afterEach(() => rm(directory, { recursive: true, force: true }));

  test('where caches go', () => {
    expect(cacheDirectory({}, 'linux', '/home/x')).toBe(join('/home/x', '.cache', 'flashmla-web'));
    expect(cacheDirectory({ XDG_CACHE_HOME: '/c' }, 'linux', '/home/x')).toBe(join('/c', 'flashmla-web'));
    expect(cacheDirectory({}, 'darwin', '/Users/x')).toBe(join('/Users/x', 'Library', 'Caches', 'flashmla-web'));
    expect(cacheDirectory({ LOCALAPPDATA: '/L' }, 'win32', '/x')).toBe(join('/L', 'flashmla-web'));
    expect(cacheDirectory({}, 'win32', '/x')).toBe(join('/x', 'AppData', 'Local', 'flashmla-web'));
    for (const platform of ['linux', 'darwin', 'win32']) expect(cacheDirectory({ FLASHMLA_CACHE_DIR: '/own', XDG_CACHE_HOME: '/c' }, platform, '/x')).toBe('/own');
  });

  test('makes its directory, keeps what others wrote, forgets on demand', async () => {
    const file = join(directory, 'deep', 'tune.json');
    const store = fileStore(file);
    expect((await store.load()).size).toBe(0);
    expect(await store.save('one', choice)).toBeUndefined();
    expect(await fileStore(file).save('two', { ...choice, slots: 7 })).toBeUndefined();
    expect(await store.load()).toEqual(new Map([['one', choice], ['two', { ...choice, slots: 7 }]]));
    expect(await store.forget()).toBeUndefined();
    expect((await store.load()).size).toBe(0);
    expect(await store.forget()).toBeUndefined();
    expect(await readdir(join(directory, 'deep'))).toEqual([]);
  });

  test.each([
    ['damaged', `{"format": ${STORE_FORMAT}, "choices": {`], ['empty', ''], ['somebody else’s', '[1, 2]'], ['of another shape', `{"format": ${STORE_FORMAT}, "choices": [1]}`],
    ['with foreign entries', `{"format": ${STORE_FORMAT}, "choices": {"x": {"config": 3}}}`],
    ['of the first format', '{"choices": {"x": {"config": "base 4x16/128", "slots": 132, "longMs": 1, "shortMs": 0.1}}}'],
  ])('a file that is %s counts as none and is replaced', async (_, text) => {
    const file = join(directory, 'tune.json');
    await writeFile(file, text);
    const store = fileStore(file);
    expect((await store.load()).size).toBe(0);
    expect(await store.save('one', choice)).toBeUndefined();
    expect(JSON.parse(await readFile(file, 'utf8'))).toEqual({ format: STORE_FORMAT, choices: { one: choice } });
  });

  test('a file of a format to come, or one that cannot be read, counts as none and is left alone', async () => {
    const file = join(directory, 'tune.json');
    const text = JSON.stringify({ format: STORE_FORMAT + 1, choices: { x: choice } });
    await writeFile(file, text);
    expect((await fileStore(file).load()).size).toBe(0);
    expect(await fileStore(file).save('one', choice)).toBe(`${file}: written by a newer version`);
    expect(await readFile(file, 'utf8')).toBe(text);
    const unreadable = join(directory, 'unreadable.json');
    await symlink(unreadable, unreadable);
    expect((await fileStore(unreadable).load()).size).toBe(0);
    expect(await fileStore(unreadable).save('one', choice)).toContain('ELOOP');
    expect((await readdir(directory)).sort()).toEqual(['tune.json', 'unreadable.json']);
  });

  test('a lock that its owner left is taken away; one that is given back is waited for', async () => {
    const file = join(directory, 'tune.json');
    const lock = `${file}.lock`;
    await writeFile(lock, 'a process that is no more');
    expect(await fileStore(file).save('one', choice)).toBeUndefined();
    await writeFile(lock, 'a process that is at work');
    const forgetting = fileStore(file).forget();
    await new Promise((resolve) => setTimeout(resolve, 100));
    expect(await readFile(file, 'utf8')).toContain('one');
    await rm(lock);
    expect(await forgetting).toBeUndefined();
    expect(await readdir(directory)).toEqual([]);
  });

  test('written by several processes at once: nothing is lost', async () => {
    const file = join(directory, 'tune.json');
    const store = new URL('../src/tune-file.ts', import.meta.url).href;
    const script = (name: string): string => `
      const { fileStore } = await import(${JSON.stringify(store)});
      for (let i = 0; i < 20; i++) {
        const refused = await fileStore(${JSON.stringify(file)}).save('${name} ' + i, ${JSON.stringify(choice)});
        if (refused) throw new Error(refused);
      }`;
    const run = promisify(execFile);
    await Promise.all(['a', 'b', 'c'].map((name) => run(process.execPath, ['--import', 'tsx', '--input-type=module', '-e', script(name)])));
    expect((await fileStore(file).load()).size).toBe(60);
    expect(await readdir(directory)).toEqual(['tune.json']);
  });

  test('written from all sides at once: whole at every moment, and nothing of this process is lost', async () => {
    const file = join(directory, 'tune.json');
    await fileStore(file).save('first', choice);
    let writing = true;
    const reader = (async () => {
      for (let reads = 0; writing || reads === 0; reads++) JSON.parse(await readFile(file, 'utf8'));
    })();
    const refusals = await Promise.all(Array.from({ length: 40 }, (_, i) => fileStore(file).save(`key ${i}`, choice)));
    writing = false;
    await reader;
    expect(refusals.every((why) => why === undefined)).toBe(true);
    expect((await fileStore(file).load()).size).toBe(41);
    expect(await readdir(directory)).toEqual(['tune.json']);
  });

  test('where it cannot be written it says why, and leaves nothing', async () => {
    const file = join(directory, 'tune.json', 'tune.json');
    await writeFile(join(directory, 'tune.json'), '');
    expect(await fileStore(file).save('one', choice)).toContain(file);
    const closed = join(directory, 'closed');
    await mkdir(closed);
    await mkdir(join(closed, 'tune.json')); // a directory where the file should be: the rename fails
    expect(await fileStore(join(closed, 'tune.json')).save('one', choice)).toContain(join(closed, 'tune.json'));
    expect(await readdir(closed)).toEqual(['tune.json']);
  });
});

describe('in IndexedDB', () => {
  test('keeps, finds and forgets', async () => {
    const factory = fakeIndexedDb();
    const store = indexedDbStore(factory);
    expect(store.place).toBe('IndexedDB flashmla-web');
    expect(await store.save('one', choice)).toBeUndefined();
    expect(await indexedDbStore(factory).load()).toEqual(new Map([['one', choice]]));
    expect(await store.forget()).toBeUndefined();
    expect((await store.load()).size).toBe(0);
  });

  test('what others have put there is passed over', async () => {
    const factory = fakeIndexedDb([null, 'x', 5, [], {}, { ...choice, key: 'one' }]);
    expect(await indexedDbStore(factory).load()).toEqual(new Map([['one', choice]]));
  });

  test('what an older format left makes room', async () => {
    const factory = fakeIndexedDb([{ ...choice, key: 'old' }], 1);
    expect((await indexedDbStore(factory).load()).size).toBe(0);
    expect(await indexedDbStore(factory).save('one', choice)).toBeUndefined();
    expect(await indexedDbStore(factory).load()).toEqual(new Map([['one', choice]]));
  });

  test('a database of a format to come is left alone', async () => {
    const factory = fakeIndexedDb([{ ...choice, key: 'new' }], STORE_FORMAT + 1);
    expect((await indexedDbStore(factory).load()).size).toBe(0);
    expect(await indexedDbStore(factory).save('one', choice)).toBe('IndexedDB: a newer version');
  });

  test('what is refused when it is written down is not remembered, and says so', async () => {
    const factory = fakeIndexedDb([], 0, new Error('the disk is full'));
    expect(await indexedDbStore(factory).save('one', choice)).toBe('IndexedDB: the disk is full');
  });

  test('what others put there is left alone', async () => {
    const factory = fakeIndexedDb([{ key: 'x', config: 1 }, 'text', { ...choice, key: 'good' }, { ...choice }], STORE_FORMAT);
    expect(await indexedDbStore(factory).load()).toEqual(new Map([['good', choice]]));
  });

  test('absent, refused or blocked: nothing is remembered, no error', async () => {
    expect(await indexedDbStore(undefined).save('one', choice)).toBe('no IndexedDB here');
    const refusing = { open: () => { throw new Error('not in private windows'); } } as unknown as IDBFactory;
    expect(await indexedDbStore(refusing).save('one', choice)).toBe('IndexedDB: not in private windows');
    expect((await indexedDbStore(refusing).load()).size).toBe(0);
    const blocked = { open: () => ({}) } as unknown as IDBFactory;
    expect(await indexedDbStore(blocked, 20).save('one', choice)).toBe('IndexedDB: no answer within 200 ms');
    expect((await indexedDbStore(blocked, 20).load()).size).toBe(0);
  });
});

/** As much of IndexedDB as is used here. @param version of what is there; 0: nothing is */
function fakeIndexedDb(initial: readonly unknown[] = [], version = 0, refused?: Error): IDBFactory {
  const rows = new Map<unknown, unknown>(initial.map((row, i) => [i, row]));
  let made = version > 0;
  const request = (result: unknown, upgrade = false, error?: Error): object => {
    const pending: { result: unknown; error: Error | undefined; onsuccess?: () => void; onerror?: () => void; onupgradeneeded?: () => void } = { result, error };
    queueMicrotask(() => {
      if (upgrade) pending.onupgradeneeded?.();
      if (error) pending.onerror?.();
      else pending.onsuccess?.();
    });
    return pending;
  };
  const store = {
    getAll: () => request([...rows.values()]),
    put: (value: unknown, key: unknown) => request(void rows.set(key, value)),
    clear: () => request(rows.clear()),
  };
  const database = {
    objectStoreNames: { contains: () => made },
    createObjectStore: () => {
      if (made) throw new Error('there is one');
      made = true;
    },
    deleteObjectStore: () => {
      rows.clear();
      made = false;
    },
    transaction: () => {
      if (!made) throw new Error('no such object store');
      const transaction: { objectStore: () => typeof store; error?: Error; oncomplete?: () => void; onabort?: () => void } = { objectStore: () => store, ...(refused && { error: refused }) };
      setTimeout(() => (refused ? transaction.onabort : transaction.oncomplete)?.());
      return transaction;
    },
    close: () => undefined,
  };
  const open = (_: string, asked: number): object => {
    if (asked < version) return request(undefined, false, new Error('a newer version'));
    const upgrade = asked > version;
    version = asked;
    return request(database, upgrade);
  };
  return { open } as unknown as IDBFactory;
}
