/** NaN and infinities: those of valid keys and queries must show, where they belong and nowhere else. */
import { describe, expect, test } from 'vitest';
import type { Mla } from '../../src/mla.ts';
import { keyAt, makeCase, type CaseOptions } from '../cases.ts';
import { expectRight, oracle, run } from '../check.ts';

const NAN = { bf16: 0x7fc0, f16: 0x7e00 } as const;
const MINUS_INF = { bf16: 0xff80, f16: 0xfc00 } as const;

export function special(mla: () => Mla): void {
  describe('NaN and infinities', () => {
    const base: CaseOptions = { b: 3, sQ: 4, sK: 0, hQ: 6, hKv: 2, seqlens: [140, 700, 70], causal: true };

    for (const dtype of ['bf16', 'f16'] as const) {
      // The first key, one in the middle, and the last, which the mask hides from all queries but the last: 0 * NaN must not
      // carry it to them through V.
      for (const [token, d] of [[0, 3], [350, 570], [699, 511]] as const) {
        test(`NaN in valid key ${token}, number ${d}, ${dtype}`, async () => {
          const c = makeCase({ ...base, dtype });
          c.kvCache[keyAt(c, 1, token, 1, d)] = NAN[dtype];
          const expected = oracle(c);
          const poisoned = expected.lse.filter(Number.isNaN).length;
          expect(poisoned).toBe(token === 699 ? 3 : 12);
          expectRight(c, await run(mla(), c));
        });
      }
    }

    // As the last of a block and of a step: nothing is past the end.
    test('NaN in the last valid key of full blocks', async () => {
      const c = makeCase({ ...base, seqlens: [140, 128, 70] });
      c.kvCache[keyAt(c, 1, 127, 1, 500)] = NAN.bf16;
      expect(oracle(c).lse.filter(Number.isNaN).length).toBe(3);
      expectRight(c, await run(mla(), c));
    });

    test('NaN in a query stays in its row', async () => {
      const c = makeCase(base);
      c.q[((1 * c.sQ + 2) * c.hQ + 5) * c.dQk + 575] = NAN.bf16;
      expect(oracle(c).lse.filter(Number.isNaN).length).toBe(1);
      expectRight(c, await run(mla(), c));
    });

    test('a score of -inf takes its key out', async () => {
      const c = makeCase(base);
      // Every query has +0.125 where one key has -inf; it is in the RoPE part, so V stays finite.
      for (let row = 0; row < c.b * c.sQ * c.hQ; row++) c.q[row * c.dQk + 560] = 0x3e00;
      c.kvCache[keyAt(c, 1, 100, 0, 560)] = MINUS_INF.bf16;
      c.kvCache[keyAt(c, 1, 100, 1, 560)] = MINUS_INF.bf16;
      expect(oracle(c).out.every(Number.isFinite)).toBe(true);
      expectRight(c, await run(mla(), c));
    });

    test('large scores do not overflow', async () => {
      // Scores of about N(0, 24^2): exp of the largest is far beyond f32.
      const c = makeCase({ ...base, softmaxScale: 100 });
      expect(Math.max(...oracle(c).lse)).toBeGreaterThan(60);
      expectRight(c, await run(mla(), c));
    });
  });
}
