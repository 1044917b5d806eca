/** The oracle on problems with a known answer, and the comparison on results with a known fault. */
import { describe, expect, test } from 'vitest';
import { decodeArgs, makeCase, UNUSED_ENTRY } from './cases.ts';
import { software } from './case-lists.ts';
import { oracle } from './check.ts';
import { compare, compareDecode, outTolerance } from './compare.ts';
import { referenceDecode, type ReferenceArgs } from './reference.ts';

/** Two blocks of 2 tokens, d_v 2, d_qk 4; token t of the sequence is [t, -t, t + 1, 0] in table order 1, 0. */
const small: ReferenceArgs = {
  q: [0, 0, 1, 0],
  kvCache: [2, -2, 3, 0, NaN, NaN, NaN, NaN, 0, 0, 1, 0, 1, -1, 2, 0],
  blockTable: [1, 0, UNUSED_ENTRY], cacheSeqlens: [3], sQ: 1, hQ: 1, hKv: 1, dQk: 4, dV: 2, blockSize: 2, softmaxScale: 1,
};

describe('oracle', () => {
  test('weighs values by the softmax of the scores 1, 2, 3', () => {
    const [e1, e2, e3] = [Math.exp(1), Math.exp(2), Math.exp(3)];
    const { out, lse } = referenceDecode(small);
    const mean = (e2 + 2 * e3) / (e1 + e2 + e3);
    expect(out[0]).toBeCloseTo(mean, 14);
    expect(out[1]).toBeCloseTo(-mean, 14);
    expect(lse[0]).toBeCloseTo(Math.log(e1 + e2 + e3), 14);
  });

  test('scales by d_qk ** -0.5 unless told, and by 0 takes the mean', () => {
    const { softmaxScale: _, ...unscaled } = small;
    expect(referenceDecode(unscaled).lse[0]).toBeCloseTo(Math.log(Math.exp(0.5) + Math.exp(1) + Math.exp(1.5)), 14);
    const flat = referenceDecode({ ...small, softmaxScale: 0 });
    expect([...flat.out, ...flat.lse].map((v) => v.toFixed(12))).toEqual([1, -1, Math.log(3)].map((v) => v.toFixed(12)));
  });

  test('causal masks are aligned at the bottom right; a row without keys is 0 and +inf', () => {
    const q = Array.from({ length: 4 }, () => [0, 0, 1, 0]).flat();
    const { out, lse } = referenceDecode({ ...small, q, sQ: 4, causal: true });
    // Two values a row: the first row is all zeros, the second the first token's.
    expect(out.subarray(0, 4).map(Math.abs)).toEqual(new Float64Array(4));
    expect(lse[0]).toBe(Infinity);
    expect([lse[1], lse[2]!.toFixed(12)]).toEqual([1, Math.log(Math.exp(1) + Math.exp(2)).toFixed(12)]);
    expect(lse[3]).toBe(referenceDecode(small).lse[0]);
  });

  test('query heads go to KV heads in groups, in order', () => {
    // Two KV heads with one token each: [1, 0, ...] and [5, 0, ...].
    const { out } = referenceDecode({
      q: new Float64Array(4 * 4), kvCache: [1, 0, 0, 0, 5, 0, 0, 0], blockTable: [0], cacheSeqlens: [1],
      sQ: 1, hQ: 4, hKv: 2, dQk: 4, dV: 2, blockSize: 1,
    });
    expect([0, 1, 2, 3].map((h) => out[h * 2])).toEqual([1, 1, 5, 5]);
  });

  test('a NaN key reaches the rows that see it and no other', () => {
    const kvCache = [...(small.kvCache as number[])];
    kvCache[3] = NaN; // the last token
    const { lse } = referenceDecode({ ...small, kvCache, q: Array.from({ length: 2 }, () => [0, 0, 1, 0]).flat(), sQ: 2, causal: true });
    expect([...lse].map(Number.isNaN)).toEqual([false, true]);
  });
});

describe('cases', () => {
  test('are the same for the same options, and finite in the oracle', () => {
    const options = { b: 3, sQ: 2, sK: 90, hQ: 6, hKv: 3, dV: 32, rope: 16, ragged: true, causal: true, sharedBlock: true };
    const c = makeCase(options);
    expect(makeCase(options)).toEqual(c);
    expect(oracle(c).out.every(Number.isFinite)).toBe(true);
    expect(c.blockTable[c.maxBlocksPerSeq]).toBe(c.blockTable[0]);
    expect([...c.blockTable]).toContain(UNUSED_ENTRY);
    expect(makeCase({ ...options, seed: 2 }).q).not.toEqual(c.q);
    expect(decodeArgs(c).q.shape).toEqual([3, 2, 6, 48]);
  });

  test('the software list has every axis of the issue', () => {
    const values = <K extends keyof (typeof software)[number]>(key: K) => new Set(software.map((options) => options[key]));
    for (const [key, wanted] of [['b', [1, 2, 6]], ['sQ', [1, 2, 4]], ['sK', [20, 140, 4096]], ['hQ', [1, 3, 9, 16, 63, 64, 126, 128]], ['hKv', [1, 2, 3, 8]], ['blockSize', [16, 32, 128]], ['dtype', ['bf16', 'f16']]] as const) {
      for (const value of wanted) expect([...values(key)], key).toContain(value);
    }
    for (const flag of ['ragged', 'causal', 'zeros', 'sharedBlock'] as const) {
      const share = software.filter((options) => options[flag]).length / software.length;
      expect(share, flag).toBeGreaterThan(0.1);
    }
  });
});

describe('comparison', () => {
  const shape = { b: 2, sQ: 1, hQ: 2, dV: 32 };
  const c = makeCase({ ...shape, sK: 50, rope: 16 });
  const right = oracle(c);
  const changed = (change: (out: Float64Array, lse: Float64Array) => void) => {
    const [out, lse] = [right.out.slice(), right.lse.slice()];
    change(out, lse);
    return compareDecode(shape, right, { out, lse });
  };

  test('lets through what is within tolerance', () => {
    expect(compareDecode(shape, right, { out: Float32Array.from(right.out), lse: Float32Array.from(right.lse) })).toBeUndefined();
    expect(compare('out', [3], [1, 0, 0], [1 + outTolerance.rel / 2, outTolerance.abs * 0.9, 0], { abs: outTolerance.abs, rel: outTolerance.rel })).toBeUndefined();
  });

  test('names the worst element', () => {
    expect(changed((out) => (out[(1 * 2 + 1) * 32 + 5]! += 0.01))).toMatch(/^out: 1 of 128 outside .*worst at \[1, 0, 1, 5\]/);
    expect(changed((_, lse) => (lse[2]! += 0.01))).toMatch(/^lse: 1 of 4 outside .*worst at \[1, 0, 0\]/);
  });

  test('sees NaN and infinities where they do not belong, and misses where they do', () => {
    expect(changed((out) => (out[0] = NaN))).toMatch(/1 of 128 NaN or infinite/);
    expect(changed((_, lse) => (lse[3] = -Infinity))).toMatch(/1 of 4 NaN or infinite/);
    expect(compare('lse', [3], [Infinity, NaN, 1], [-Infinity, 0, 1], outTolerance)).toMatch(/2 of 3/);
    expect(compare('lse', [2], [Infinity, NaN], [Infinity, NaN], outTolerance)).toBeUndefined();
  });

  test('sees an error in everything that no element shows', () => {
    // 0.5 % off everywhere: within the relative bound, beyond the cosine's.
    expect(changed((out) => out.forEach((v, i) => (out[i] = v * 1.005)))).toMatch(/cosine distance/);
  });

  test('sees a wrong length', () => {
    expect(compareDecode(shape, right, { out: right.out.slice(1), lse: right.lse })).toMatch(/has 128 elements/);
  });
});
