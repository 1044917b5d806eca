/** Measurements whose wait for the device fails: the next one works, and nothing is left behind. */
import { afterAll, describe, expect, test } from 'vitest';
import { GpuContext } from '../src/webgpu/device.ts';
import { DeviceMemory } from '../src/webgpu/memory.ts';
import { Timer } from '../src/webgpu/timer.ts';
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
