/** The cuda backend's host side, as far as it can be held to account without a GPU: on a driver that is not there. */
import { afterEach, describe, expect, test } from 'vitest';
import type { Backend } from '../src/backend.ts';
import { openBackend } from '../src/create.ts';
import { createCpuBackend } from '../src/cpu/backend.ts';
import { createCudaBackend } from '../src/cuda/backend.ts';
import { CUBINS, type Kernels } from '../src/cuda/cubin.ts';
import { DECODE_PARAMS } from '../src/cuda/params.ts';
import { MlaHost } from '../src/host.ts';
import type { MemoryStats, Mla } from '../src/mla.ts';
import { decodeArgs, makeCase, type CaseOptions } from './cases.ts';
import { expectRefusal } from './check.ts';
import { FakeDriver } from './fake-driver.ts';

const kernels: Kernels = {
  manifest: { nvcc: '13.0.88', driver: 13000, sources: {}, cubins: {} as Kernels['manifest']['cubins'] },
  images: Object.fromEntries(CUBINS.map((name) => [name, new ArrayBuffer(16)])) as Kernels['images'],
};

const open = (driver: FakeDriver): Promise<Backend> => createCudaBackend({}, 'test', { loadDriver: async () => driver, readKernels: async () => kernels });

const made: Mla[] = [];
async function instance(driver = new FakeDriver()): Promise<{ driver: FakeDriver; mla: Mla }> {
  const mla = new MlaHost(await open(driver));
  made.push(mla);
  return { driver, mla };
}
afterEach(async () => {
  for (const mla of made.splice(0)) await mla.destroy();
});

const view = (bytes: Uint8Array): DataView => new DataView(bytes.buffer, bytes.byteOffset, bytes.length);

describe('launches', () => {
  async function launched(options: CaseOptions): Promise<FakeDriver['launches']> {
    const { driver, mla } = await instance();
    await mla.flashMlaWithKvCache(decodeArgs(makeCase(options)));
    return driver.launches;
  }

  test('one row tile, nothing split', async () => {
    const [decode, ...rest] = await launched({ b: 132, sQ: 1, sK: 64, hQ: 16 });
    expect(rest).toEqual([]);
    expect(decode).toMatchObject({ kernel: 'decode_bf16_few', grid: [1, 132, 1], threads: 320, sharedBytes: 232448, attributes: [] });
    const params = view(decode!.params);
    for (const [name, value] of Object.entries({ tableStride: 2, rows: 16, group: 16, hKv: 1, sQ: 1, causal: 0 })) {
      expect(params.getInt32(DECODE_PARAMS[name as keyof typeof DECODE_PARAMS], true), name).toBe(value);
    }
    expect(params.getFloat32(DECODE_PARAMS.scaleLog2, true)).toBeCloseTo(576 ** -0.5 * Math.LOG2E, 8);
    // The maps: type, rank, address, dimensions as the fake notes them.
    expect([0, 4].map((at) => params.getInt32(at, true))).toEqual([9, 5]);
    expect([16, 24, 32, 40, 48].map((at) => Number(params.getBigUint64(at, true)))).toEqual([64, 64, 9, 1, 134]);
    expect([256, 260].map((at) => params.getInt32(at, true))).toEqual([9, 3]);
    expect([272, 280, 288].map((at) => Number(params.getBigUint64(at, true)))).toEqual([64, 132 * 16, 9]);
    expect(params.getBigUint64(DECODE_PARAMS.kvLow + 8, true)).toBe(params.getBigUint64(DECODE_PARAMS.kvHigh + 8, true));
  });

  test('two row tiles in a cluster, eight splits', async () => {
    const [decode, combine] = await launched({ b: 1, sQ: 1, sK: 500, hQ: 128, dtype: 'f16' });
    expect(decode).toMatchObject({ kernel: 'decode_f16_pair', grid: [2, 8, 1], attributes: [[4, 2, 1, 1]] });
    expect(combine).toMatchObject({ kernel: 'combine_f16', grid: [32, 1, 1], threads: 256, sharedBytes: 180_000, attributes: [[6, 1, 0, 0]] });
    expect(combine!.params.slice(0, 96)).toEqual(decode!.params.slice(512, 608));
    // Two partial results a part, a row of 512 f16 each; then the LSEs and scales.
    const params = view(decode!.params);
    expect(Number(params.getBigUint64(DECODE_PARAMS.partialInfo, true) - params.getBigUint64(DECODE_PARAMS.partialOut, true))).toBe(2 * 8 * 128 * 512 * 2);
  });

  test('many splits', async () => {
    const [decode, combine] = await launched({ b: 1, sQ: 1, sK: 4096, hQ: 16 });
    expect(decode).toMatchObject({ kernel: 'decode_bf16_few', grid: [1, 64, 1] });
    expect(combine).toMatchObject({ kernel: 'combine_bf16', grid: [32, 1, 1], threads: 256 });
  });

  test('several KV heads and query tokens: rows are gathered first', async () => {
    const [gather, decode] = await launched({ b: 2, sQ: 2, sK: 64, hQ: 12, hKv: 3, causal: true, softmaxScale: 0 });
    expect(gather).toMatchObject({ kernel: 'gather_q', grid: [6, 1, 1], threads: 256 });
    expect(decode).toMatchObject({ kernel: 'decode_bf16_few', grid: [1, 2, 3] });
    const params = view(decode!.params);
    expect(params.getBigUint64(DECODE_PARAMS.qLow + 8, true)).toBe(view(gather!.params).getBigUint64(8, true));
    expect(params.getInt32(DECODE_PARAMS.causal, true)).toBe(1);
    expect(params.getFloat32(DECODE_PARAMS.scaleLog2, true)).toBeGreaterThan(0);
  });

  test('the plan, the maps and the scratch of a step are made once', async () => {
    const { driver, mla } = await instance();
    const c = makeCase({ b: 2, sQ: 1, sK: 300, hQ: 16 });
    const args = decodeArgs(c);
    const { out, lse } = await mla.flashMlaWithKvCache(args);
    const step = {
      ...args, out, lse,
      q: await mla.tensor(args.q as never), kvCache: await mla.tensor(args.kvCache as never), blockTable: await mla.tensor({ data: c.blockTable, shape: [c.b, c.maxBlocksPerSeq] }),
      metadata: mla.getMlaMetadata({ cacheSeqlens: c.cacheSeqlens, numQTokensPerHeadK: 16, numHeadsK: 1 }),
    };
    await mla.flashMlaWithKvCache(step);
    const before = { uploaded: driver.uploaded, maps: driver.count('cuTensorMapEncodeTiled'), memory: await mla.memory(), launches: driver.launches.length };
    for (let layer = 0; layer < 5; layer++) await mla.flashMlaWithKvCache(step);
    expect({ uploaded: driver.uploaded, maps: driver.count('cuTensorMapEncodeTiled'), memory: await mla.memory(), launches: driver.launches.length - 10 }).toEqual(before);
    // A block table that is gone takes its plan along: its number may not be met again, its memory may.
    step.blockTable.destroy();
    const other = await mla.tensor({ data: c.blockTable, shape: [c.b, c.maxBlocksPerSeq] });
    await mla.flashMlaWithKvCache({ ...step, blockTable: other });
    expect(driver.uploaded).toBeGreaterThan(before.uploaded);
    expect(await mla.memory()).toEqual(before.memory);
  });

  test('a scale that f32 does not hold is no zero: 0 * -inf would be NaN', async () => {
    const [decode] = await launched({ b: 1, sQ: 1, sK: 64, hQ: 16, softmaxScale: 1e-46 });
    expect(view(decode!.params).getFloat32(DECODE_PARAMS.scaleLog2, true)).toBeGreaterThan(0);
  });

  test('an append to a fork that is refused leaves it on the block it had', async () => {
    const { driver, mla } = await instance();
    const cache = await mla.createKvCache({ numBlocks: 4 });
    const sequence = cache.createSequence();
    await cache.append({ sequences: [sequence], counts: [5], latent: { data: new Uint16Array(5 * 576), shape: [5, 576] } });
    const fork = cache.fork(sequence);
    const before = { blocks: cache.blocks(fork), length: cache.length(fork), stats: cache.stats() };
    driver.fail.set('cuLaunchKernelEx', 2);
    await expect(cache.append({ sequences: [fork], counts: [1], latent: { data: new Uint16Array(576), shape: [1, 576] } })).rejects.toMatchObject({ code: 'out-of-memory' });
    driver.fail.clear();
    expect({ blocks: cache.blocks(fork), length: cache.length(fork), stats: cache.stats() }).toEqual(before);
  });

  test('heads without kernels are refused, with a way out', async () => {
    const { driver, mla } = await instance();
    for (const [options, argument] of [[{ dV: 256 }, 'headDimV'], [{ rope: 32 }, 'q'], [{ blockSize: 32 }, 'kvCache']] as const) {
      const error = await expectRefusal(() => mla.flashMlaWithKvCache(decodeArgs(makeCase({ b: 1, sQ: 1, sK: 20, hQ: 2, ...options }))), 'limit-exceeded', argument);
      expect(error.message).toMatch(/webgpu.*cpu/);
    }
    expect(driver.launches).toEqual([]);
  });

  test('appended tokens', async () => {
    const { driver, mla } = await instance();
    const cache = await mla.createKvCache({ numBlocks: 4, blockSize: 16, headDim: 48, headDimV: 32, numHeadsK: 2 });
    const id = cache.createSequence();
    const rows = (width: number) => ({ data: new Uint16Array(5 * 2 * width), shape: [5, 2, width] });
    await cache.append({ sequences: [id], counts: [5], latent: rows(32), rope: rows(16) });
    const fork = cache.fork(id);
    await cache.append({ sequences: [fork], counts: [5], latent: rows(48) });
    const [parts, whole] = driver.launches as [FakeDriver['launches'][0], FakeDriver['launches'][0]];
    expect(parts).toMatchObject({ kernel: 'append', grid: [2, 1, 1], threads: 256 });
    expect([32, 36, 40, 44].map((at) => view(parts.params).getInt32(at, true))).toEqual([10, 2, 4, 6]);
    expect([32, 36, 40, 44].map((at) => view(whole.params).getInt32(at, true))).toEqual([10, 2, 6, 6]);
    expect(view(parts.params).getBigUint64(16, true)).not.toBe(0n);
    expect(view(whole.params).getBigUint64(16, true)).toBe(0n);
    expect(driver.count('cuMemcpyDtoDAsync_v2')).toBe(1); // the shared block
  });

  test('time is that of events around the calls, on a device kept busy until all is enqueued', async () => {
    const { driver, mla } = await instance();
    const args = decodeArgs(makeCase({ b: 1, sQ: 1, sK: 20, hQ: 2 }));
    expect(await mla.time(async () => [await mla.flashMlaWithKvCache(args), await mla.flashMlaWithKvCache(args)])).toEqual({ ms: 1, source: 'device' });
    expect(driver.launches.map(({ kernel }) => kernel)).toEqual(['delay', 'decode_bf16_few', 'delay', 'decode_bf16_few']);
    expect(await mla.time(async () => undefined)).toEqual({ ms: 0, source: 'device' });
    // One that begins while another is waited for has events of its own.
    const read: number[] = [];
    const calls = driver.calls as Record<'cuEventElapsedTime', (...args: number[]) => number>;
    const { cuEventElapsedTime } = calls;
    calls.cuEventElapsedTime = (...args) => {
      read.push(args[1]!, args[2]!);
      return cuEventElapsedTime(...args);
    };
    driver.pending = 50;
    const first = mla.time(() => mla.flashMlaWithKvCache(args));
    await new Promise((resolve) => setImmediate(resolve));
    const both = await Promise.all([first, mla.time(() => mla.flashMlaWithKvCache(args))]);
    expect(both.map(({ source }) => source)).toEqual(['device', 'device']);
    expect(new Set(read).size).toBe(4);
  });
});

describe('memory', () => {
  test('tensors larger than a segment of the upload come back whole, and later writes do not touch them', async () => {
    const { driver, mla } = await instance();
    const bits = new Uint16Array(2_500_001).map((_, i) => i * 7);
    const tensor = await mla.tensor({ data: bits, shape: [bits.length], dtype: 'bf16' });
    const small = await mla.tensor({ data: new Float32Array([1, -2]), shape: [2] });
    const expected = bits.slice();
    bits.fill(0);
    expect(Buffer.compare(Buffer.from((await tensor.readBits()).buffer as ArrayBuffer), Buffer.from(expected.buffer))).toBe(0);
    expect(await small.read()).toEqual(new Float32Array([1, -2]));
    expect(driver.uploaded).toBe(5_000_002 + 4);
  });

  test('everything is given back', async () => {
    const { driver, mla } = await instance();
    await mla.time(() => mla.flashMlaWithKvCache(decodeArgs(makeCase({ b: 2, sQ: 2, sK: 300, hQ: 6, hKv: 3 }))));
    const cache = await mla.createKvCache({ numBlocks: 3 });
    await cache.tensor().read();
    await mla.flushCache();
    expect(driver.held.length).toBeGreaterThan(10);
    await mla.destroy();
    expect(driver.held).toEqual([]);
  });

  test('waiting leaves the event loop free', async () => {
    const { driver, mla } = await instance();
    driver.pending = 300;
    let turns = 0;
    const timer = setInterval(() => turns++, 0);
    await mla.finished();
    clearInterval(timer);
    expect(driver.pending).toBe(0);
    expect(turns).toBeGreaterThan(0);
  });

  test('out of memory: the driver’s words, idle blocks given up first, nothing changed', async () => {
    const driver = new FakeDriver([{ name: 'Small', capability: [9, 0], memoryBytes: 40e6 }]);
    const { mla } = await instance(driver);
    const idle = await mla.tensor({ data: new Uint16Array(15e6), shape: [15e6], dtype: 'bf16' });
    idle.destroy();
    const kept = await mla.createKvCache({ numBlocks: 300 }); // takes the place of what lay idle
    const before = await mla.memory();
    const error = await expectRefusal(() => mla.createKvCache({ numBlocks: 300 }), 'out-of-memory', 'numBlocks');
    expect(error.message).toContain('CUDA_ERROR_OUT_OF_MEMORY (2, out of memory)');
    expect(await mla.memory()).toEqual(before);
    const larger = await expectRefusal(() => mla.createKvCache({ numBlocks: 3000 }), 'limit-exceeded', 'numBlocks');
    expect(larger.expected).toBe('at most 542 blocks of 73728 B');
    kept.destroy();
    (await mla.createKvCache({ numBlocks: 300 })).destroy();
  });

  test('a constructor that fails half-way gives back what it took', async () => {
    for (const call of ['cuStreamCreate', 'cuModuleLoadData', 'cuModuleGetFunction', 'cuFuncSetAttribute', 'cuMemPoolCreate'] as const) {
      const driver = new FakeDriver();
      driver.fail.set(call, 999);
      await expect(open(driver), call).rejects.toMatchObject({ name: 'MlaError' });
      expect(driver.held, call).toEqual([]);
    }
  });
});

describe('a device that fails', () => {
  for (const [code, name] of [[700, 'CUDA_ERROR_ILLEGAL_ADDRESS'], [719, 'CUDA_ERROR_LAUNCH_FAILED']] as const) {
    test(`${name}: device-lost for whoever waits, and from then on`, async () => {
      const { driver, mla } = await instance();
      const { out } = await mla.flashMlaWithKvCache(decodeArgs(makeCase({ b: 1, sQ: 1, sK: 20, hQ: 2 })));
      driver.fail.set('cuEventQuery', code);
      const error = await expectRefusal(() => out.read(), 'device-lost');
      expect(error.message).toContain(`${name} (${code}, `);
      driver.fail.clear();
      for (const call of [() => out.read(), () => mla.finished(), () => mla.tensor({ data: new Float32Array(1), shape: [1] })]) await expectRefusal(call, 'device-lost');
      await mla.destroy();
      expect(driver.held).toEqual([]);
    });
  }

  test('a launch that is refused is a defect, told in the driver’s code', async () => {
    const { driver, mla } = await instance();
    driver.fail.set('cuLaunchKernelEx', 1);
    const error = await expectRefusal(() => mla.flashMlaWithKvCache(decodeArgs(makeCase({ b: 1, sQ: 1, sK: 20, hQ: 2 }))), 'internal');
    expect(error.message).toMatch(/decode_bf16.*\(1\)/);
    driver.fail.clear();
    await mla.flashMlaWithKvCache(decodeArgs(makeCase({ b: 1, sQ: 1, sK: 20, hQ: 2 })));
  });

  test('a read under way when destroy is called settles', async () => {
    const { driver, mla } = await instance();
    const tensor = await mla.tensor({ data: new Float32Array(4), shape: [4] });
    driver.pending = 50;
    const read = tensor.read().then(() => 'read', (error: { code?: string }) => error.code);
    await mla.destroy();
    expect(['read', 'destroyed']).toContain(await read);
    expect(driver.held).toEqual([]);
  });
});

test('auto goes on to the next backend and says why', async () => {
  const backend = await openBackend([
    { backend: 'cuda', open: () => open(new FakeDriver([{ name: 'Fake A100', capability: [8, 0] }])) },
    { backend: 'cpu', open: async (reason) => createCpuBackend(reason) },
  ]);
  expect(backend.info.backend).toBe('cpu');
  expect(backend.info.reason).toMatch(/no cuda: .*compute capability 9\.0, got Fake A100 \(8\.0\)/);
});

test('says what it runs on', async () => {
  const { mla } = await instance();
  expect(mla.info).toMatchObject({ backend: 'cuda', device: 'Fake H100', software: false, schedule: { slots: 132, rowTiles: [64] } });
  expect((await mla.memory()) satisfies MemoryStats).toEqual({ bytes: 0, allocations: 0, allocated: 0, pipelines: 11 });
});
