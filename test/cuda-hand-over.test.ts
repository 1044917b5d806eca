/** Models where the kernels are those of attention alone: what is handed over to the host and back, and what stays. */
import { join } from 'node:path';
import { afterEach, describe, expect, test } from 'vitest';
import type { Backend } from '../src/backend.ts';
import { createCpuBackend } from '../src/cpu/backend.ts';
import { createCudaBackend } from '../src/cuda/backend.ts';
import { CUBINS, type Kernels } from '../src/cuda/cubin.ts';
import { HandOver } from '../src/cuda/hand-over.ts';
import { MlaHost } from '../src/host.ts';
import { createMla } from '../src/index.ts';
import type { Mla, MlaTensor } from '../src/mla.ts';
import { folderSource } from '../src/model/folder-source.ts';
import { loadDecoder, loadModel, readConfig } from '../src/model/model.ts';
import type { ModelSource } from '../src/model/source.ts';
import { runOps } from '../src/run-ops.ts';
import { expectRefusal } from './check.ts';
import { FakeDriver } from './fake-driver.ts';
import { rmsNorm } from './ops-reference.ts';

const source = folderSource(join(import.meta.dirname, 'fixtures/models/tiny-v3'));
const kernels: Kernels = {
  manifest: { nvcc: '13.0.88', driver: 13000, sources: {}, cubins: {} as Kernels['manifest']['cubins'] },
  images: Object.fromEntries(CUBINS.map((name) => [name, new ArrayBuffer(16)])) as Kernels['images'],
};

const made: Mla[] = [];
const keep = (mla: Mla): Mla => (made.push(mla), mla);
afterEach(async () => {
  for (const mla of made.splice(0)) await mla.destroy();
});

async function cuda(): Promise<{ driver: FakeDriver; mla: Mla }> {
  const driver = new FakeDriver();
  return { driver, mla: keep(new MlaHost(await createCudaBackend({}, 'test', { loadDriver: async () => driver, readKernels: async () => kernels }))) };
}

/** A backend of which only attention's operations are had, as cuda's, and what it was asked for. */
function attentionOnly(): { native: Backend; calls: string[] } {
  const calls: string[] = [];
  const native = new Proxy(createCpuBackend('test'), {
    get: (target, name) => {
      if (name === 'run') return undefined;
      const value = Reflect.get(target, name) as unknown;
      if (typeof value !== 'function') return value;
      return (...args: unknown[]) => {
        calls.push(String(name));
        return (value as (...args: unknown[]) => unknown).apply(target, args);
      };
    },
  });
  return { native, calls };
}

const floats = (mla: Mla, ...values: number[]): Promise<MlaTensor> => mla.tensor({ data: Float32Array.from(values), shape: [values.length], dtype: 'f32' });

describe('a model', () => {
  test('gives the logits of a backend that runs all of it; attention and append are the kernels’', async () => {
    const { native, calls } = attentionOnly();
    const config = await readConfig(source);
    const ids = Array.from({ length: 70 }, (_, i) => (i * 37) % config.vocabSize);
    const results: Float32Array[] = [];
    for (const mla of [new MlaHost(new HandOver(native)), await createMla({ backend: 'cpu' })].map(keep)) {
      const decoder = await loadDecoder(mla, source, config);
      const sequence = decoder.cache.createSequence();
      await decoder.logits([{ sequence, ids: ids.slice(0, 40) }]);
      calls.length = 0;
      results.push(await decoder.logits([{ sequence, ids: ids.slice(40) }]));
      decoder.destroy();
    }
    expect(results[0]).toEqual(results[1]);
  });

  test('after the first step weights stay on the host: a layer moves queries and their results, and the cache not at all', async () => {
    const { native, calls } = attentionOnly();
    const mla = keep(new MlaHost(new HandOver(native)));
    const config = await readConfig(source);
    const decoder = await loadDecoder(mla, source, config);
    const [sequence] = [decoder.cache.createSequence()];
    for (const id of [1, 2]) await decoder.step([{ sequence, ids: [id] }], [undefined]);
    calls.length = 0;
    await decoder.step([{ sequence, ids: [3] }], [undefined]);
    const count = (name: string): number => calls.filter((call) => call === name).length;
    expect([count('decode'), count('append')]).toEqual([config.layers, config.layers]);
    // Down: q after the attention before, and what that made. Up: q, out, and the appended rows. And the block table, a step.
    expect(count('read')).toBe(2 * config.layers);
    expect(count('create')).toBe(3 * config.layers + 1);
    decoder.destroy();
  });

  test('of other heads than the kernels have is refused before its weights are read', async () => {
    const { driver, mla } = await cuda();
    const read: string[] = [];
    const watched: ModelSource = { name: source.name, size: (file) => source.size(file), read: (file, range) => (read.push(file), source.read(file, range)) };
    const before = driver.count('cuMemAllocFromPoolAsync');
    const error = await expectRefusal(() => loadModel(mla, watched), 'unsupported-model', 'mla');
    expect(error.message).toMatch(/512.*64.*webgpu/);
    expect(read.filter((file) => file !== 'config.json')).toEqual([]);
    expect(driver.count('cuMemAllocFromPoolAsync')).toBe(before);
  });
});

describe('on cuda', () => {
  const [dV, rope, heads] = [512, 64, 2];
  const width = dV + rope;

  test('a step’s rows are appended by the kernel, and its queries are on the device when attention is launched', async () => {
    const { driver, mla } = await cuda();
    const cache = await mla.createKvCache({ numBlocks: 2 });
    const sequence = cache.createSequence();
    const { slots } = await cache.reserve({ sequences: [sequence], counts: [1] });
    const row = Float32Array.from({ length: width }, (_, i) => Math.sin(i));
    const [x, norm, identity] = [await floats(mla, ...row), await floats(mla, ...Array.from({ length: dV }, () => 1)), await floats(mla, ...Array.from({ length: 4 }, (_, i) => (i % 3 === 0 ? 1 : 0)))];
    const q = await mla.tensor({ data: new Uint16Array(heads * width), shape: [1, 1, heads, width], dtype: 'bf16' });
    const out = await mla.tensor({ data: new Uint16Array(heads * dV), shape: [1, 1, heads, dV], dtype: 'bf16' });
    const lse = await mla.tensor({ data: new Float32Array(heads), shape: [1, heads, 1], dtype: 'f32' });
    const cacheSeqlens = cache.cacheSeqlens([sequence]);
    const metadata = mla.getMlaMetadata({ cacheSeqlens, numQTokensPerHeadK: heads, numHeadsK: 1 });
    const { data: blockTable } = cache.blockTable([sequence]);
    await runOps(mla, ({ id, metadataId }) => [
      {
        op: 'appendLatent', tokens: 1, x: { tensor: id(x, 'x'), stride: width, group: 0, offset: 0 }, dV, rope, normWeight: id(norm, 'norm'), eps: 1e-6,
        angles: Float32Array.from({ length: rope }, (_, i) => 1 - (i % 2)), kvCache: id(cache.tensor(), 'kvCache'), blockSize: 64, slots,
      },
      {
        op: 'matmul', tokens: 1, groups: heads, n: 2, k: 2, x: { tensor: id(x, 'x'), stride: width, group: 2, offset: 0 }, xBf16: false, weight: { form: 'f32', data: id(identity, 'w'), scales: undefined },
        out: { tensor: id(q, 'q'), stride: heads * width, group: width, offset: 0 }, outBf16: true, accumulate: false,
      },
      {
        op: 'decode', b: 1, sQ: 1, hQ: heads, hKv: 1, dQk: width, dV, blockSize: 64, dtype: 'bf16', q: id(q, 'q'), kvCache: id(cache.tensor(), 'kvCache'), out: id(out, 'out'), lse: id(lse, 'lse'),
        blockTable, maxBlocksPerSeq: blockTable.length, metadata, metadataId: metadataId(metadata), softmaxScale: 0.1, causal: false,
      },
    ]);
    expect(driver.launches.map(({ kernel }) => kernel)).toEqual(['append', 'decode_bf16_few']);
    const params = driver.launches[0]!.params;
    const latent = Number(new DataView(params.buffer, params.byteOffset).getBigUint64(8, true));
    const appended = new Uint16Array(driver.bytesAt(latent, width * 2).slice().buffer);
    const bits = (v: number): number => new Uint32Array(Float32Array.of(v).buffer)[0]! >>> 16;
    const expected = [...rmsNorm([...row.subarray(0, dV)], Array.from({ length: dV }, () => 1), 1e-6), ...row.subarray(dV)];
    // Rounded up or down.
    appended.forEach((got, i) => expect(Math.abs(got - bits(expected[i]!)), `number ${i}`).toBeLessThanOrEqual(1));
    const queries = (await q.read()) as Float32Array;
    expect([queries[0], queries[width]].map((v, i) => Math.abs(v! - row[i === 0 ? 0 : 2]!) < 0.01)).toEqual([true, false]);
  });

  test('who runs no model has the calls passed through: no copies, no turns', async () => {
    const { driver, mla } = await cuda();
    const tensor = await floats(mla, 1, 2);
    const before = driver.count('cuMemcpyDtoHAsync_v2');
    await mla.finished();
    expect(driver.count('cuMemcpyDtoHAsync_v2')).toBe(before);
    expect(await tensor.read()).toEqual(Float32Array.of(1, 2));
  });
});

describe('order', () => {
  const instance = (): Mla => keep(new MlaHost(new HandOver(attentionOnly().native)));
  const swap = (mla: Mla, from: MlaTensor, to: MlaTensor): Promise<void> =>
    runOps(mla, ({ id }) => [{ op: 'takeRows', rows: Int32Array.of(1, 0), n: 2, x: id(from, 'from'), out: id(to, 'to') }]);

  test('what comes while a step is under way waits for it', async () => {
    const mla = instance();
    const [a, b, c] = [await floats(mla, 1, 2, 3, 4), await floats(mla, 0, 0, 0, 0), await floats(mla, 0, 0, 0, 0)];
    const steps = [swap(mla, a, b), swap(mla, b, c)];
    const read = [b.read(), c.read()];
    a.destroy(); // what is enqueued completes
    await Promise.all(steps);
    expect(await Promise.all(read)).toEqual([Float32Array.of(3, 4, 1, 2), Float32Array.of(1, 2, 3, 4)]);
    await mla.finished();
  });

  test('a tensor that a step has left on the host is seen by the kernels, and blocks are copied', async () => {
    const mla = instance();
    const cache = await mla.createKvCache({ numBlocks: 4, blockSize: 16, headDim: 48, headDimV: 32 });
    const sequence = cache.createSequence();
    const latent = await mla.tensor({ data: new Uint16Array(48), shape: [1, 1, 48], dtype: 'bf16' });
    const from = await floats(mla, ...Array.from({ length: 48 }, (_, i) => i));
    const identity = await floats(mla, ...Array.from({ length: 48 * 48 }, (_, i) => (i % 49 === 0 ? 1 : 0)));
    await runOps(mla, ({ id }) => [{
      op: 'matmul', tokens: 1, groups: 1, n: 48, k: 48, x: { tensor: id(from, 'from'), stride: 48, group: 0, offset: 0 }, xBf16: false, weight: { form: 'f32', data: id(identity, 'w'), scales: undefined },
      out: { tensor: id(latent, 'latent'), stride: 48, group: 0, offset: 0 }, outBf16: true, accumulate: false,
    }]);
    await cache.append({ sequences: [sequence], counts: [1], latent });
    const fork = cache.fork(sequence);
    await cache.append({ sequences: [fork], counts: [1], latent });
    const pool = (await cache.tensor().read()) as Float32Array;
    const block = cache.blocks(fork)[0]!;
    for (const row of [0, 1]) expect([...pool.subarray((block * 16 + row) * 48, (block * 16 + row + 1) * 48)]).toEqual(Array.from({ length: 48 }, (_, i) => i));
  });

  test('destroy ends a step that is under way', async () => {
    const mla = instance();
    const [a, b] = [await floats(mla, 1, 2, 3, 4), await floats(mla, 0, 0, 0, 0)];
    const steps = Array.from({ length: 3 }, () => swap(mla, a, b).then(() => 'done', (error: { code?: string }) => error.code));
    await mla.destroy();
    for (const step of await Promise.all(steps)) expect(['done', 'destroyed']).toContain(step);
  });

  test('an operation that fails is told, and later ones go on', async () => {
    const mla = instance();
    const [a, b] = [await floats(mla, 1, 2, 3, 4), await floats(mla, 0, 0, 0, 0)];
    await expectRefusal(() => runOps(mla, ({ id }) => [{ op: 'takeRows', rows: Int32Array.of(0), n: 2, x: id(a, 'a'), out: 12345 }]), 'destroyed');
    await swap(mla, a, b);
    expect(await b.read()).toEqual(Float32Array.of(3, 4, 1, 2));
  });
});
