/** Requests that a PagedKvCache cannot meet: a typed error, and not a block, a length or a byte changed. */
import { afterAll, beforeAll, describe, expect, test } from 'vitest';
import type { MlaErrorCode } from '../../src/errors.ts';
import type { HostTensor, KvCacheOptions, Mla, MlaTensor, PagedKvCache, SequenceId } from '../../src/mla.ts';
import { expectRefusal } from '../check.ts';

const rows = (tokens: number, width = 48): HostTensor => ({ data: new Uint16Array(tokens * width).fill(0x3f80), shape: [tokens, 1, width] });

export function badCacheInput(mla: () => Mla, makeMla: () => Promise<Mla>): void {
  describe('bad input of a cache', () => {
    const wrongs: [string, MlaErrorCode | readonly MlaErrorCode[], string | undefined, unknown][] = [
      ['no options', 'invalid-argument', undefined, undefined],
      ['no blocks', 'invalid-argument', 'numBlocks', { numBlocks: 0 }],
      ['a fraction of a block', 'invalid-argument', 'numBlocks', { numBlocks: 1.5 }],
      ['a block size of 48', ['invalid-argument', 'invalid-shape'], 'blockSize', { numBlocks: 1, blockSize: 48 }],
      ['no heads', 'invalid-argument', 'numHeadsK', { numBlocks: 1, numHeadsK: 0 }],
      ['a wrong width', ['invalid-argument', 'invalid-shape'], 'headDimV', { numBlocks: 1, headDimV: 100 }],
      ['no RoPE part', ['invalid-argument', 'invalid-shape'], 'headDimV', { numBlocks: 1, headDim: 512 }],
      ['f32', 'invalid-dtype', 'dtype', { numBlocks: 1, dtype: 'f32' }],
      ['layers that are no number', 'invalid-argument', 'numLayers', { numBlocks: 1, numLayers: 'two' }],
    ];
    for (const [what, code, argument, options] of wrongs) {
      test(`options: ${what}`, async () => {
        const before = await mla().memory();
        await expectRefusal(() => mla().createKvCache(options as KvCacheOptions), code, argument);
        expect(await mla().memory()).toEqual(before);
      });
    }

    test('a pool larger than any machine: the error says how large one may be', async () => {
      const before = await mla().memory();
      // 1.2 TB, in slots that an i32 still counts.
      const error = await expectRefusal(() => mla().createKvCache({ numBlocks: 2 ** 24 }), ['limit-exceeded', 'out-of-memory'], 'numBlocks');
      // A limit is a number; how much a process may have is found out by asking.
      if (error.code === 'limit-exceeded') expect(error.expected).toMatch(/\d/);
      expect(await mla().memory()).toEqual(before);
      const cache = await mla().createKvCache({ numBlocks: 1 });
      cache.destroy();
    });
  });

  describe('a cache with 4 blocks of 16', () => {
    let cache: PagedKvCache;
    let a: SequenceId;
    let b: SequenceId;
    beforeAll(async () => {
      cache = await mla().createKvCache({ numBlocks: 4, blockSize: 16, headDim: 48, headDimV: 32 });
      a = cache.createSequence();
      b = cache.createSequence();
      await cache.append({ sequences: [a, b], counts: [20, 10], latent: rows(30) });
    });
    afterAll(() => cache?.destroy());

    async function refused(action: () => unknown, code: MlaErrorCode | readonly MlaErrorCode[], argument?: string): Promise<void> {
      const state = async () => ({
        stats: cache.stats(), blocks: [cache.blocks(a), cache.blocks(b)], lengths: cache.cacheSeqlens([a, b]),
        pool: await cache.tensor().readBits(), memory: await mla().memory(),
      });
      // Twice: the first read may make a staging buffer that is kept.
      await state();
      const before = await state();
      await expectRefusal(action, code, argument);
      expect(await state()).toEqual(before);
    }

    test('pool exhausted', () => refused(() => cache.reserve({ sequences: [a], counts: [45] }), 'pool-exhausted'));
    test('pool exhausted by the second of two', () => refused(() => cache.reserve({ sequences: [a, b], counts: [1, 23] }), 'pool-exhausted'));
    test('pool exhausted in append', () => refused(() => cache.append({ sequences: [b, a], counts: [7, 13], latent: rows(20) }), 'pool-exhausted'));
    test('pool exhausted by a copy on write', async () => {
      const filler = cache.createSequence();
      await cache.append({ sequences: [filler], counts: [16], latent: rows(16) });
      const fork = cache.fork(a);
      await refused(() => cache.append({ sequences: [fork], counts: [1], latent: rows(1) }), 'pool-exhausted');
      cache.free(fork, filler);
    });

    test('a sequence that never was', () => refused(() => cache.reserve({ sequences: [99], counts: [1] }), 'out-of-range', 'sequences'));
    test('a sequence that was freed', async () => {
      const freed = cache.createSequence();
      cache.free(freed);
      for (const action of [
        () => cache.free(freed), () => cache.fork(freed), () => cache.length(freed), () => cache.blocks(freed), () => cache.truncate(freed, 0),
        () => cache.blockTable([a, freed]), () => cache.cacheSeqlens([freed]), () => cache.reserve({ sequences: [freed], counts: [1] }),
      ]) await refused(action, 'out-of-range');
    });
    test('free of a good and a bad sequence frees neither', () => refused(() => cache.free(a, 99), 'out-of-range'));
    test('a sequence named twice', async () => {
      await refused(() => cache.reserve({ sequences: [a, a], counts: [1, 1] }), 'invalid-argument', 'sequences');
      await refused(() => cache.free(a, a), 'invalid-argument', 'sequences');
    });
    test('counts that are no counts', async () => {
      await refused(() => cache.reserve({ sequences: [a], counts: [1, 2] }), 'invalid-shape', 'counts');
      for (const count of [-1, 0.5, NaN, '3' as unknown as number]) {
        await refused(() => cache.reserve({ sequences: [a, b], counts: [1, count] }), 'invalid-argument', 'counts');
        await refused(() => cache.append({ sequences: [a, b], counts: [1, count], latent: rows(1) }), 'invalid-argument', 'counts');
      }
    });
    test('a length that is not shorter', async () => {
      for (const length of [21, -1, 1.5, NaN]) await refused(() => cache.truncate(a, length), 'out-of-range', 'length');
    });
    test('data of a wrong type or shape', async () => {
      const append = (latent: unknown, rope?: unknown) => () =>
        cache.append({ sequences: [a, b], counts: [1, 1], latent: latent as HostTensor, ...(rope === undefined ? {} : { rope: rope as HostTensor }) });
      await refused(append({ ...rows(2), dtype: 'f16' }), 'invalid-dtype', 'latent');
      await refused(append(rows(3)), 'invalid-shape', 'latent');
      await refused(append(rows(2, 32)), 'invalid-shape', 'latent');
      await refused(append(rows(2, 32), rows(2, 32)), 'invalid-shape', 'rope');
      await refused(append(rows(2), rows(2, 16)), 'invalid-shape', 'latent');
      await refused(append(undefined), 'invalid-argument', 'latent');
    });
    test('data that was destroyed, or is another instance’s', async () => {
      const append = (latent: MlaTensor, rope?: MlaTensor) => () =>
        cache.append({ sequences: [a, b], counts: [1, 1], latent, ...(rope === undefined ? {} : { rope }) });
      const destroyed = await mla().tensor(rows(2));
      destroyed.destroy();
      await refused(append(destroyed), 'destroyed', 'latent');

      const other = await makeMla();
      const [latent, rope, mine] = [await other.tensor(rows(2)), await other.tensor(rows(2, 16)), await mla().tensor(rows(2, 32))];
      await refused(append(latent), 'invalid-argument', 'latent');
      await refused(append(mine, rope), 'invalid-argument', 'rope');
      mine.destroy();
      await other.destroy();
    });
    test('a layer that is not there', async () => {
      await refused(() => cache.tensor(1), 'out-of-range', 'layer');
      await refused(() => cache.write({ slots: Int32Array.of(0), tokens: 1 }, { latent: rows(1), layer: -1 }), 'out-of-range', 'layer');
    });
    test('a plan that was not reserved', async () => {
      await refused(() => cache.write({ slots: Int32Array.of(64), tokens: 1 }, { latent: rows(1) }), 'invalid-argument', 'plan');
      await refused(() => cache.write({ slots: Int32Array.of(-1), tokens: 1 }, { latent: rows(1) }), 'invalid-argument', 'plan');
      await refused(() => cache.write({ slots: Int32Array.of(0), tokens: 2 }, { latent: rows(2) }), 'invalid-argument', 'plan');
    });
    test('and it still works', async () => {
      await cache.append({ sequences: [a, b], counts: [12, 22], latent: rows(34) });
      expect(cache.stats()).toMatchObject({ freeBlocks: 0, tokens: 64 });
      cache.truncate(a, 20);
      cache.truncate(b, 10);
    });
  });
}
