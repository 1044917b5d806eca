/** Memory over many steps, and the end: what destroy does, and what comes after it. */
import { describe, expect, test } from 'vitest';
import { encode16 } from '../../src/bf16.ts';
import type { Mla } from '../../src/mla.ts';
import { decodeArgs, makeCase } from '../cases.ts';
import { expectRefusal, expectRight, run } from '../check.ts';
import { NARROW, type Heads } from '../heads.ts';
import { Random } from '../random.ts';

export function lifetime(makeMla: () => Promise<Mla>, narrow: Heads = NARROW): void {
  const { dV, rope, blockSize } = narrow;
  const width = dV + rope;

  describe('lifetime', () => {
    test('1000 decode steps hold the memory of 10', async () => {
      const mla = await makeMla();
      const random = new Random(5);
      const cache = await mla.createKvCache({ numBlocks: 8, blockSize, headDim: width, headDimV: dV, numLayers: 2 });
      const ids = [cache.createSequence(), cache.createSequence()];
      const bits = (count: number): Uint16Array => encode16('bf16', random.normals(count, 0.1));
      const held: number[] = [];
      for (let step = 1; step <= 1000; step++) {
        const plan = await cache.reserve({ sequences: ids, counts: [1, 1] });
        const cacheSeqlens = cache.cacheSeqlens(ids);
        const metadata = mla.getMlaMetadata({ cacheSeqlens, numQTokensPerHeadK: 4, numHeadsK: 1, blockSize });
        for (let layer = 0; layer < 2; layer++) {
          await cache.write(plan, { latent: { data: bits(2 * width), shape: [2, 1, width] }, layer });
          const { out, lse } = await mla.flashMlaWithKvCache({
            q: { data: bits(2 * 4 * width), shape: [2, 1, 4, width] }, kvCache: cache.tensor(layer),
            blockTable: cache.blockTable(ids), cacheSeqlens, metadata, headDimV: dV,
          });
          if (layer === 1) expect((await lse.read()).every(Number.isFinite)).toBe(true);
          out.destroy();
          lse.destroy();
        }
        // Lengths come round every 8 steps, so that the first 10 have seen them all.
        if (step % 8 === 0) for (const id of ids) cache.truncate(id, 0);
        if (step === 10 || step === 1000) {
          await mla.finished();
          held.push((await mla.memory()).bytes);
        }
      }
      expect(held[1]).toBe(held[0]);
      await mla.destroy();
    });

    test('all memory is given back', async () => {
      const mla = await makeMla();
      const c = makeCase({ b: 2, sQ: 1, sK: 140, hQ: 4 });
      const before = await mla.memory();
      const tensor = await mla.tensor({ data: c.kvCache, shape: [c.numBlocks, 64, 1, 576] });
      expect((await mla.memory()).bytes - before.bytes).toBeGreaterThanOrEqual(tensor.byteLength);
      tensor.destroy();
      await mla.finished();
      const cache = await mla.createKvCache({ numBlocks: 10, numLayers: 2 });
      expect((await mla.memory()).bytes - before.bytes).toBeGreaterThanOrEqual(cache.stats().bytes);
      cache.destroy();
      await mla.finished();
      // Buffers may be kept for the next tensor of their size, but not two pools of them.
      expect((await mla.memory()).bytes - before.bytes).toBeLessThan(10 * 64 * 576 * 2);
      await mla.destroy();
    });

    test('after destroy everything refuses, and another instance works', async () => {
      const mla = await makeMla();
      const c = makeCase({ b: 2, sQ: 1, sK: 20, hQ: 4, ...narrow });
      const args = decodeArgs(c);
      const tensor = await mla.tensor({ data: c.q, shape: [...args.q.shape] });
      const cache = await mla.createKvCache({ numBlocks: 2 });
      const id = cache.createSequence();
      await run(mla, c);
      await mla.destroy();
      await mla.destroy();

      const calls: (() => unknown)[] = [
        () => mla.tensor({ data: c.q, shape: [...args.q.shape] }),
        () => mla.flashMlaWithKvCache(args),
        () => mla.createKvCache({ numBlocks: 1 }),
        () => mla.finished(),
        () => mla.memory(),
        () => mla.time(async () => undefined),
        () => tensor.read(),
        () => tensor.readBits(),
        () => cache.createSequence(),
        () => cache.fork(id),
        () => cache.length(id),
        () => cache.tensor(),
        () => cache.stats(),
        () => cache.reserve({ sequences: [id], counts: [1] }),
        () => cache.append({ sequences: [id], counts: [1], latent: { data: new Uint16Array(576), shape: [1, 1, 576] } }),
        () => cache.write({ slots: Int32Array.of(0), tokens: 1 }, { latent: { data: new Uint16Array(576), shape: [1, 1, 576] } }),
      ];
      for (const call of calls) await expectRefusal(call, 'destroyed');
      // Giving back twice is no error.
      tensor.destroy();
      cache.destroy();

      const another = await makeMla();
      expectRight(c, await run(another, c));
      await another.destroy();
    });

    test('a destroyed cache refuses and leaves the instance alone', async () => {
      const mla = await makeMla();
      const cache = await mla.createKvCache({ numBlocks: 2 });
      const id = cache.createSequence();
      const pool = cache.tensor();
      cache.destroy();
      cache.destroy();
      for (const call of [() => cache.createSequence(), () => cache.free(id), () => cache.reserve({ sequences: [id], counts: [1] }), () => cache.stats()]) {
        await expectRefusal(call, 'destroyed');
      }
      await expectRefusal(() => pool.read(), 'destroyed');
      const c = makeCase({ b: 1, sQ: 1, sK: 20, hQ: 2, ...narrow });
      expectRight(c, await run(mla, c));
      await mla.destroy();
    });

    test('reads under way when destroy is called settle', async () => {
      const mla = await makeMla();
      const c = makeCase({ b: 2, sQ: 1, sK: 140, hQ: 16, ...narrow });
      const { out } = await mla.flashMlaWithKvCache(decodeArgs(c));
      const read = out.read().then(
        () => 'read',
        (error: { code?: string }) => error.code,
      );
      await mla.destroy();
      expect(['read', 'destroyed', 'device-lost']).toContain(await read);
    });

    test('says what it runs on', async () => {
      const mla = await makeMla();
      const { info } = mla;
      expect(['cuda', 'webgpu', 'cpu']).toContain(info.backend);
      expect(info.reason).not.toBe('');
      expect(info.device).not.toBe('');
      expect(info.schedule.slots).toBeGreaterThan(0);
      expect(info.schedule.rowTiles.length).toBeGreaterThan(0);
      expect([...info.schedule.rowTiles]).toEqual([...info.schedule.rowTiles].sort((x, y) => x - y));
      await mla.destroy();
    });
  });
}
