/** Where arguments and results may live: this program's arrays, device tensors, and the caller's own outputs. */
import { describe, expect, test } from 'vitest';
import { decode16 } from '../../src/bf16.ts';
import type { HostTensor, Mla, MlaTensor } from '../../src/mla.ts';
import { decodeArgs, makeCase, type CaseOptions } from '../cases.ts';
import { expectRight, run, take } from '../check.ts';

const options: CaseOptions = { b: 2, sQ: 2, sK: 140, hQ: 6, hKv: 3, ragged: true };

export function tensors(mla: () => Mla): void {
  describe('tensors', () => {
    test('keep what they were made from', async () => {
      const bits = Uint16Array.from({ length: 24 }, (_, i) => 0x3f80 + i * 257);
      for (const dtype of ['bf16', 'f16'] as const) {
        const tensor = await mla().tensor({ data: bits, shape: [2, 3, 4], dtype });
        expect(tensor).toMatchObject({ dtype, shape: [2, 3, 4], byteLength: 48, destroyed: false });
        expect(await tensor.readBits()).toEqual(bits);
        expect(await tensor.read()).toEqual(decode16(dtype, bits));
        tensor.destroy();
        expect(tensor.destroyed).toBe(true);
      }
    });

    test('of odd lengths lose nothing', async () => {
      for (const length of [1, 2, 3, 5, 7, 9]) {
        const bits = Uint16Array.from({ length }, (_, i) => i + 1);
        const tensor = await mla().tensor({ data: bits, shape: [length], dtype: 'bf16' });
        expect(await tensor.readBits()).toEqual(bits);
        tensor.destroy();
      }
    });

    test('f32 and i32 come back as they went', async () => {
      const floats = await mla().tensor({ data: Float32Array.of(1.1, -0, Infinity), shape: [3], dtype: 'f32' });
      expect(await floats.read()).toEqual(Float32Array.of(1.1, -0, Infinity));
      const ints = await mla().tensor({ data: Int32Array.of(-1, 2147480000), shape: [2] });
      expect(ints.dtype).toBe('i32');
      expect(await ints.read()).toEqual(Int32Array.of(-1, 2147480000));
      floats.destroy();
      ints.destroy();
    });

    test('Float32Array is rounded to nearest even', async () => {
      // 1 + 2^-8 lies halfway between two bf16 values and goes to the even one; 1 + 3 * 2^-8 too, upwards.
      const tensor = await mla().tensor({ data: Float32Array.of(1 + 2 ** -8, 1 + 3 * 2 ** -8, -0.1, NaN), shape: [4] });
      expect(await tensor.read()).toEqual(Float32Array.of(1, 1 + 2 ** -6, -0.10009765625, NaN));
      tensor.destroy();
    });

    test('a view into a larger buffer gives its own part', async () => {
      const whole = Uint16Array.from({ length: 16 }, (_, i) => i);
      const tensor = await mla().tensor({ data: whole.subarray(3, 10), shape: [7], dtype: 'f16' });
      expect(await tensor.readBits()).toEqual(whole.slice(3, 10));
      tensor.destroy();
    });

    test('give the same result as arrays, and can be used again', async () => {
      const c = makeCase(options);
      const expected = await run(mla(), c);
      const args = decodeArgs(c);
      const q = await mla().tensor(args.q as HostTensor);
      const kvCache = await mla().tensor(args.kvCache as HostTensor);
      const blockTable = await mla().tensor({ data: c.blockTable, shape: [c.b, c.maxBlocksPerSeq] });
      const cacheSeqlens = await mla().tensor({ data: c.cacheSeqlens, shape: [c.b] });
      for (let i = 0; i < 2; i++) expect(await run(mla(), c, { q, kvCache, blockTable, cacheSeqlens })).toEqual(expected);
      expect(await run(mla(), c, { blockTable: { data: c.blockTable, shape: [c.b, c.maxBlocksPerSeq] } })).toEqual(expected);
      for (const tensor of [q, kvCache, blockTable, cacheSeqlens]) tensor.destroy();
    });

    test('destroyed after a call do not disturb it', async () => {
      const c = makeCase(options);
      const args = decodeArgs(c);
      const q = await mla().tensor(args.q as HostTensor);
      const kvCache = await mla().tensor(args.kvCache as HostTensor);
      const result = await mla().flashMlaWithKvCache({ ...args, q, kvCache });
      q.destroy();
      kvCache.destroy();
      expectRight(c, await take(result));
    });

    test('arrays may be written to once the call has resolved', async () => {
      const c = makeCase(options);
      const mine = makeCase(options);
      const result = await mla().flashMlaWithKvCache(decodeArgs(mine));
      mine.q.fill(0x7fc0);
      mine.kvCache.fill(0x7fc0);
      mine.blockTable.fill(-1);
      mine.cacheSeqlens.fill(-1);
      expectRight(c, await take(result));
    });
  });

  describe('given outputs', () => {
    async function outputs(b: number, sQ: number, hQ: number, dV: number): Promise<{ out: MlaTensor; lse: MlaTensor }> {
      return {
        out: await mla().tensor({ data: new Uint16Array(b * sQ * hQ * dV).fill(0x7fc0), shape: [b, sQ, hQ, dV] }),
        lse: await mla().tensor({ data: new Float32Array(b * hQ * sQ).fill(NaN), shape: [b, hQ, sQ], dtype: 'f32' }),
      };
    }

    test('are written whole, rows without keys too', async () => {
      const c = makeCase({ b: 3, sQ: 2, sK: 0, hQ: 5, seqlens: [0, 1, 90], causal: true });
      const given = await outputs(3, 2, 5, 512);
      const result = await mla().flashMlaWithKvCache({ ...decodeArgs(c), ...given });
      expect(result.out).toBe(given.out);
      expect(result.lse).toBe(given.lse);
      expectRight(c, await take(result));
    });

    test('one of the two may be given', async () => {
      const c = makeCase(options);
      const expected = await run(mla(), c);
      for (const name of ['out', 'lse'] as const) {
        const given = await outputs(2, 2, 6, 512);
        expect(await run(mla(), c, { [name]: given[name] })).toEqual(expected);
        given.out.destroy();
        given.lse.destroy();
      }
    });

    test('reads happen in call order between the calls that write', async () => {
      const first = makeCase(options);
      const second = makeCase({ ...options, seed: 2 });
      const given = await outputs(2, 2, 6, 512);
      await mla().flashMlaWithKvCache({ ...decodeArgs(first), ...given });
      const before = Promise.all([given.out.read(), given.lse.read()]);
      await mla().flashMlaWithKvCache({ ...decodeArgs(second), ...given });
      const [out, lse] = await before;
      expectRight(first, { out, lse });
      expectRight(second, await take(given));
    });
  });
}
