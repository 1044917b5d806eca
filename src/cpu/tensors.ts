/** Memory by tensor id, as one call sees it. */
import type { TensorId } from '../backend.ts';
import type { Rows } from '../ops.ts';

export type Memory = Uint16Array<ArrayBuffer> | Float32Array<ArrayBuffer> | Int32Array<ArrayBuffer>;

export class Tensors {
  readonly #find: (id: TensorId) => Memory;

  constructor(find: (id: TensorId) => Memory) {
    this.#find = find;
  }

  bits(id: TensorId): Uint16Array {
    return this.#find(id) as Uint16Array;
  }

  f32(id: TensorId): Float32Array {
    return this.#find(id) as Float32Array;
  }

  i32(id: TensorId): Int32Array {
    return this.#find(id) as Int32Array;
  }
}

/** Where row (t, g) begins. */
export function rowAt({ stride, group, offset }: Rows, t: number, g = 0): number {
  return t * stride + g * group + offset;
}
