/** A device that goes away under the instance, and a device that is not ours: Dawn on the software adapter. */
import { globals } from 'webgpu';
import { afterAll, beforeAll, describe, expect, test } from 'vitest';
import { createMla } from '../src/node.ts';
import type { GpuBufferTensor, HostTensor } from '../src/mla.ts';
import { decodeArgs, makeCase } from './cases.ts';
import { expectRefusal, expectRight, run, take } from './check.ts';
import { softwareDevice, softwareGpu } from './software-adapter.ts';

const { GPUBufferUsage } = globals as { GPUBufferUsage: typeof globalThis.GPUBufferUsage };
// Narrow heads: every device compiles its kernels anew, and narrow ones compile soonest.
const c = makeCase({ b: 2, sQ: 2, sK: 300, hQ: 16, ragged: true, dV: 32, rope: 16 });

// Nothing may escape as an event: vitest fails the run on an unhandled rejection, this on a warning about one too.
const stray: unknown[] = [];
const note = (reason: unknown): void => void stray.push(reason);
beforeAll(() => {
  process.on('unhandledRejection', note);
});
afterAll(() => {
  process.off('unhandledRejection', note);
});

describe('device lost', () => {
  test('reads under way reject, later calls reject, a new instance works', async () => {
    const device = await softwareDevice();
    const mla = await createMla({ backend: 'webgpu', device });
    const tensor = await mla.tensor(decodeArgs(c).q as HostTensor);
    const cache = await mla.createKvCache({ numBlocks: 4 });
    const sequence = cache.createSequence();
    const before = await run(mla, c);
    const result = await mla.flashMlaWithKvCache(decodeArgs(c));
    // The device goes before the event loop turns: none of these can have been answered.
    const waiting = [result.out.read(), result.lse.readBits(), mla.finished(), mla.time(async () => mla.flashMlaWithKvCache(decodeArgs(c)))];
    const outcomes = Promise.allSettled(waiting);
    device.destroy();
    for (const outcome of await outcomes) {
      expect(outcome).toMatchObject({ status: 'rejected', reason: { name: 'MlaError', code: 'device-lost' } });
    }

    const calls: (() => unknown)[] = [
      () => tensor.read(),
      () => mla.flashMlaWithKvCache(decodeArgs(c)),
      () => mla.tensor(decodeArgs(c).q as HostTensor),
      () => mla.createKvCache({ numBlocks: 2 }),
      () => cache.append({ sequences: [sequence], counts: [1], latent: { data: new Uint16Array(576), shape: [1, 1, 576] } }),
      () => mla.finished(),
      () => mla.time(async () => undefined),
    ];
    for (const call of calls) {
      const error = await expectRefusal(call, 'device-lost');
      expect(error.message).toMatch(/createMla/);
    }
    // What was read before stays right, and giving things back is no error.
    expectRight(c, before);
    expect(cache.length(sequence)).toBe(0);
    tensor.destroy();
    result.out.destroy();
    cache.destroy();
    await mla.destroy();

    const next = await createMla({ backend: 'webgpu', gpu: await softwareGpu() });
    expectRight(c, await run(next, c));
    await next.destroy();
    expect(stray).toEqual([]);
  });

  test('while a decode is being enqueued', async () => {
    const device = await softwareDevice();
    const mla = await createMla({ backend: 'webgpu', device });
    const calls = Array.from({ length: 4 }, () => mla.flashMlaWithKvCache(decodeArgs(c)).then(take));
    const outcomes = Promise.allSettled(calls);
    device.destroy();
    for (const outcome of await outcomes) {
      expect(outcome).toMatchObject({ status: 'rejected', reason: { code: 'device-lost' } });
    }
    await mla.destroy();
    expect(stray).toEqual([]);
  });

  test('before the first call', async () => {
    const device = await softwareDevice();
    device.destroy();
    await device.lost;
    const refused = await createMla({ backend: 'webgpu', device }).then(
      (mla) => run(mla, c),
      (error: unknown) => Promise.reject(error),
    ).catch((error: unknown) => error);
    expect(refused).toMatchObject({ name: 'MlaError', code: 'device-lost' });
    expect(stray).toEqual([]);
  });
});

describe('a device that the caller brought', () => {
  test('lives on after destroy', async () => {
    const device = await softwareDevice();
    let lost = false;
    void device.lost.then(() => (lost = true));
    const mla = await createMla({ backend: 'webgpu', device });
    expectRight(c, await run(mla, c));
    await mla.destroy();
    await device.queue.onSubmittedWorkDone();
    expect(lost).toBe(false);

    // It serves another instance, and work of the caller's own.
    const again = await createMla({ backend: 'webgpu', device });
    expectRight(c, await run(again, c));
    await again.destroy();
    const buffer = device.createBuffer({ size: 4, usage: GPUBufferUsage.MAP_READ | GPUBufferUsage.COPY_DST });
    await buffer.mapAsync(1);
    buffer.destroy();
    device.destroy();
  });

  test('serves two instances at once, which do not touch each other', async () => {
    const device = await softwareDevice();
    const [one, two] = [await createMla({ backend: 'webgpu', device }), await createMla({ backend: 'webgpu', device })];
    const results = await Promise.all([run(one, c), run(two, c)]);
    for (const result of results) expectRight(c, result);
    await one.destroy();
    expectRight(c, await run(two, c));
    await two.destroy();
    device.destroy();
  });

  test('its buffers are read in place and never destroyed', async () => {
    const device = await softwareDevice();
    const mla = await createMla({ backend: 'webgpu', device });
    const usage = GPUBufferUsage.STORAGE | GPUBufferUsage.COPY_SRC | GPUBufferUsage.COPY_DST;
    const upload = (bits: Uint16Array<ArrayBuffer>): GPUBuffer => {
      const buffer = device.createBuffer({ size: Math.ceil(bits.byteLength / 4) * 4, usage });
      device.queue.writeBuffer(buffer, 0, bits.buffer, bits.byteOffset, bits.byteLength);
      return buffer;
    };
    const args = decodeArgs(c);
    const q: GpuBufferTensor = { gpuBuffer: upload(c.q as Uint16Array<ArrayBuffer>), shape: args.q.shape, dtype: 'bf16' };
    const kvCache: GpuBufferTensor = { gpuBuffer: upload(c.kvCache as Uint16Array<ArrayBuffer>), shape: args.kvCache.shape, dtype: 'bf16' };
    const held = (await mla.memory()).bytes;
    const adopted = await mla.tensor(kvCache);
    expect((await mla.memory()).bytes).toBe(held);
    for (const kv of [kvCache, adopted, kvCache]) expectRight(c, await run(mla, c, { q, kvCache: kv }));
    adopted.destroy();
    expectRight(c, await run(mla, c, { q, kvCache }));

    // The caller's output buffer, as a tensor.
    const size = c.b * c.sQ * c.hQ * c.dV * 2;
    const mine = device.createBuffer({ size, usage });
    const out = await mla.tensor({ gpuBuffer: mine, shape: [c.b, c.sQ, c.hQ, c.dV], dtype: 'bf16' });
    const { lse } = await mla.flashMlaWithKvCache({ ...args, q, kvCache, out });
    expectRight(c, await take({ out, lse }));
    await mla.destroy();

    // Still there: the device copies from it without an error.
    device.pushErrorScope('validation');
    const encoder = device.createCommandEncoder();
    for (const buffer of [mine, q.gpuBuffer, kvCache.gpuBuffer]) encoder.copyBufferToBuffer(buffer, 0, buffer === mine ? q.gpuBuffer : mine, 0, 256);
    device.queue.submit([encoder.finish()]);
    expect(await device.popErrorScope()).toBeNull();
    device.destroy();
  });

  test('buffers that cannot serve are refused', async () => {
    const device = await softwareDevice();
    const mla = await createMla({ backend: 'webgpu', device });
    const shape = [c.b, c.sQ, c.hQ, c.dQk];
    const small = device.createBuffer({ size: 256, usage: GPUBufferUsage.STORAGE | GPUBufferUsage.COPY_SRC });
    const useless = device.createBuffer({ size: c.q.byteLength, usage: GPUBufferUsage.COPY_DST });
    for (const gpuBuffer of [small, useless, {} as GPUBuffer, undefined as unknown as GPUBuffer]) {
      await expectRefusal(() => run(mla, c, { q: { gpuBuffer, shape, dtype: 'bf16' } }), 'invalid-argument');
    }
    await expectRefusal(() => run(mla, c, { q: { gpuBuffer: small, shape, dtype: 'f64' as 'f32' } }), 'invalid-dtype', 'q');
    expectRight(c, await run(mla, c));
    await mla.destroy();
    device.destroy();
  });

  test('something that is no device', async () => {
    await expectRefusal(() => createMla({ backend: 'webgpu', device: {} as GPUDevice }), 'invalid-argument', 'device');
  });
});

describe('a device with WebGPU’s default limits', () => {
  test('a pool beyond one binding is spread over several, and read across the seam', async () => {
    const device = await softwareDevice();
    const blockBytes = 64 * 576 * 2;
    const limit = device.limits.maxStorageBufferBindingSize;
    expect(limit).toBe(128 * 1024 * 1024);
    const mla = await createMla({ backend: 'webgpu', device });
    const seam = Math.floor(limit / blockBytes);
    const cache = await mla.createKvCache({ numBlocks: seam + 10 });
    // Blocks are handed out from 0 upwards: a sequence that is never written takes those far below the seam.
    const filler = cache.createSequence();
    await cache.reserve({ sequences: [filler], counts: [(seam - 3) * 64] });
    const across = cache.createSequence();
    const tokens = 6 * 64;
    const kv = makeCase({ b: 1, sQ: 1, sK: tokens, hQ: 16, poison: false });
    // The case's pages in logical order.
    const rows = new Uint16Array(tokens * 576);
    for (let block = 0; block < 6; block++) {
      const id = kv.blockTable[block]!;
      rows.set(kv.kvCache.subarray(id * 64 * 576, (id + 1) * 64 * 576), block * 64 * 576);
    }
    await cache.append({ sequences: [across], counts: [tokens], latent: { data: rows, shape: [tokens, 1, 576] } });
    const blocks = [...cache.blocks(across)];
    expect(Math.min(...blocks)).toBeLessThan(seam);
    expect(Math.max(...blocks)).toBeGreaterThanOrEqual(seam);
    const given = { kvCache: cache.tensor(), blockTable: cache.blockTable([across]), cacheSeqlens: cache.cacheSeqlens([across]) };
    expectRight(kv, await run(mla, kv, given));

    // A copy on write across the seam too.
    const fork = cache.fork(across);
    cache.truncate(fork, tokens - 1);
    await cache.append({ sequences: [fork], counts: [1], latent: { data: rows.slice(-576), shape: [1, 1, 576] } });
    expectRight(kv, await run(mla, kv, { kvCache: cache.tensor(), blockTable: cache.blockTable([fork]), cacheSeqlens: cache.cacheSeqlens([fork]) }));
    cache.destroy();

    const error = await expectRefusal(() => mla.createKvCache({ numBlocks: 2 ** 24 }), 'limit-exceeded', 'numBlocks');
    expect(error.message).toMatch(/maxStorageBuffer|maxBufferSize/);
    // The largest pool there can be, which must then be possible to ask for by its number.
    expect(error.expected).toMatch(/\d+ blocks|at most \d+/);
    await mla.destroy();
    device.destroy();
  });
});
