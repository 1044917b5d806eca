/** A tensor of the host side: a name for memory that a Backend holds. */
import type { Backend, TensorSpec } from './backend.ts';
import { elementBytes, elementCount } from './backend.ts';
import { decode16 } from './bf16.ts';
import { MlaError, describe, shapeText } from './errors.ts';
import type { DType, MlaTensor } from './mla.ts';

type OnDestroy = (tensor: DeviceTensor, discard: boolean) => void;

export class DeviceTensor implements MlaTensor {
  readonly dtype: DType;
  readonly shape: readonly number[];
  readonly byteLength: number;
  readonly id: number;
  /** The Backend that holds it, so that a tensor of another instance is told apart. */
  readonly owner: Backend;
  /** i32 tensors keep what they were made from: block tables and lengths are checked on the host. */
  readonly host: Int32Array | undefined;
  /** Settles when the device has granted the memory. */
  readonly ready: Promise<void>;
  #destroyed = false;
  readonly #onDestroy: OnDestroy | undefined;

  constructor(owner: Backend, spec: TensorSpec, rest: { ready?: Promise<void>; host?: Int32Array | undefined; onDestroy?: OnDestroy }) {
    this.owner = owner;
    this.id = spec.id;
    this.dtype = spec.dtype;
    this.shape = spec.shape;
    this.byteLength = elementCount(spec.shape) * elementBytes(spec.dtype);
    this.host = rest.host;
    this.ready = rest.ready ?? Promise.resolve();
    this.#onDestroy = rest.onDestroy;
  }

  get destroyed(): boolean {
    return this.#destroyed;
  }

  async readBits(): Promise<Uint16Array | Float32Array | Int32Array> {
    this.checkAlive('tensor');
    const bytes = await this.owner.read(this.id);
    if (this.dtype === 'f32') return new Float32Array(bytes);
    if (this.dtype === 'i32') return new Int32Array(bytes);
    return new Uint16Array(bytes);
  }

  async read(): Promise<Float32Array | Int32Array> {
    const bits = await this.readBits();
    return bits instanceof Uint16Array ? decode16(this.dtype as 'bf16' | 'f16', bits) : bits;
  }

  destroy(): void {
    this.#end(false);
  }

  /** As `destroy`, for memory that will not be asked for again. */
  discard(): void {
    this.#end(true);
  }

  #end(discard: boolean): void {
    if (this.#destroyed) return;
    this.#destroyed = true;
    this.#onDestroy?.(this, discard);
  }

  /** @throws MlaError destroyed */
  checkAlive(argument: string): void {
    if (this.#destroyed) {
      throw new MlaError('destroyed', `tensor ${shapeText(this.shape)} was destroyed`, { argument, fix: 'Keep it alive until its last use' });
    }
  }
}

/** @throws MlaError invalid-shape unless `shape` is `rank` positive integers (any rank when absent) */
export function checkShape(shape: unknown, argument: string, rank?: number): asserts shape is readonly number[] {
  if (!Array.isArray(shape)) {
    throw new MlaError('invalid-shape', 'no shape', { argument: `${argument}.shape`, expected: 'an array of integers', got: describe(shape) });
  }
  if (rank !== undefined && shape.length !== rank) {
    throw new MlaError('invalid-shape', 'wrong rank', { argument, expected: `${rank} dimensions`, got: shapeText(shape) });
  }
  for (let i = 0; i < shape.length; i++) {
    if (!Number.isSafeInteger(shape[i]) || shape[i] < 1) {
      throw new MlaError('invalid-shape', 'not a positive integer', { argument: `${argument}.shape[${i}]`, expected: 'an integer >= 1', got: describe(shape[i]) });
    }
  }
}

/** The name that a backend knows a tensor by. */
export function idOf(tensor: MlaTensor): number {
  return (tensor as DeviceTensor).id;
}
