/** Scratch tensors of a decoder, by name: made once for the most tokens a step may have, used by every layer. */
import type { DType, Mla, MlaTensor } from '../mla.ts';

export class Workspace {
  readonly #mla: Mla;
  readonly #tensors = new Map<string, MlaTensor>();

  constructor(mla: Mla) {
    this.#mla = mla;
  }

  /** The tensor of that name, made on first use. @throws MlaError out-of-memory, limit-exceeded */
  async get(name: string, dtype: DType, shape: readonly number[]): Promise<MlaTensor> {
    const known = this.#tensors.get(name);
    if (known) return known;
    const count = shape.reduce((a, b) => a * b, 1);
    const data = dtype === 'f32' ? new Float32Array(count) : dtype === 'i32' ? new Int32Array(count) : new Uint16Array(count);
    const tensor = await this.#mla.tensor({ data, shape, dtype });
    this.#tensors.set(name, tensor);
    return tensor;
  }

  destroy(): void {
    for (const tensor of this.#tensors.values()) tensor.destroy();
    this.#tensors.clear();
  }
}
