/** What a device has no room for, or cannot bind: whoever asks is told, as what it is; nobody else is, and the next call works. */
import { afterEach, describe, expect, test } from 'vitest';
import type { DecodeArgs, Mla } from '../src/mla.ts';
import { createMla } from '../src/node.ts';
import { partialBytes } from '../src/plan.ts';
import { MlaHost } from '../src/host.ts';
import type { ShapeClass } from '../src/shape-class.ts';
import { noStore } from '../src/tune-store.ts';
import { createWebGpuBackend } from '../src/webgpu/backend.ts';
import { BindGroups } from '../src/webgpu/bind-groups.ts';
import { decodeCandidates, scheduleInfo } from '../src/webgpu/config.ts';
import { GpuContext } from '../src/webgpu/device.ts';
import { KernelCache } from '../src/webgpu/kernel.ts';
import { DeviceMemory } from '../src/webgpu/memory.ts';
import { allocate } from '../src/webgpu/storage.ts';
import { TuneBench } from '../src/webgpu/tune-bench.ts';
import { tuneLoad } from '../src/webgpu/tune-load.ts';
import { altered } from './altered.ts';
import { decodeArgs, makeCase } from './cases.ts';
import { expectRefusal, expectRight, run, take } from './check.ts';
import { scarce, scarceAdapter, type Scarcity } from './scarce-gpu.ts';
import { softwareDevice, softwareGpu } from './software-adapter.ts';

const c = makeCase({ b: 2, sQ: 2, sK: 900, hQ: 16, ragged: true, dV: 32, rope: 16 });

const ends: (() => Promise<void> | void)[] = [];
afterEach(async () => {
  for (const end of ends.splice(0).reverse()) await end();
});

/** A device of the test's own, on which errors that nobody caught are kept. */
async function callersDevice(): Promise<{ device: GPUDevice; uncaught: string[] }> {
  const device = await softwareDevice();
  const uncaught: string[] = [];
  device.addEventListener('uncapturederror', (event) => {
    event.preventDefault();
    uncaught.push((event as GPUUncapturedErrorEvent).error.message);
  });
  ends.push(() => device.destroy());
  return { device, uncaught };
}

describe.each(['our own', 'the caller’s'])('out of memory, on %s device', (whose) => {
  async function instance(label: string): Promise<{ mla: Mla; scarcity: Scarcity; uncaught: readonly string[] }> {
    const scarcity: Scarcity = { label, refused: 0 };
    const { device, uncaught } = await callersDevice();
    const mla = await createMla({
      backend: 'webgpu', tune: 'off', ...(whose === 'our own' ? { adapter: scarceAdapter((await (await softwareGpu()).requestAdapter())!, scarcity) } : { device: scarce(device, scarcity) }),
    });
    ends.push(() => mla.destroy());
    return { mla, scarcity, uncaught };
  }

  /** `work` is refused, and nothing but that is heard of it. */
  async function refused({ mla, scarcity, uncaught }: Awaited<ReturnType<typeof instance>>, work: () => Promise<unknown>): Promise<void> {
    await expectRefusal(work, 'out-of-memory');
    expect(scarcity.refused).toBeGreaterThan(0);
    await mla.finished();
    await mla.memory();
    expect(uncaught).toEqual([]);
    scarcity.label = undefined;
  }

  test.each(['plan', 'partials', 'bf16 [2, 2, 16, 48]', 'bf16 [2, 2, 16, 32]', 'f32 [2, 16, 2]'])('%s of a decode call', async (label) => {
    const made = await instance(label);
    await refused(made, () => made.mla.flashMlaWithKvCache(decodeArgs(c)));
    if (label === 'plan' || label === 'partials') {
      // Others find memory that lies idle.
      const held = (await made.mla.memory()).bytes;
      made.scarcity.label = label;
      await refused(made, () => made.mla.flashMlaWithKvCache(decodeArgs(c)));
      expect((await made.mla.memory()).bytes, 'what was refused is not counted').toBe(held);
    }
    expectRight(c, await run(made.mla, c));
    await made.mla.finished();
  });

  test('a plan that is kept for the next layer', async () => {
    const made = await instance('plan');
    const blockTable = await made.mla.tensor({ data: c.blockTable, shape: [c.b, c.maxBlocksPerSeq], dtype: 'i32' });
    const args: DecodeArgs = { ...decodeArgs(c), blockTable };
    await refused(made, () => made.mla.flashMlaWithKvCache(args));
    const held = (await made.mla.memory()).bytes;
    made.scarcity.label = 'plan';
    await refused(made, () => made.mla.flashMlaWithKvCache(args));
    expect((await made.mla.memory()).bytes).toBe(held);
    expectRight(c, await take(await made.mla.flashMlaWithKvCache(args)));
  });

  test('a tensor', async () => {
    const made = await instance('f32 [64]');
    const other = await made.mla.tensor({ data: Float32Array.of(1, 2), shape: [2] });
    await refused(made, () => made.mla.tensor({ data: new Float32Array(64), shape: [64], dtype: 'f32' }));
    expect(await other.read()).toEqual(Float32Array.of(1, 2));
  });

  test.each(['slots', 'bf16 [3, 48]'])('%s of an append', async (label) => {
    const made = await instance(label);
    const cache = await made.mla.createKvCache({ numBlocks: 4, headDim: 48, headDimV: 32 });
    const sequence = cache.createSequence();
    const rows = { data: new Uint16Array(3 * 48).fill(0x3f80), shape: [3, 48] };
    await refused(made, () => cache.append({ sequences: [sequence], counts: [3], latent: rows }));
    expect([cache.length(sequence), cache.stats().freeBlocks]).toEqual([0, 4]);
    await cache.append({ sequences: [sequence], counts: [3], latent: rows });
    expect((await cache.tensor().read()).slice(0, 3 * 48)).toEqual(new Float32Array(3 * 48).fill(1));
  });

  test('a block’s copy, and what flushes the cache', async () => {
    const made = await instance('block copy');
    const cache = await made.mla.createKvCache({ numBlocks: 4, headDim: 48, headDimV: 32 });
    const sequence = cache.createSequence();
    await cache.reserve({ sequences: [sequence], counts: [3] });
    const fork = cache.fork(sequence);
    await refused(made, () => cache.reserve({ sequences: [fork], counts: [2] }));
    expect([cache.length(fork), cache.length(sequence)]).toEqual([3, 3]);
    made.scarcity.label = 'cache flush';
    await refused(made, () => made.mla.flushCache());
    await made.mla.flushCache();
  });
});

describe('more than a binding', () => {
  test.each([
    ['q', [512, 8, 128, 576], /^at most \d+ B$/], ['out', [512, 8, 128, 512], /^at most \d+ B$/], ['tensor', [512, 8, 128, 576], /blocks of \d+ B/], ['lse', [65536, 128, 16], /^at most \d+ B$/],
  ] as const)('%s %j: the error has its name, and how large it may be', async (argument, shape, expected) => {
    const { device } = await callersDevice();
    const gpu = new GpuContext(device, false, undefined);
    const memory = new DeviceMemory(gpu, () => undefined);
    const error = await expectRefusal(async () => allocate({ id: 1, dtype: argument === 'lse' ? 'f32' : 'bf16', shape, argument }, memory, gpu.limits), 'limit-exceeded', argument);
    expect(error.expected).toMatch(expected);
    expect(memory.stats().allocated).toBe(0);
  });

  test('a q: its rows are in one', async () => {
    const mla = await createMla({ backend: 'webgpu', gpu: await softwareGpu(), limits: 'default', tune: 'off' });
    ends.push(() => mla.destroy());
    const [b, hQ] = [912, 128];
    const q = { data: new Uint16Array(b * hQ * 576), shape: [b, 1, hQ, 576] };
    const args = { q, kvCache: { data: new Uint16Array(16 * 576), shape: [1, 16, 1, 576] }, blockTable: new Int32Array(b), cacheSeqlens: new Int32Array(b).fill(1), headDimV: 512 };
    expect(q.data.byteLength).toBeGreaterThan(mla.info.limits['maxStorageBufferBindingSize']!);
    const error = await expectRefusal(() => mla.flashMlaWithKvCache(args), 'limit-exceeded', 'q');
    expect(error.got).toBe(`${q.data.byteLength} B`);
  });

  test('a caller’s buffer', async () => {
    const { device, uncaught } = await callersDevice();
    const mla = await createMla({ backend: 'webgpu', tune: 'off', device });
    ends.push(() => mla.destroy());
    const blockBytes = 64 * 48 * 2;
    const numBlocks = Math.ceil((device.limits.maxStorageBufferBindingSize + 1) / blockBytes);
    const gpuBuffer = device.createBuffer({ size: numBlocks * blockBytes, usage: 0x80 | 0x04 | 0x08 });
    await expectRefusal(() => mla.flashMlaWithKvCache({ ...decodeArgs(c), kvCache: { gpuBuffer, shape: [numBlocks, 64, 1, 48], dtype: 'bf16' } }), 'limit-exceeded', 'gpuBuffer');
    await mla.finished();
    expect(uncaught).toEqual([]);
  });

  test('partial results of the most parts there may be: a call takes what its own need', async () => {
    const { device: real } = await callersDevice();
    const most = 1 << 20;
    const device = altered(real, { limits: altered(real.limits, { maxStorageBufferBindingSize: most }) });
    const mla = new MlaHost(await createWebGpuBackend({ device, tune: 'off', tier: 'base' }, '', { store: noStore('a test'), processors: 512 }));
    ends.push(() => mla.destroy());
    expect(partialBytes(mla.info.schedule.slots, c)).toBeGreaterThan(most);
    expectRight(c, await run(mla, c));
  });

  test('partial results of the most parts there may be: a trial of the tuner is refused', async () => {
    const { device } = await callersDevice();
    const gpu = new GpuContext(device, false, (await (await softwareGpu()).requestAdapter())!.info);
    const bindGroups = new BindGroups(device);
    const memory = new DeviceMemory(gpu, (buffer) => bindGroups.forget(buffer));
    const most = 1 << 20;
    const traits = { limits: { ...gpu.limits, maxStorageBufferBindingSize: most }, vendor: gpu.vendor, architecture: '', kind: 'software', tier: 'base', processors: 8 } as const;
    const schedule = scheduleInfo(traits);
    const machine = { gpu, memory, kernels: new KernelCache(gpu), bindGroups, traits };
    const shape: ShapeClass = { rows: 16, hKv: 1, dQk: 576, dV: 512, dtype: 'bf16', load: 'medium' };
    const config = decodeCandidates(shape, shape.rows, traits).fits[0]!;
    const slots = 2 * schedule.slots;
    expect(partialBytes(slots, { sQ: 1, hQ: config.rows, dV: 512 })).toBeGreaterThan(most);
    expect(partialBytes(slots / 2, { sQ: 1, hQ: config.rows, dV: 512 })).toBeLessThan(most);

    const bench = new TuneBench({ ...machine, schedule }, shape, tuneLoad(shape, traits, 8192)!, async () => undefined);
    ends.push(() => bench.close());
    await bench.open();
    expect(await bench.measure(config, slots, Infinity)).toBe('partial results larger than a binding');
  });
});
