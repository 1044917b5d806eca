/** Decode against the float64 oracle, and the schedule's part in it. */
import { describe, expect, test } from 'vitest';
import { decode16 } from '../../src/bf16.ts';
import type { Mla, MlaMetadata } from '../../src/mla.ts';
import { getMlaMetadata } from '../../src/schedule.ts';
import { caseName, decodeArgs, flops, makeCase, type CaseOptions, type DecodeCase } from '../cases.ts';
import { expectRight, oracle, run, take } from '../check.ts';
import { compareDecode } from '../compare.ts';
import type { Heads } from '../heads.ts';

export function againstOracle(mla: () => Mla, cases: readonly CaseOptions[], oracleFlops: number): void {
  describe('decode against the oracle', () => {
    for (const options of cases) {
      test(caseName(options), async () => {
        const c = makeCase(options);
        expectRight(c, await run(mla(), c), sample(options, oracleFlops));
      });
    }
  });
}

export function decode(mla: () => Mla, cases: readonly CaseOptions[], oracleFlops: number, only?: Heads): void {
  againstOracle(mla, cases, oracleFlops);

  describe('metadata', () => {
    const options: CaseOptions = { b: 3, sQ: 2, sK: 0, hQ: 12, hKv: 3, seqlens: [130, 0, 700], causal: true };

    test('is made once and serves every layer', async () => {
      const c = makeCase(options);
      const metadata = mla().getMlaMetadata(metadataArgs(c));
      for (const seed of [2, 3, 4]) {
        const layer = makeCase({ ...options, seed });
        expectRight(layer, await run(mla(), layer, { metadata }));
      }
    });

    test('of an earlier step is not taken for this step’s', async () => {
      for (const length of [64, 65, 66]) {
        const c = makeCase({ ...options, seqlens: [length, 0, 700 + length] });
        expectRight(c, await run(mla(), c, { metadata: mla().getMlaMetadata(metadataArgs(c)) }));
      }
    });

    // One part leaves every sequence whole; as many parts as blocks splits each to the utmost.
    for (const [what, slots] of [['no split', 1], ['a few splits', 15], ['a split a block', 100_000]] as const) {
      test(`${what}: same result`, async () => {
        const c = makeCase({ ...options, blockSize: only?.blockSize ?? 16, softmaxScale: 20 });
        const metadata = metadataFor(c, slots, mla().info.schedule.rowTiles);
        const splits = metadata.numSplits[c.b]!;
        if (slots === 1) expect(splits).toBe(3);
        else expect(splits).toBeGreaterThan(3);
        const got = await run(mla(), c, { metadata });
        expectRight(c, got);
        expect(compareDecode(c, await run(mla(), c), got)).toBeUndefined();
      });
    }

    // Of another instance, whose kernels take sequences in any order.
    test('in an order in which none is split: same result', async () => {
      const c = makeCase({ b: 7, sQ: 1, sK: 0, hQ: 6, seqlens: [190, 380, 128, 250, 512, 320, 256], blockSize: only?.blockSize ?? 16 });
      const metadata = metadataFor(c, 4, mla().info.schedule.rowTiles, true);
      expect([...metadata.order]).toEqual([4, 1, 2, 5, 0, 3, 6]);
      expect(metadata.numSplits).toEqual(Int32Array.from({ length: c.b + 1 }, (_, i) => i));
      const got = await run(mla(), c, { metadata });
      expectRight(c, got);
      expect(compareDecode(c, await run(mla(), c), got)).toBeUndefined();
    });
  });

  test('calls that overlap in time do not mix', async () => {
    const several = [
      makeCase({ b: 2, sQ: 1, sK: 140, hQ: 16, ragged: true }),
      makeCase({ b: 1, sQ: 2, sK: 300, hQ: 9, hKv: 3, causal: true, dtype: 'f16' }),
      makeCase({ b: 3, sQ: 1, sK: 20, hQ: 5, ...(only ?? { dV: 64, rope: 32, blockSize: 16 }) }),
      makeCase({ b: 2, sQ: 1, sK: 140, hQ: 16, ragged: true, seed: 9 }),
    ];
    const got = await Promise.all(several.map((c) => run(mla(), c)));
    several.forEach((c, i) => expectRight(c, got[i]!));
  });

  test('results are the same bits each time', async () => {
    const c = makeCase({ b: 3, sQ: 2, sK: 400, hQ: 10, ragged: true, causal: true });
    const first = await run(mla(), c);
    expect(await run(mla(), c)).toEqual(first);
  });

  test('f32 input is rounded to bf16', async () => {
    const c = makeCase({ b: 2, sQ: 1, sK: 40, hQ: 4, ...(only ?? { dV: 64, rope: 16 }), poison: false });
    const args = decodeArgs(c);
    // At most a quarter of the way to the next bf16 value, so that rounding gives the bits back.
    const nudged = Float32Array.from(decode16('bf16', c.q), (v) => v * (1 + 2 ** -10));
    const got = await take(await mla().flashMlaWithKvCache({ ...args, q: { data: nudged, shape: args.q.shape } }));
    expect(got).toEqual(await run(mla(), c));
  });

  test('time() measures the calls inside and leaves them right', async () => {
    const c = makeCase({ b: 2, sQ: 1, sK: 140, hQ: 16 });
    let got: Awaited<ReturnType<typeof run>> | undefined;
    const start = performance.now();
    const { ms, source } = await mla().time(async () => {
      got = await run(mla(), c);
    });
    expect(ms).toBeGreaterThan(0);
    expect(ms).toBeLessThan(performance.now() - start + 5);
    expect(['device', 'wall']).toContain(source);
    expect(compareDecode(c, oracle(c), got!)).toBeUndefined();
  });
}

function metadataArgs(c: DecodeCase): { cacheSeqlens: Int32Array; numQTokensPerHeadK: number; numHeadsK: number; blockSize: number } {
  return { cacheSeqlens: c.cacheSeqlens, numQTokensPerHeadK: (c.sQ * c.hQ) / c.hKv, numHeadsK: c.hKv, blockSize: c.blockSize };
}

/** Metadata as a machine with this many slots would get it. */
function metadataFor(c: DecodeCase, slots: number, rowTiles: readonly number[], anyOrder = false): MlaMetadata {
  return getMlaMetadata(metadataArgs(c), { slots, rowTiles, minTokensPerPart: 1, anyOrder });
}

/** The sequences that the oracle can afford, spread over the batch; undefined for all. */
function sample(options: CaseOptions, most: number): number[] | undefined {
  const each = flops(options) / options.b;
  const count = Math.max(1, Math.floor(most / each));
  if (count >= options.b) return undefined;
  return Array.from({ length: count }, (_, i) => Math.floor(((i + 0.5) * options.b) / count));
}
