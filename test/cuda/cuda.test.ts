/** The cuda backend on a Hopper GPU: the suite of every backend, and what is its own. Fails without one. */
import { afterAll, beforeAll, describe, expect, test } from 'vitest';
import type { Mla } from '../../src/mla.ts';
import { createMla, listBackends } from '../../src/node.ts';
import { full, flashMlaGrid, software } from '../case-lists.ts';
import { decodeArgs, makeCase, type CaseOptions } from '../cases.ts';
import { expectRefusal, expectRight, run, take } from '../check.ts';
import { conformance } from '../conformance.ts';
import { DEEPSEEK, hasHeads } from '../heads.ts';
import { ORACLE_FLOPS } from './grid.ts';

/** The grid has files of its own; the software list shows its axes in other mixtures. */
const cases = [...new Set([...software, ...full])].filter((options) => hasHeads(options, DEEPSEEK) && !flashMlaGrid.includes(options));

// Both as in native-cuda/README.md, under Open.
conformance('cuda', () => createMla({ backend: 'cuda' }), cases, { oracleFlops: ORACLE_FLOPS, only: DEEPSEEK, lacks: ['small numbers beside 3e38', 'scores past 2^31'] });

describe('cuda alone', () => {
  let mla: Mla;
  beforeAll(async () => {
    mla = await createMla({ backend: 'cuda' });
  });
  afterAll(() => mla?.destroy());

  test('is what auto takes', async () => {
    const auto = await createMla();
    expect(auto.info).toMatchObject({ backend: 'cuda', reason: 'auto took cuda', software: false });
    await auto.destroy();
    expect((await listBackends())[0]).toMatchObject({ backend: 'cuda', available: true });
  });

  const others: (CaseOptions & { argument: string })[] = [
    { b: 1, sQ: 1, sK: 20, hQ: 2, dV: 256, rope: 64, argument: 'headDimV' },
    { b: 1, sQ: 1, sK: 20, hQ: 2, dV: 512, rope: 32, argument: 'q' },
    { b: 1, sQ: 1, sK: 20, hQ: 2, blockSize: 16, argument: 'kvCache' },
  ];
  for (const { argument, ...options } of others) {
    test(`heads it has no kernels for: ${argument}`, async () => {
      const error = await expectRefusal(() => mla.flashMlaWithKvCache(decodeArgs(makeCase(options))), 'limit-exceeded', argument);
      expect(error.message).toContain('webgpu');
      const good = makeCase({ b: 1, sQ: 1, sK: 20, hQ: 2 });
      expectRight(good, await run(mla, good));
    });
  }

  // Row counts around a tile, a cluster and their multiples.
  for (const hQ of [1, 63, 64, 65, 127, 128, 129, 192, 193, 256, 300]) {
    test(`${hQ} rows`, async () => {
      const c = makeCase({ b: 2, sQ: 1, sK: 0, hQ, seqlens: [300, 70] });
      expectRight(c, await run(mla, c));
    });
  }

  test('many KV heads', async () => {
    const c = makeCase({ b: 1, sQ: 2, sK: 130, hQ: 200, hKv: 200, causal: true });
    expectRight(c, await run(mla, c));
  });

  test('a cache larger than 4 GiB is read at its far end', { timeout: 120_000 }, async () => {
    const numBlocks = 60_000; // 4.4 GB
    const cache = await mla.createKvCache({ numBlocks });
    const c = makeCase({ b: 1, sQ: 1, sK: 100, hQ: 4, poison: false });
    const filler = cache.createSequence();
    await cache.reserve({ sequences: [filler], counts: [(numBlocks - 2) * 64] });
    const ids = [cache.createSequence()];
    const rows = new Uint16Array(100 * 576);
    for (let t = 0; t < 100; t++) {
      const from = (c.blockTable[Math.floor(t / 64)]! * 64 + (t % 64)) * 576;
      rows.set(c.kvCache.subarray(from, from + 576), t * 576);
    }
    await cache.append({ sequences: ids, counts: [100], latent: { data: rows, shape: [100, 1, 576] } });
    expect(Math.max(...cache.blocks(ids[0]!))).toBeGreaterThan(58_300);
    const result = await mla.flashMlaWithKvCache({ ...decodeArgs(c), kvCache: cache.tensor(), blockTable: cache.blockTable(ids), cacheSeqlens: cache.cacheSeqlens(ids) });
    expectRight(c, await take(result));
    cache.destroy();
  });

  test('the event loop runs while the device works', async () => {
    await mla.finished();
    for (let i = 0; i < 600; i++) await mla.flushCache();
    let turns = 0;
    const timer = setInterval(() => turns++, 1);
    const start = performance.now();
    await mla.finished();
    const waited = performance.now() - start;
    clearInterval(timer);
    expect(waited).toBeGreaterThan(10);
    expect(turns).toBeGreaterThan(waited / 10);
  });

  test('device time is not host time', async () => {
    const c = makeCase({ b: 1, sQ: 1, sK: 64, hQ: 16 });
    const samples: number[] = [];
    for (let i = 0; i < 20; i++) {
      const { ms, source } = await mla.time(async () => take(await mla.flashMlaWithKvCache(decodeArgs(c))));
      expect(source).toBe('device');
      samples.push(ms);
    }
    expect(Math.min(...samples)).toBeGreaterThan(0.001);
    expect(Math.min(...samples)).toBeLessThan(0.05);
  });
});
