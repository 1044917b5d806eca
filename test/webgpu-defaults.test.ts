/** The webgpu backend within WebGPU's default limits: what works here works on every device. */
import { afterAll, beforeAll, describe, expect, test } from 'vitest';
import { encode16 } from '../src/bf16.ts';
import type { Mla } from '../src/mla.ts';
import { createMla } from '../src/node.ts';
import { few } from './case-lists.ts';
import { expectRefusal, expectRight, run, take } from './check.ts';
import { caseName, makeCase } from './cases.ts';
import { compareDecode } from './compare.ts';
import { LogicalCache } from './logical-cache.ts';
import { softwareGpu } from './software-adapter.ts';

describe('webgpu with default limits', () => {
  let mla: Mla;
  beforeAll(async () => {
    mla = await createMla({ backend: 'webgpu', gpu: await softwareGpu(), limits: 'default', tune: 'off' });
  });
  afterAll(() => mla?.destroy());

  test('they are the defaults', () => {
    expect(mla.info.limits).toMatchObject({
      maxStorageBufferBindingSize: 134217728, maxStorageBuffersPerShaderStage: 8, maxComputeWorkgroupStorageSize: 16384, maxComputeInvocationsPerWorkgroup: 256,
    });
  });

  test.each(few.map((options) => [caseName(options), options] as const))('%s', async (_, options) => {
    const c = makeCase(options);
    expectRight(c, await run(mla, c));
  });

  // A block is 73,728 B, so one binding holds 1,820 of them.
  test('a pool over two bindings: append, copy on write and decode on both sides of the border', async () => {
    const logical = new LogicalCache(await mla.createKvCache({ numBlocks: 1824 }));
    const { cache } = logical;
    const filler = cache.createSequence();
    await cache.reserve({ sequences: [filler], counts: [1818 * 64] });
    const a = logical.create();
    await logical.append([a], [150]);
    expect([...cache.blocks(a)]).toEqual([1818, 1819, 1820]);
    const fork = logical.fork(a);
    await logical.append([fork, a], [1, 3]);
    expect(cache.blocks(fork)[2]).toBe(1821);

    const ids = [a, fork];
    const shape = [2, 1, 16, 576];
    const bits = encode16('bf16', logical.random.normals(2 * 16 * 576, 0.1));
    const result = await mla.flashMlaWithKvCache({
      q: { data: bits, shape }, kvCache: cache.tensor(), blockTable: cache.blockTable(ids), cacheSeqlens: cache.cacheSeqlens(ids), headDimV: 512,
    });
    const expected = logical.reference({ bits, sQ: 1, hQ: 16 }, ids, 0, false);
    expect(compareDecode({ b: 2, sQ: 1, hQ: 16, dV: 512 }, expected, await take(result))).toBeUndefined();

    // A copy whose source is in one binding and whose place in the other.
    const edge = await mla.createKvCache({ numBlocks: 1824 });
    const last = edge.createSequence();
    await edge.reserve({ sequences: [edge.createSequence()], counts: [1819 * 64] });
    const rows = (count: number, word: number): { data: Uint16Array; shape: number[] } => ({ data: new Uint16Array(count * 576).fill(word), shape: [count, 576] });
    await edge.append({ sequences: [last], counts: [2], latent: rows(2, 0x3f80) });
    const forked = edge.fork(last);
    await edge.append({ sequences: [forked], counts: [1], latent: rows(1, 0x4000) });
    expect([edge.blocks(last)[0], edge.blocks(forked)[0]]).toEqual([1819, 1820]);
    const both = await edge.tensor().readBits();
    for (const [block, third] of [[1819, 0], [1820, 0x4000]] as const) {
      const at = block * 64 * 576;
      expect([both.slice(at, at + 2 * 576), both.slice(at + 2 * 576, at + 3 * 576)]).toEqual([new Uint16Array(2 * 576).fill(0x3f80), new Uint16Array(576).fill(third)]);
    }
    edge.destroy();

    // And back to the host, segments laid end to end.
    const pool = await cache.tensor().readBits();
    expect(pool.length).toBe(1824 * 64 * 576);
    const token = 149; // in block 1820, the first of the second binding
    expect(pool.slice((1820 * 64 + token - 128) * 576, (1820 * 64 + token - 127) * 576)).toEqual(logical.sequences.get(a)![0]![token]);
    cache.destroy();
  });

  test('a pool past all bindings is refused with the limit and the largest pool', async () => {
    const before = await mla.memory();
    const error = await expectRefusal(() => mla.createKvCache({ numBlocks: 5461 }), 'limit-exceeded', 'numBlocks');
    expect(error.message).toMatch(/maxStorageBufferBindingSize/);
    expect(error.message).toMatch(/5460/);
    expect((await mla.memory()).bytes).toBe(before.bytes);
  });
});
