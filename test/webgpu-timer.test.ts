/** Measurements that fail: where the wait for the device does, or memory for timestamps is refused, the next one works, nothing is left behind, and nobody else hears of it. */
import { afterAll, describe, expect, test } from 'vitest';
import { GpuContext } from '../src/webgpu/device.ts';
import { DeviceMemory } from '../src/webgpu/memory.ts';
import { Timer } from '../src/webgpu/timer.ts';
import { createMla } from '../src/node.ts';
import { altered } from './altered.ts';
import { makeCase } from './cases.ts';
import { expectRefusal, expectRight, run } from './check.ts';
import { scarceAdapter, type Scarcity } from './scarce-gpu.ts';
import { softwareGpu } from './software-adapter.ts';

const opened: GPUDevice[] = [];
afterAll(() => opened.forEach((device) => device.destroy()));

/** A timer whose waits fail while `failing` holds, and a pass for it to measure. */
async function timerOn(requiredFeatures: GPUFeatureName[]): Promise<{ timer: Timer; memory: DeviceMemory; pass: () => void; failing: { now: boolean } }> {
  const adapter = (await (await softwareGpu()).requestAdapter())!;
  const device = await adapter.requestDevice({ requiredFeatures });
  opened.push(device);
  const gpu = new GpuContext(device, true, adapter.info);
  const memory = new DeviceMemory(gpu, () => undefined);
  const failing = { now: false };
  const timer = new Timer(gpu, memory, async (work) => {
    const value = await work;
    if (failing.now) throw new Error('told of something else');
    return value;
  });
  const pass = (): void => {
    const encoder = device.createCommandEncoder();
    encoder.beginComputePass(timer.pass()).end();
    device.queue.submit([encoder.finish()]);
  };
  return { timer, memory, pass, failing };
}

describe.each([['device', ['timestamp-query']], ['wall', []]] as [string, GPUFeatureName[]][])('%s time', (source, features) => {
  test('after a wait that failed, when a measurement ends', async () => {
    const { timer, memory, pass, failing } = await timerOn(features);
    const { bytes } = memory.stats();
    await timer.begin();
    pass();
    failing.now = true;
    await expect(timer.end()).rejects.toThrow('told of something else');
    expect(memory.stats().bytes).toBe(bytes);
    failing.now = false;
    await timer.begin();
    pass();
    const measured = await timer.end();
    expect(measured).toEqual({ ms: expect.any(Number), source });
    expect(measured.ms).toBeGreaterThanOrEqual(0);
  });
});

test('wall time: after a wait that failed, when a measurement begins', async () => {
  const { timer, failing } = await timerOn([]);
  failing.now = true;
  await expect(timer.begin()).rejects.toThrow('told of something else');
  failing.now = false;
  await timer.begin();
  await expect(timer.begin()).rejects.toMatchObject({ code: 'invalid-argument', argument: 'time' });
  expect(await timer.end()).toMatchObject({ source: 'wall' });
});

test('an instance that is destroyed while its first measurement begins leaves nothing on the caller’s device', async () => {
  const adapter = (await (await softwareGpu()).requestAdapter())!;
  const device = await adapter.requestDevice({ requiredFeatures: ['timestamp-query'] });
  opened.push(device);
  let alive = 0;
  let destroyed: Promise<void> | undefined;
  const counted = <T extends { destroy(): undefined }>(made: T): T => {
    // Both are there, and the device has not said yes.
    if (++alive === 2) queueMicrotask(() => (destroyed = mla.destroy()));
    return altered(made, { destroy: () => void (alive--, made.destroy()) } as Partial<T>);
  };
  const watched = altered(device, {
    createQuerySet: (descriptor: GPUQuerySetDescriptor) => counted(device.createQuerySet(descriptor)),
    createBuffer: (descriptor: GPUBufferDescriptor) => (descriptor.label === 'timer' ? counted(device.createBuffer(descriptor)) : device.createBuffer(descriptor)),
  });
  const mla = await createMla({ backend: 'webgpu', device: watched, tune: 'off' });
  await expectRefusal(() => mla.time(async () => undefined), 'destroyed');
  await destroyed;
  expect(alive).toBe(0);
});

describe('no memory for timestamps', () => {
  const c = makeCase({ b: 2, sQ: 1, sK: 100, hQ: 4, dV: 32, rope: 16 });
  const open = async (scarcity: Scarcity, tune: 'auto' | 'off'): ReturnType<typeof createMla> => {
    const real = await softwareGpu();
    const gpu = altered(real, { requestAdapter: async (options?: GPURequestAdapterOptions) => scarceAdapter((await real.requestAdapter(options))!, scarcity) });
    return createMla({ backend: 'webgpu', gpu, tune });
  };

  test('is told to who measures, and to nobody else; with memory the next measurement works', async () => {
    const scarcity: Scarcity = { label: 'timer', refused: 0 };
    const mla = await open(scarcity, 'off');
    for (let i = 0; i < 2; i++) await expectRefusal(() => mla.time(() => run(mla, c)), 'out-of-memory');
    expect(scarcity.refused).toBe(2);
    expectRight(c, await run(mla, c));
    scarcity.label = undefined;
    expect(await mla.time(() => run(mla, c))).toMatchObject({ source: 'device' });
    await mla.destroy();
  });

  test('ends tuning in the background, with the reason, and rejects no call', async () => {
    const scarcity: Scarcity = { label: 'timer', refused: 0 };
    const mla = await open(scarcity, 'auto');
    while (mla.info.tuning === undefined) expectRight(c, await run(mla, c));
    expect(mla.info.tuning).toMatch(/was not tuned: .*making a timer/);
    expect(scarcity.refused).toBe(1);
    expect(mla.info.schedule.tuned ?? []).toEqual([]);
    expectRight(c, await run(mla, c));
    await mla.destroy();
  });
});
