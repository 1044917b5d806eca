/** Wrong arguments of a decode: a typed error that names the argument, nothing allocated, the instance as good as before. */
import { afterAll, beforeAll, describe, expect, test } from 'vitest';
import type { MlaErrorCode } from '../../src/errors.ts';
import type { DecodeArgs, Mla } from '../../src/mla.ts';
import { decodeArgs, makeCase, UNUSED_ENTRY } from '../cases.ts';
import { expectRefusal, run } from '../check.ts';
import type { Heads } from '../heads.ts';

/** Where `only` leaves a choice: wider than the narrowest, so that a `headDimV` below it is one too. */
const DEFAULT: Heads = { dV: 64, rope: 16, blockSize: 16 };

const floats = (shape: readonly number[]): Float32Array => new Float32Array(shape.reduce((n, d) => n * d, 1));

interface Wrong {
  readonly what: string;
  readonly code: MlaErrorCode | readonly MlaErrorCode[];
  readonly argument: string;
  /** Arguments of wrong types too, so not DecodeArgs. */
  readonly change: (mla: Mla) => Record<string, unknown>;
}

/** A good call and bad ones: q [2, 2, 6, d_qk], three KV heads, sequences of two and three blocks of a row of four. */
function problem(heads: Heads) {
  const { dV, blockSize } = heads;
  const dQk = dV + heads.rope;
  const lengths = [blockSize + 4, 2 * blockSize + 8] as const;
  const c = makeCase({ b: 2, sQ: 2, sK: 0, hQ: 6, hKv: 3, ...heads, seqlens: lengths });
  const good = decodeArgs(c);
  const table = (change: (table: Int32Array) => void): Int32Array => {
    const copy = c.blockTable.slice();
    change(copy);
    return copy;
  };
  const metadataOf = (mla: Mla, change: { cacheSeqlens?: Int32Array; numQTokensPerHeadK?: number; numHeadsK?: number; blockSize?: number }) =>
    mla.getMlaMetadata({ cacheSeqlens: c.cacheSeqlens, numQTokensPerHeadK: 4, numHeadsK: 3, blockSize, ...change });
  const ofWidth = (width: number): Record<string, unknown> => ({
    q: { data: new Uint16Array(2 * width), shape: [1, 1, 2, width] },
    kvCache: { data: new Uint16Array(blockSize * width), shape: [1, blockSize, 1, width] },
  });

  const wrongs: Wrong[] = [
    // Element types
    { what: 'q of f32', code: 'invalid-dtype', argument: 'q', change: () => ({ q: { data: floats(good.q.shape), shape: good.q.shape, dtype: 'f32' } }) },
    { what: 'q of i32', code: 'invalid-dtype', argument: 'q', change: () => ({ q: { data: new Int32Array(c.q.length), shape: good.q.shape } }) },
    { what: 'q of an unknown type', code: 'invalid-dtype', argument: 'q', change: () => ({ q: { ...good.q, dtype: 'fp8' } }) },
    { what: 'q in a Float64Array', code: 'invalid-dtype', argument: 'q', change: () => ({ q: { data: new Float64Array(c.q.length), shape: good.q.shape } }) },
    { what: 'bits called f32', code: 'invalid-dtype', argument: 'q', change: () => ({ q: { ...good.q, dtype: 'f32' } }) },
    { what: 'kvCache of another type than q', code: 'invalid-dtype', argument: 'kvCache', change: () => ({ kvCache: { ...good.kvCache, dtype: 'f16' } }) },
    { what: 'blockTable of f32', code: 'invalid-dtype', argument: 'blockTable', change: () => ({ blockTable: { data: floats([2, 4]), shape: [2, 4], dtype: 'f32' } }) },
    { what: 'cacheSeqlens of bf16', code: 'invalid-dtype', argument: 'cacheSeqlens', change: () => ({ cacheSeqlens: { data: Uint16Array.of(...lengths), shape: [2] } }) },
    // Things that are not tensors
    { what: 'no q', code: 'invalid-argument', argument: 'q', change: () => ({ q: undefined }) },
    { what: 'a bare array as q', code: 'invalid-argument', argument: 'q', change: () => ({ q: c.q }) },
    { what: 'null as kvCache', code: 'invalid-argument', argument: 'kvCache', change: () => ({ kvCache: null }) },
    { what: 'cacheSeqlens in a plain array', code: ['invalid-argument', 'invalid-shape', 'invalid-dtype'], argument: 'cacheSeqlens', change: () => ({ cacheSeqlens: [...lengths] }) },
    { what: 'no blockTable', code: 'invalid-argument', argument: 'blockTable', change: () => ({ blockTable: undefined }) },
    { what: 'an array as out', code: 'invalid-argument', argument: 'out', change: () => ({ out: new Float32Array(2 * 2 * 6 * dV) }) },
    { what: 'causal as a word', code: 'invalid-argument', argument: 'causal', change: () => ({ causal: 'yes' }) },
    // Rank and shape
    { what: 'q of rank 3', code: 'invalid-shape', argument: 'q', change: () => ({ q: { ...good.q, shape: [4, 6, dQk] } }) },
    { what: 'kvCache of rank 3', code: 'invalid-shape', argument: 'kvCache', change: () => ({ kvCache: { ...good.kvCache, shape: [c.numBlocks, blockSize, 3 * dQk] } }) },
    { what: 'blockTable of rank 1', code: 'invalid-shape', argument: 'blockTable', change: () => ({ blockTable: { data: c.blockTable, shape: [8] } }) },
    { what: 'cacheSeqlens of rank 2', code: 'invalid-shape', argument: 'cacheSeqlens', change: () => ({ cacheSeqlens: { data: c.cacheSeqlens, shape: [1, 2] } }) },
    { what: 'q without a shape', code: 'invalid-shape', argument: 'q', change: () => ({ q: { data: c.q } }) },
    { what: 'a dimension of zero', code: 'invalid-shape', argument: 'q', change: () => ({ q: { data: new Uint16Array(0), shape: [0, 2, 6, dQk] } }) },
    { what: 'a dimension that is no integer', code: 'invalid-shape', argument: 'q', change: () => ({ q: { ...good.q, shape: [2, 2.5, 6, dV] } }) },
    { what: 'q too short for its shape', code: 'invalid-shape', argument: 'q', change: () => ({ q: { ...good.q, data: c.q.subarray(1) } }) },
    { what: 'kvCache too long for its shape', code: 'invalid-shape', argument: 'kvCache', change: () => ({ kvCache: { ...good.kvCache, shape: [c.numBlocks - 1, blockSize, 3, dQk] } }) },
    { what: 'd_qk of kvCache other than that of q', code: 'invalid-shape', argument: 'kvCache', change: () => ({ kvCache: { data: new Uint16Array(blockSize * 3 * (dQk + 16)), shape: [1, blockSize, 3, dQk + 16] } }) },
    { what: 'h_q not a multiple of h_kv', code: 'invalid-shape', argument: 'q', change: () => ({ q: { data: new Uint16Array(2 * 2 * 7 * dQk), shape: [2, 2, 7, dQk] } }) },
    { what: 'fewer lengths than sequences', code: 'invalid-shape', argument: 'cacheSeqlens', change: () => ({ cacheSeqlens: Int32Array.of(lengths[0]) }) },
    { what: 'no lengths', code: 'invalid-shape', argument: 'cacheSeqlens', change: () => ({ cacheSeqlens: new Int32Array(0) }) },
    { what: 'a blockTable of three rows', code: 'invalid-shape', argument: 'blockTable', change: () => ({ blockTable: { data: new Int32Array(12), shape: [3, 4] } }) },
    { what: 'a bare blockTable that is no whole number of rows', code: 'invalid-shape', argument: 'blockTable', change: () => ({ blockTable: c.blockTable.subarray(1) }) },
    { what: 'an empty blockTable', code: 'invalid-shape', argument: 'blockTable', change: () => ({ blockTable: new Int32Array(0) }) },
    { what: 'a block size of 48', code: 'invalid-shape', argument: 'kvCache', change: () => ({ kvCache: { data: new Uint16Array(4 * 48 * 3 * dQk), shape: [4, 48, 3, dQk] } }) },
    // Widths
    ...[0, 33, 544, NaN, -64, '64', undefined].map((headDimV): Wrong => ({ what: `headDimV ${typeof headDimV} ${headDimV}`, code: 'invalid-argument', argument: 'headDimV', change: () => ({ headDimV }) })),
    { what: 'headDimV beyond d_qk', code: 'invalid-shape', argument: 'headDimV', change: () => ofWidth(dV - 16) },
    { what: 'no RoPE part', code: 'invalid-shape', argument: 'headDimV', change: () => ofWidth(dV) },
    { what: 'a RoPE part of 80', code: 'invalid-shape', argument: 'headDimV', change: () => ofWidth(dV + 80) },
    // Contents of the table and the lengths
    { what: 'a used block id equal to num_blocks', code: 'out-of-range', argument: 'blockTable', change: () => ({ blockTable: table((t) => (t[1] = c.numBlocks)) }) },
    { what: 'a used block id of 2147480000', code: 'out-of-range', argument: 'blockTable', change: () => ({ blockTable: table((t) => (t[6] = UNUSED_ENTRY)) }) },
    { what: 'a negative block id', code: 'out-of-range', argument: 'blockTable', change: () => ({ blockTable: { data: table((t) => (t[4] = -1)), shape: [2, 4] } }) },
    { what: 'a length beyond the table', code: 'out-of-range', argument: 'cacheSeqlens', change: () => ({ cacheSeqlens: Int32Array.of(lengths[0], 4 * blockSize + 1) }) },
    { what: 'a length of 2147483647', code: 'out-of-range', argument: 'cacheSeqlens', change: () => ({ cacheSeqlens: Int32Array.of(lengths[0], 2147483647) }) },
    { what: 'a negative length', code: 'out-of-range', argument: 'cacheSeqlens', change: () => ({ cacheSeqlens: { data: Int32Array.of(-1, lengths[1]), shape: [2] } }) },
    // The scale
    ...[NaN, Infinity, -Infinity, '0.1'].map((softmaxScale): Wrong => ({ what: `softmaxScale ${typeof softmaxScale} ${softmaxScale}`, code: 'invalid-argument', argument: 'softmaxScale', change: () => ({ softmaxScale }) })),
    // Metadata
    { what: 'metadata of other lengths', code: 'metadata-mismatch', argument: 'metadata', change: (mla) => ({ metadata: metadataOf(mla, { cacheSeqlens: Int32Array.of(lengths[0], lengths[1] + 1) }) }) },
    { what: 'metadata of another batch', code: 'metadata-mismatch', argument: 'metadata', change: (mla) => ({ metadata: metadataOf(mla, { cacheSeqlens: Int32Array.of(...lengths, 0) }) }) },
    { what: 'metadata of another number of rows', code: 'metadata-mismatch', argument: 'metadata', change: (mla) => ({ metadata: metadataOf(mla, { numQTokensPerHeadK: 12 }) }) },
    { what: 'metadata of another h_kv', code: 'metadata-mismatch', argument: 'metadata', change: (mla) => ({ metadata: metadataOf(mla, { numHeadsK: 1 }) }) },
    { what: 'metadata of another block size', code: 'metadata-mismatch', argument: 'metadata', change: (mla) => ({ metadata: metadataOf(mla, { blockSize: blockSize === 64 ? 32 : 64 }) }) },
    ...(['order', 'tileSchedulerMetadata', 'numSplits'] as const).map((field): Wrong => ({
      what: `metadata whose ${field} somebody has changed`, code: 'invalid-argument', argument: 'metadata',
      change: (mla) => {
        const metadata = metadataOf(mla, {});
        metadata[field][0] = 1 << 20;
        return { metadata };
      },
    })),
    { what: 'an empty object as metadata', code: ['invalid-argument', 'metadata-mismatch'], argument: 'metadata', change: () => ({ metadata: {} }) },
  ];
  return { c, good, dV, lengths, metadataOf, wrongs };
}

/** Fails if the error allocates, or if the next good call differs from the last. */
export function badDecodeInput(mla: () => Mla, makeMla: () => Promise<Mla>, only?: Heads): void {
  const { c, good, dV, lengths, metadataOf, wrongs } = problem(only ?? DEFAULT);

  describe('bad input of a decode', () => {
    let expected: Awaited<ReturnType<typeof run>>;
    let other: Mla;
    beforeAll(async () => {
      expected = await run(mla(), c);
      other = await makeMla();
    });
    afterAll(() => other?.destroy());

    async function refused(change: Record<string, unknown>, code: MlaErrorCode | readonly MlaErrorCode[], argument: string): Promise<void> {
      await mla().finished();
      const before = await mla().memory();
      await expectRefusal(() => mla().flashMlaWithKvCache({ ...good, ...change } as DecodeArgs), code, argument);
      expect(await mla().memory()).toEqual(before);
      expect(await run(mla(), c)).toEqual(expected);
    }

    for (const { what, code, argument, change } of wrongs) test(what, () => refused(change(mla()), code, argument));

    test('no arguments at all', () =>
      expectRefusal(() => mla().flashMlaWithKvCache(undefined as unknown as DecodeArgs), 'invalid-argument'));

    test('metadata for other lengths leaves a given output as it was', async () => {
      const out = await mla().tensor({ data: new Uint16Array(2 * 2 * 6 * dV).fill(7), shape: [2, 2, 6, dV] });
      await refused({ out, metadata: metadataOf(mla(), { cacheSeqlens: Int32Array.of(lengths[0] + 1, lengths[1]) }) }, 'metadata-mismatch', 'metadata');
      expect((await out.readBits()).every((bits) => bits === 7)).toBe(true);
      out.destroy();
    });

    test('outputs of a wrong type or shape', async () => {
      const make = (dtype: 'bf16' | 'f16' | 'f32', shape: number[]) => mla().tensor({ data: floats(shape), shape, dtype });
      const [f16, transposed, lse16, lseTurned] = await Promise.all([
        make('f16', [2, 2, 6, dV]), make('bf16', [2, 6, 2, dV]), make('bf16', [2, 6, 2]), make('f32', [2, 2, 6]),
      ]);
      await refused({ out: f16 }, 'invalid-dtype', 'out');
      await refused({ out: transposed }, 'invalid-shape', 'out');
      await refused({ lse: lse16 }, 'invalid-dtype', 'lse');
      await refused({ lse: lseTurned }, 'invalid-shape', 'lse');
      for (const tensor of [f16, transposed, lse16, lseTurned]) tensor.destroy();
    });

    test('destroyed tensors', async () => {
      for (const name of ['q', 'kvCache'] as const) {
        const tensor = await mla().tensor(good[name] as Parameters<Mla['tensor']>[0]);
        tensor.destroy();
        await refused({ [name]: tensor }, 'destroyed', name);
        await expectRefusal(() => tensor.read(), 'destroyed');
      }
    });

    test('tensors of another instance', async () => {
      const q = await other.tensor(good.q as Parameters<Mla['tensor']>[0]);
      const out = await other.tensor({ data: new Uint16Array(2 * 2 * 6 * dV), shape: [2, 2, 6, dV] });
      await refused({ q }, 'invalid-argument', 'q');
      await refused({ out }, 'invalid-argument', 'out');
    });
  });

  describe('bad input of a tensor', () => {
    const inputs: { what: string; code: MlaErrorCode | readonly MlaErrorCode[]; input: unknown }[] = [
      { what: 'nothing', code: 'invalid-argument', input: undefined },
      { what: 'a bare array', code: 'invalid-argument', input: new Float32Array(4) },
      { what: 'a plain array', code: 'invalid-dtype', input: { data: [1, 2], shape: [2] } },
      { what: 'no data', code: 'invalid-dtype', input: { shape: [2] } },
      { what: 'too few data', code: 'invalid-shape', input: { data: new Float32Array(3), shape: [4] } },
      { what: 'a shape that overflows', code: 'invalid-shape', input: { data: new Float32Array(3), shape: [2 ** 40, 2 ** 40] } },
      { what: 'a negative dimension', code: 'invalid-shape', input: { data: new Float32Array(1), shape: [-1, -1] } },
      { what: 'f32 bits in a Uint16Array', code: 'invalid-dtype', input: { data: new Uint16Array(2), shape: [2], dtype: 'f32' } },
    ];
    for (const { what, code, input } of inputs) {
      test(what, async () => {
        const before = await mla().memory();
        await expectRefusal(() => mla().tensor(input as Parameters<Mla['tensor']>[0]), code);
        expect(await mla().memory()).toEqual(before);
      });
    }
  });
}
