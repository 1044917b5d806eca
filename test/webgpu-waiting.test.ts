/** Waiting for a device: with rests where it is this machine's processor that computes. */
import { setImmediate as turn } from 'node:timers/promises';
import { expect, test, vi } from 'vitest';
import { GpuContext, openDevice, type Rest } from '../src/webgpu/device.ts';

function context(description: string, rest: Rest, lost: Promise<unknown> = new Promise(() => undefined)): GpuContext {
  const device = { features: new Set(), limits: {}, lost } as unknown as GPUDevice;
  return new GpuContext(device, false, { description } as GPUAdapterInfo, rest);
}

interface Outcome<T> {
  readonly promise: Promise<T>;
  readonly resolve: (value: T) => void;
  readonly reject: (error: Error) => void;
}

/** A promise that comes out as it is told to. */
function outcome<T>(): Outcome<T> {
  let made: Outcome<T> | undefined;
  const promise = new Promise<T>((resolve, reject) => (made = { resolve, reject } as Outcome<T>));
  return { ...made!, promise };
}

test('whoever waits for a software adapter rests until it is done, and no longer', async () => {
  const rest = vi.fn<Rest>(turn);
  const work = outcome<number>();
  const waiting = context('SwiftShader', rest).wait(work.promise);
  for (let i = 0; i < 3; i++) await turn();
  const before = rest.mock.calls.length;
  expect(before).toBeGreaterThanOrEqual(3);
  work.resolve(7);
  expect(await waiting).toBe(7);
  await turn();
  expect(rest.mock.calls.length).toBeLessThanOrEqual(before + 1);
});

test('several who wait rest together', async () => {
  let under = 0;
  let most = 0;
  const gpu = context('SwiftShader', async () => {
    most = Math.max(most, ++under);
    await turn();
    under--;
  });
  const work = outcome<void>();
  const waiting = [gpu.wait(work.promise), gpu.settle(work.promise), gpu.wait(work.promise)];
  await turn();
  work.resolve();
  await Promise.all(waiting);
  expect([most, under]).toEqual([1, 0]);
});

test('nobody rests for a GPU', async () => {
  const rest = vi.fn<Rest>(turn);
  const work = outcome<void>();
  const waiting = context('NVIDIA H200', rest).wait(work.promise);
  await turn();
  work.resolve();
  await waiting;
  expect(rest).not.toHaveBeenCalled();
});

test.each(['work that fails', 'a device that is lost'])('%s ends the rests', async (what) => {
  const rest = vi.fn<Rest>(turn);
  const [work, lost] = [outcome<never>(), outcome<object>()];
  const waiting = context('SwiftShader', rest, lost.promise).wait(work.promise);
  await turn();
  if (what === 'work that fails') work.reject(new Error('refused'));
  else lost.resolve({ reason: 'destroyed', message: 'gone' });
  await expect(waiting).rejects.toThrow(what === 'work that fails' ? 'refused' : /the GPU device was lost/);
  const after = rest.mock.calls.length;
  await turn();
  await turn();
  expect(rest.mock.calls.length).toBe(after);
});

test('work that is over as its device is lost has not been done', async () => {
  const [work, lost] = [outcome<string>(), outcome<object>()];
  const gpu = context('NVIDIA H200', turn, lost.promise);
  const waiting = Promise.allSettled([gpu.wait(work.promise), gpu.settle(work.promise)]);
  // In one turn, the loss last: as browsers may.
  work.resolve('done');
  lost.resolve({ reason: 'unknown', message: 'gone' });
  for (const each of await waiting) expect(each).toMatchObject({ status: 'rejected', reason: { name: 'MlaError', code: 'device-lost' } });
});

test.each(['wait', 'settle'] as const)('%s: a device that is lost rejects its work before it says so', async (how) => {
  const [work, lost] = [outcome<never>(), outcome<object>()];
  const waiting = context('NVIDIA H200', turn, lost.promise)[how](work.promise);
  work.reject(new DOMException('Device is lost', 'OperationError'));
  setTimeout(() => lost.resolve({ reason: 'unknown', message: 'gone' }), 5);
  await expect(waiting).rejects.toMatchObject({ name: 'MlaError', code: 'device-lost' });
});

test.each(['wait', 'settle'] as const)('%s: a refusal without a loss is an error with its cause', async (how) => {
  const cause = new DOMException('no', 'OperationError');
  await expect(context('NVIDIA H200', turn)[how](Promise.reject(cause))).rejects.toMatchObject({ name: 'MlaError', code: 'internal', cause });
});

test.each(['null', 'a rejection'])('an error scope of a lost device, which answers with %s, tells of the loss', async (answer) => {
  const device = {
    features: new Set(), limits: {}, lost: Promise.resolve({ reason: 'unknown', message: 'gone' }),
    pushErrorScope: () => undefined, popErrorScope: async () => (answer === 'null' ? null : Promise.reject(new Error('lost'))),
  } as unknown as GPUDevice;
  const gpu = new GpuContext(device, false, {} as GPUAdapterInfo);
  expect(await gpu.watch('trying', () => undefined).fault).toMatchObject({ name: 'MlaError', code: 'device-lost' });
});

test.each([
  ['SwiftShader', {}, true], ['Microsoft Basic Render Driver', {}, true], ['llvmpipe (LLVM 19)', {}, true], ['NVIDIA H200', {}, false],
  ['of a browser that says so of the adapter', { isFallbackAdapter: true }, true], ['of one that says so in its info', { info: { description: 'x', isFallbackAdapter: true } }, true],
])('%s %j: a program, %s', async (description, told, software) => {
  const device = { features: new Set(), limits: {}, lost: new Promise(() => undefined), addEventListener: () => undefined };
  const adapter = { features: new Set(), limits: {}, info: { description }, requestDevice: async () => device, ...told } as unknown as GPUAdapter;
  expect((await openDevice({ adapter })).software).toBe(software);
});
