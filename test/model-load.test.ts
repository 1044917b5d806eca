/** Weights on their way to the device: in segments where one binding does not hold them, and refused by their names. */
import { readFile } from 'node:fs/promises';
import { join } from 'node:path';
import fc from 'fast-check';
import { afterEach, describe, expect, test } from 'vitest';
import type { Mla } from '../src/mla.ts';
import { folderSource } from '../src/model/folder-source.ts';
import { loadDecoder, readConfig, type ModelOptions } from '../src/model/model.ts';
import type { ModelSource } from '../src/model/source.ts';
import { embed, experts, matmul, splitEvenly, whole, type SplitWeight } from '../src/model/split-weight.ts';
import { createMla } from '../src/node.ts';
import { readSafetensors, writeSafetensors } from '../src/safetensors.ts';
import { expectRefusal } from './check.ts';
import { softwareDevice, softwareGpu } from './software-adapter.ts';

const FOLDER = join(import.meta.dirname, 'fixtures/models/tiny-v2');

const made: Mla[] = [];
const keep = (mla: Mla): Mla => (made.push(mla), mla);
afterEach(async () => {
  for (const mla of made.splice(0)) await mla.destroy();
});

describe('int8', () => {
  /** The checkpoint with a NaN as number `at` of a tensor. */
  async function withNaN(name: string, at: number): Promise<ModelSource> {
    const { tensors } = readSafetensors(await readFile(join(FOLDER, 'model.safetensors')));
    const tensor = tensors.get(name)!;
    const data = tensor.data.slice();
    data.set([0xc0, 0x7f], 2 * at);
    const bytes = writeSafetensors(new Map([...tensors, [name, { ...tensor, data }]]));
    const folder = folderSource(FOLDER);
    return {
      name: 'patched',
      size: async (file) => (file === 'model.safetensors' ? bytes.length : folder.size(file)),
      read: async (file, range) => (file === 'model.safetensors' ? bytes.slice(range.offset, range.offset + range.length) : folder.read(file, range)),
    };
  }

  test.each([
    ['model.layers.0.mlp.up_proj.weight', 5 * 128 + 1, 'NaN in row 5'], ['model.layers.1.mlp.experts.6.up_proj.weight', 3 * 128, 'NaN in row 3'],
    ['model.layers.1.self_attn.kv_b_proj.weight', 7, 'NaN'],
  ])('%s that is not finite is refused by its name', async (name, at, got) => {
    const mla = keep(await createMla({ backend: 'cpu' }));
    const source = await withNaN(name, at);
    const error = await expectRefusal(async () => loadDecoder(mla, source, await readConfig(source), { weights: 'int8' }), 'invalid-argument', name);
    expect(error.got).toContain(got);
    // As bf16 it is what the checkpoint says.
    (await loadDecoder(mla, source, await readConfig(source))).destroy();
  });
});

describe('segments', () => {
  test('are all rows in order, each no larger than a binding, as few as can be', () => {
    fc.assert(fc.property(fc.integer({ min: 1, max: 5000 }), fc.integer({ min: 1, max: 1 << 16 }), fc.integer({ min: 1 << 16, max: 1 << 28 }), (count, bytes, most) => {
      const segments = splitEvenly(count, bytes, { maxStorageBufferBindingSize: most, maxBufferSize: 2 * most });
      expect(segments.length).toBe(Math.ceil(count / Math.floor(most / bytes)));
      segments.reduce((next, segment) => (expect(segment.first).toBe(next), next + segment.count), 0);
      expect(segments.reduce((sum, segment) => sum + segment.count, 0)).toBe(count);
      expect(Math.max(...segments.map((segment) => segment.count)) * bytes).toBeLessThanOrEqual(most);
      expect(Math.min(...segments.map((segment) => segment.count))).toBeGreaterThan(0);
    }), { numRuns: 50 });
  });

  test('of DeepSeek-V3’s embedding and of a layer’s experts at WebGPU’s default limits', () => {
    const limits = { maxStorageBufferBindingSize: 134217728, maxBufferSize: 268435456 };
    expect(splitEvenly(129280, 7168 * 2, limits)).toHaveLength(14);
    expect(splitEvenly(256, 4096 * 7168 * 2, limits)).toHaveLength(128);
    // Where bindings are no limit, arrays of JavaScript are.
    expect(splitEvenly(129280, 7168 * 2, {})).toHaveLength(2);
  });

  test('what is larger than a binding by itself is left to the device to refuse', () => {
    expect(splitEvenly(3, 100, { maxStorageBufferBindingSize: 64 })).toEqual([0, 1, 2].map((first) => ({ first, count: 1 })));
  });

  test('operations with them: rows move the output, groups move both', () => {
    const weight = (data: number) => ({ form: 'bf16', data, scales: undefined }) as const;
    const split = (by: SplitWeight['by']): SplitWeight => ({ by, segments: [{ first: 0, count: 3, weight: weight(1) }, { first: 3, count: 2, weight: weight(2) }] });
    const [x, out] = [{ tensor: 7, stride: 50, group: 10, offset: 1 }, { tensor: 8, stride: 90, group: 20, offset: 4 }];
    expect(matmul(6, 5, 10, x, split('rows'), out)).toMatchObject([{ n: 3, x, out, weight: weight(1) }, { n: 2, x, out: { ...out, offset: 7 }, weight: weight(2) }]);
    expect(matmul(6, 20, 10, x, split('groups'), out, { groups: 5, outBf16: true })).toMatchObject([
      { groups: 3, n: 20, x, out, outBf16: true }, { groups: 2, n: 20, x: { ...x, offset: 31 }, out: { ...out, offset: 64 }, outBf16: true },
    ]);
    expect(embed(Int32Array.of(1), 9, split('rows'), 4)).toMatchObject([{ first: 0, rows: 3, table: 1 }, { first: 3, rows: 2, table: 2 }]);
    expect(experts({ how: 'gather', tokens: 1, topK: 1, n: 1, k: 1, x: 1, ids: 2, weights: 3, out: 4 }, split('groups'))).toMatchObject([{ first: 0, experts: 3 }, { first: 3, experts: 2 }]);
    expect(whole('rows', 5, weight(1)).segments).toHaveLength(1);
  });
});

describe('a device whose bindings are smaller than the weights', () => {
  /** What a binding holds: an embedding here has 80 KiB, a layer's experts 128. */
  const MOST = 65536;

  async function smallDevice(): Promise<Mla> {
    const device = await softwareDevice();
    const limits = new Proxy(device.limits, { get: (target, name) => (name === 'maxStorageBufferBindingSize' ? MOST : Reflect.get(target, name, target)) });
    Object.defineProperty(device, 'limits', { value: limits });
    return createMla({ backend: 'webgpu', device, tune: 'off' });
  }

  async function logits(mla: Mla, options: ModelOptions): Promise<Float32Array> {
    const source = folderSource(FOLDER);
    const config = await readConfig(source);
    const decoder = await loadDecoder(mla, source, config, { maxTokens: 32, numBlocks: 3, ...options });
    const sequence = decoder.cache.createSequence();
    const ids = Array.from({ length: 30 }, (_, i) => (i * 71 + 5) % config.vocabSize);
    const result = await decoder.logits([{ sequence, ids }]);
    decoder.destroy();
    return result;
  }

  test.each(['bf16', 'int8'] as const)('gives the same logits: %s', async (weights) => {
    const [small, large] = [keep(await smallDevice()), keep(await createMla({ backend: 'webgpu', gpu: await softwareGpu(), tune: 'off' }))];
    expect(small.info.limits['maxStorageBufferBindingSize']).toBe(MOST);
    const [got, expected] = [await logits(small, { weights }), await logits(large, { weights })];
    // Sums are cut otherwise, and what is rounded to bf16 on the way may come out one unit off.
    const spread = Math.max(...expected) - Math.min(...expected);
    const off = Math.max(...got.map((value, i) => Math.abs(value - expected[i]!)));
    expect(off / spread).toBeLessThan(0.005);
  });
});
