/** Tensors and results of operations under test, on any instance. */
import { expect } from 'vitest';
import { encode16, fromBf16, toBf16 } from '../src/bf16.ts';
import type { DType, Mla, MlaTensor } from '../src/mla.ts';
import { createMla } from '../src/node.ts';
import type { Rows, StepOp, Weight } from '../src/ops.ts';
import { runOps } from '../src/run-ops.ts';
import type { Matrix } from './ops-reference.ts';
import { Random } from './random.ts';
import { softwareDevice, softwareGpu } from './software-adapter.ts';

/** Backends that run operations; the last one's kernels are cut as for a GPU, whatever runs them here. */
export const opsBackends = ['cpu', 'webgpu', 'webgpu, cut for a GPU'] as const;

export async function makeMla(backend: (typeof opsBackends)[number]): Promise<Mla> {
  if (backend === 'cpu') return createMla({ backend });
  if (backend === 'webgpu') return createMla({ backend, gpu: await softwareGpu(), tune: 'off' });
  const device = await softwareDevice();
  Object.defineProperty(device, 'adapterInfo', { value: { description: 'one that says nothing of itself' } });
  return createMla({ backend: 'webgpu', device, tune: 'off' });
}

export interface OnDevice {
  readonly id: number;
  readonly tensor: MlaTensor;
}

export class OpsBench {
  readonly mla: Mla;
  readonly random: Random;

  constructor(mla: Mla, seed: number) {
    this.mla = mla;
    this.random = new Random(seed);
  }

  /** Random rows, as f32 or rounded to bf16: exactly what a device will hold. */
  matrix(rows: number, n: number, dtype: 'f32' | 'bf16' = 'f32', sigma = 1): number[][] {
    const values = this.random.normals(rows * n, sigma);
    return Array.from({ length: rows }, (_, r) => Array.from(values.subarray(r * n, (r + 1) * n), (v) => (dtype === 'bf16' ? fromBf16(toBf16(v)) : v)));
  }

  /** cos, sin a token and pair. */
  angles(tokens: number, n: number): number[][] {
    return Array.from({ length: tokens }, () => Array.from({ length: n / 2 }, () => this.random.uniform() * 6).flatMap((a) => [Math.fround(Math.cos(a)), Math.fround(Math.sin(a))]));
  }

  async put(values: Matrix, dtype: DType = 'f32'): Promise<OnDevice> {
    const flat = values.flat();
    const data = dtype === 'i32' ? Int32Array.from(flat) : dtype === 'f32' ? Float32Array.from(flat) : encode16('bf16', Float32Array.from(flat));
    return this.#named(await this.mla.tensor({ data, shape: [flat.length], dtype }));
  }

  /** A tensor full of `value`, where results go. */
  async room(count: number, dtype: DType = 'f32', value = 7): Promise<OnDevice> {
    return this.put([Array.from({ length: count }, () => value)], dtype);
  }

  /** Random weights [count, n, k] in one form: on the device, and as values. */
  async weight(form: Weight['form'], count: number, n: number, k: number): Promise<{ weight: Weight; values: number[][][] }> {
    const split = (rows: number[][]): number[][][] => Array.from({ length: count }, (_, g) => rows.slice(g * n, (g + 1) * n));
    if (form !== 'int8') {
      const rows = this.matrix(count * n, k, form, 0.3);
      return { weight: { form, data: (await this.put(rows, form)).id, scales: undefined }, values: split(rows) };
    }
    const bytes = Int8Array.from({ length: count * n * k }, () => this.random.below(256) - 128);
    const scales = Float32Array.from({ length: count * n }, () => 0.001 + 0.01 * this.random.uniform());
    const data = this.#named(await this.mla.tensor({ data: new Int32Array(bytes.buffer), shape: [count, n, k / 4], dtype: 'i32' }));
    const values = Array.from(scales, (scale, r) => Array.from(bytes.subarray(r * k, (r + 1) * k), (b) => b * scale));
    return { weight: { form, data: data.id, scales: (await this.put([[...scales]])).id }, values: split(values) };
  }

  async run(...ops: StepOp[]): Promise<void> {
    await runOps(this.mla, () => ops);
  }

  async read({ tensor }: OnDevice): Promise<number[]> {
    return Array.from(await tensor.read());
  }

  #named(tensor: MlaTensor): OnDevice {
    let id = 0;
    void runOps(this.mla, (names) => ((id = names.id(tensor, 'tensor')), []));
    return { id, tensor };
  }
}

export function rows(tensor: OnDevice, stride: number, rest: { group?: number; offset?: number } = {}): Rows {
  return { tensor: tensor.id, stride, group: rest.group ?? 0, offset: rest.offset ?? 0 };
}

/** Fails unless all are within `tolerance`, absolute or, above 1, relative. */
export function expectClose(got: ArrayLike<number>, expected: ArrayLike<number>, tolerance = 2e-5): void {
  expect(got.length).toBe(expected.length);
  for (let i = 0; i < expected.length; i++) {
    const off = Math.abs(got[i]! - expected[i]!) / Math.max(1, Math.abs(expected[i]!));
    if (!(off <= tolerance)) expect.fail(`element ${i}: expected ${expected[i]}, got ${got[i]}`);
  }
}

/** Of one bf16 unit in the last place, and a little for sums in f32. */
export const BF16 = 2 ** -8 + 1e-4;
