/** Numbers of bf16 that f16 does not hold, too large and too small: kernels may multiply in f16, results may not show it. */
import { describe, expect, test } from 'vitest';
import { toBf16 } from '../../src/bf16.ts';
import type { Mla } from '../../src/mla.ts';
import { keyAt, makeCase, type CaseOptions, type DecodeCase } from '../cases.ts';
import { expectRight, oracle, run } from '../check.ts';
import { compareDecode, type DecodeValues } from '../compare.ts';

const USUAL: CaseOptions = { b: 2, sQ: 2, sK: 0, hQ: 6, hKv: 2, seqlens: [300, 90] };

/** Numbers `columns` of each row of `d_qk` times 2^exponent; zeros stay. */
function scale(c: DecodeCase, of: 'q' | 'kvCache', exponent: number, [from, to]: readonly [number, number] = [0, c.dQk]): void {
  const values = c[of];
  for (let row = 0; row < values.length; row += c.dQk) {
    for (let i = row + from; i < row + to; i++) if ((values[i]! & 0x7fff) !== 0) values[i]! += exponent * 128;
  }
}

/** The key of token `t` of the first sequence, of each KV head. */
function keys(c: DecodeCase, t: number): Uint16Array {
  const at = keyAt(c, 0, t, 0, 0);
  return c.kvCache.subarray(at, at + c.hKv * c.dQk);
}

/** What is so small that the bound for ordinary numbers says nothing: the same bound, times `factor`. */
function expectSmallRight(c: DecodeCase, got: { out: ArrayLike<number>; lse: ArrayLike<number> }, factor: number): void {
  expectRight(c, got);
  const { out } = oracle(c);
  expect(Math.max(...out.map(Math.abs)) * factor).toBeGreaterThan(0.01);
  out.forEach((value, i) => expect(Math.abs(got.out[i]! - value) * factor).toBeLessThan(8e-4 + (Math.abs(value) * factor) / 64));
}

/** What a backend is known not to do, and what is to be seen of that: that and no more, and not less either, so that it is looked at when it is mended. */
const LACKS = {
  'small numbers beside 3e38': /^out: \d+ of \d+ outside abs (?![^]*lse)/,
  'scores past 2^31': /^out: 512 of \d+ NaN or infinite where the other is not; worst[^\n]*\nlse: 1 of \d+ NaN or infinite where the other is not; worst/,
} as const;
export type Lack = keyof typeof LACKS;

/** @param base of which the first sequence has more than a block */
export function range(mla: () => Mla, base: CaseOptions = USUAL, lacks: readonly Lack[] = []): void {
  const expectRightUnless = (lack: Lack | undefined, c: DecodeCase, got: DecodeValues): void => {
    const fault = compareDecode(c, oracle(c), got);
    if (lack !== undefined && lacks.includes(lack)) expect(fault).toMatch(LACKS[lack]);
    else expect(fault).toBeUndefined();
  };
  const [{ dV, dQk }, length] = [makeCase(base), base.seqlens![0]!];
  describe('bf16 that f16 does not hold', () => {
    // In V and K, and in RoPE. No query looks at it: scores stay what they were.
    test.each<[number, number, Lack?]>([[1e5, 3], [-3e38, 7, 'small numbers beside 3e38'], [7e4, dV + 8]])('a cached %d at column %i', async (value, column, lack) => {
      const c = makeCase(base);
      for (let row = 0; row < c.q.length; row += c.dQk) c.q[row + column] = 0;
      keys(c, length - 30)[column] = toBf16(value);
      expectRightUnless(lack, c, await run(mla(), c));
    });

    test('a query of 1e30', async () => {
      const c = makeCase({ ...base, softmaxScale: 1e-3 });
      c.q[5] = toBf16(1e30);
      expectRightUnless('scores past 2^31', c, await run(mla(), c));
    });

    test('all of a cache divided by 2^60', async () => {
      const c = makeCase({ ...base, poison: false });
      scale(c, 'kvCache', -60);
      expectSmallRight(c, await run(mla(), c), 2 ** 60);
    });

    // What is lost of small numbers shows where queries are large.
    test.each([20, 24])('the RoPE columns of a cache divided by 2^%i, and queries that make up for it', async (exponent) => {
      const c = makeCase({ ...base, poison: false, softmaxScale: 5 });
      scale(c, 'kvCache', -exponent, [dV, dQk]);
      scale(c, 'q', exponent, [dV, dQk]);
      expectRight(c, await run(mla(), c));
    });

    // Ordinary numbers do not vouch for others: nobody looks at the first key.
    test.each([14, 24])('a cache divided by 2^%i, but for the first key', async (exponent) => {
      const c = makeCase({ ...base, poison: false, seqlens: base.seqlens!.map((n, i) => (i === 0 ? n : 0)) });
      const first = keys(c, 0).slice();
      scale(c, 'kvCache', -exponent);
      for (let i = dQk - 1; i < first.length; i += c.dQk) first[i] = toBf16(-100);
      keys(c, 0).set(first);
      for (let row = 0; row < c.q.length; row += c.dQk) c.q[row + dQk - 1] = toBf16(30);
      for (let t = 1; t < length; t++) for (let i = dQk - 1; i < first.length; i += c.dQk) keys(c, t)[i] = 0;
      expectSmallRight(c, await run(mla(), c), 2 ** exponent);
    });
  });
}
