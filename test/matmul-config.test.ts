/** How products are cut: pure, for any shape and kind of device. */
import fc from 'fast-check';
import { expect, test } from 'vitest';
import { matmulConfig, tileConfig, tileRows, tileTokens } from '../src/webgpu/matmul-config.ts';
import { weightReader } from '../src/webgpu/weight.ts';

/** WebGPU's defaults. */
const [MOST_THREADS, MOST_BYTES] = [256, 16384];

test('every shape is cut into what any device can do', () => {
  fc.assert(fc.property(fc.constantFrom('gpu', 'software'), fc.integer({ min: 1, max: 4096 }), fc.integer({ min: 1, max: 4096 }), fc.integer({ min: 1, max: 200_000 }), (kind, tokens, units, outputs) => {
    const config = matmulConfig(kind, tokens, units, outputs);
    const { threads, lanes, rows } = config;
    expect(threads).toBeLessThanOrEqual(MOST_THREADS);
    expect(threads * rows * config.tokens * 4).toBeLessThanOrEqual(MOST_BYTES);
    expect(threads % lanes).toBe(0);
    expect(lanes & (lanes - 1)).toBe(0);
    expect(rows % 2).toBe(0);
    expect(tileRows(config) * lanes).toBe(threads * rows);
  }));
});

test('tiles are what any device can do, whatever the unit of the weight', () => {
  for (const kind of ['gpu', 'software'] as const) {
    const config = tileConfig(kind, 128, 1, 4096)!;
    const { threads, tileRows: rows, pairs, tokens, step } = config;
    expect(threads).toBeLessThanOrEqual(MOST_THREADS);
    expect((rows + tileTokens(config)) * step * 4).toBeLessThanOrEqual(MOST_BYTES);
    expect((rows / (2 * pairs)) * (tileTokens(config) / tokens)).toBe(threads);
    for (const unit of [4, 8, 16]) expect(step % unit).toBe(0);
  }
});

test('a chunk of a prompt is tiled; steps of a few texts and matrices of a few rows are not', () => {
  const tiled = (kind: 'gpu' | 'software', tokens: number, groups: number, n: number): boolean => tileConfig(kind, tokens, groups, n) !== undefined;
  for (const kind of ['gpu', 'software'] as const) {
    for (const tokens of [1, 8, 31]) expect(tiled(kind, tokens, 1, 100_000)).toBe(false);
    for (const tokens of [32, 128, 4096]) expect(tiled(kind, tokens, 1, 7168)).toBe(true);
    expect(tiled(kind, 128, 128, 512)).toBe(true);
    expect(tiled(kind, 128, 128, 16)).toBe(false);
  }
});

test('a GPU is not left idle by few tiles; a software adapter has no more threads than that', () => {
  expect([tileConfig('gpu', 128, 1, 576), tileConfig('gpu', 128, 1, 2048), tileConfig('gpu', 512, 1, 576)].map((config) => config !== undefined)).toEqual([false, true, true]);
  expect(tileConfig('software', 32, 1, 32)).toBeDefined();
});

test('one token is not computed several times, and eight share a load', () => {
  expect([1, 2, 3, 8, 64].map((tokens) => matmulConfig('gpu', tokens, 256, 20_000).tokens)).toEqual([1, 2, 4, 8, 8]);
});

test('few rows are cut finer along k; short ones are not cut below a unit', () => {
  expect(matmulConfig('gpu', 1, 1024, 576).lanes).toBe(128);
  expect(matmulConfig('gpu', 1, 1024, 20_000).lanes).toBe(32);
  expect(matmulConfig('gpu', 1, 16, 512 * 128).lanes).toBe(16);
});

test('weights are read 16 bytes at a time where their rows allow it', () => {
  const units = (form: 'bf16' | 'int8' | 'f32', ks: readonly number[]): number[] => ks.map((k) => weightReader({ form }, k).unit);
  expect(units('bf16', [7168, 24, 36, 37])).toEqual([8, 8, 4, 4]);
  expect(units('int8', [7168, 48, 36])).toEqual([16, 16, 4]);
  expect(units('f32', [7168, 36, 37])).toEqual([4, 4, 4]);
});
