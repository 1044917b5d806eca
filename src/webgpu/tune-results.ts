/** Where the kernels that are tuned leave their results, and what is read of those to see whether they are right. */
import { decode16 } from '../bf16.ts';
import type { GpuContext } from './device.ts';
import { wrongness, type CheckShape, type Right, type RightRow } from './tune-check.ts';

export interface ResultBuffers {
  readonly out: GPUBuffer;
  readonly lse: GPUBuffer;
  /** A row of O that is not a number. */
  readonly nan: GPUBuffer;
  /** For the rows that are looked at, `checkBytes` of them. */
  readonly staging: GPUBuffer;
}

/** Of a row of O, then its LSE. */
function rowBytes({ dV }: CheckShape): number {
  return dV * 2 + 4;
}

export function checkBytes(shape: CheckShape, { load, check }: Right): number {
  return (load.length + check.length) * rowBytes(shape);
}

export class TuneResults {
  readonly buffers: ResultBuffers;
  readonly #gpu: GpuContext;
  readonly #shape: CheckShape & { readonly dtype: 'bf16' | 'f16' };
  readonly #right: Right;

  constructor(gpu: GpuContext, shape: CheckShape & { readonly dtype: 'bf16' | 'f16' }, buffers: ResultBuffers, right: Right) {
    this.#gpu = gpu;
    this.#shape = shape;
    this.buffers = buffers;
    this.#right = right;
    gpu.device.queue.writeBuffer(buffers.nan, 0, new Uint8Array(shape.dV * 2).fill(0xff)); // in any type
  }

  /** Encodes `call`, whose results are to be looked at: what it does not write is not a number. */
  encode(encoder: GPUCommandEncoder, which: keyof Right, call: () => void): void {
    const { hQ, dV } = this.#shape;
    const { out, lse, nan, staging } = this.buffers;
    const { load, check } = this.#right;
    const [rows, first] = which === 'load' ? [load, 0] : [check, load.length];
    const places = rows.map(({ sequence, head }) => sequence * hQ + head);
    for (const place of places) {
      encoder.copyBufferToBuffer(nan, 0, out, place * dV * 2, dV * 2);
      encoder.copyBufferToBuffer(nan, 0, lse, place * 4, 4);
    }
    call();
    places.forEach((place, i) => {
      const to = (first + i) * rowBytes(this.#shape);
      encoder.copyBufferToBuffer(out, place * dV * 2, staging, to, dV * 2);
      encoder.copyBufferToBuffer(lse, place * 4, staging, to + dV * 2, 4);
    });
  }

  /** What is wrong with the results of both calls, once they have been submitted; undefined where nothing is. @throws MlaError device-lost */
  async wrong(): Promise<string | undefined> {
    const { staging } = this.buffers;
    const bytes = checkBytes(this.#shape, this.#right);
    await this.#gpu.wait(staging.mapAsync(1 /* READ */, 0, bytes));
    // Another turn may have destroyed what is mapped.
    this.#gpu.check();
    const got = staging.getMappedRange(0, bytes).slice(0);
    staging.unmap();
    return [...this.#right.load, ...this.#right.check].map((row, i) => this.#wrongness(row, got, i * rowBytes(this.#shape))).find((wrong) => wrong !== undefined);
  }

  #wrongness(row: RightRow, got: ArrayBuffer, at: number): string | undefined {
    const { dV, dtype } = this.#shape;
    return wrongness(row, decode16(dtype, new Uint16Array(got, at, dV)), new Float32Array(got, at + 2 * dV, 1)[0]!);
  }
}
