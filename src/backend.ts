/**
 * The narrow waist between the host side (validation, cache accounting, tensors) and a backend.
 *
 * Every argument is plain data, so that the same calls work over `postMessage`: the worker serves a Backend and
 * the caller's thread keeps the rest. Tensors are named by ids that the host side chooses. Calls take effect in
 * call order; arguments have been validated. A call that returns a promise rejects with an MlaError.
 */
import { encode16 } from './bf16.ts';
import type { DType, KvDType, LoadClass, MemoryStats, MlaInfo, MlaMetadata, TuneReport } from './mla.ts';
import type { StepOp } from './ops.ts';

export type TensorId = number;

export interface TensorSpec {
  readonly id: TensorId;
  readonly dtype: DType;
  readonly shape: readonly number[];
  /** What its size is called in errors: the argument that it is, or `numBlocks` of a cache. */
  readonly argument: string;
}

/** i32 data small enough to travel with a call, or a tensor that already lives on the device. */
export type IndexData = Int32Array | TensorId;

/** A decode call in numbers. */
export interface DecodeShape {
  readonly b: number;
  readonly sQ: number;
  readonly hQ: number;
  readonly hKv: number;
  readonly dQk: number;
  readonly dV: number;
  readonly blockSize: number;
  readonly dtype: KvDType;
}

export interface DecodeOp extends DecodeShape {
  readonly q: TensorId;
  readonly kvCache: TensorId;
  readonly out: TensorId;
  readonly lse: TensorId;
  readonly blockTable: IndexData;
  readonly maxBlocksPerSeq: number;
  /** Names the metadata, so that a backend uploads it once. */
  readonly metadataId: number;
  readonly metadata: MlaMetadata;
  readonly softmaxScale: number;
  readonly causal: boolean;
}

/** A class of decode calls to tune for. */
export interface TuneOp {
  readonly rows: number;
  readonly hKv: number;
  readonly dQk: number;
  readonly dV: number;
  readonly dtype: KvDType;
  readonly load: LoadClass;
  readonly again: boolean;
}

export interface AppendOp {
  readonly kvCache: TensorId;
  /** [tokens, h_kv, d_v], or [tokens, h_kv, d_qk] when `rope` is absent. */
  readonly latent: TensorId;
  readonly rope: TensorId | undefined;
  /** [tokens]: block id * block_size + offset in the block. */
  readonly slots: Int32Array;
  readonly tokens: number;
  readonly dtype: KvDType;
  readonly hKv: number;
  readonly dQk: number;
  readonly dV: number;
  readonly blockSize: number;
}

export interface CopyBlocksOp {
  readonly kvCache: TensorId;
  /** [n, 2]: source and destination block ids. No destination is also a source. */
  readonly pairs: Int32Array;
  /** block_size * h_kv * d_qk. */
  readonly blockElements: number;
}

export type HostData = Float32Array | Uint16Array | Int32Array;

export type Sync<T> = T | Promise<T>;

export interface Backend {
  /** Another object when something in it has changed. */
  readonly info: MlaInfo;
  /** Makes a tensor; without `data` its contents are unspecified. Float32Array data of a 16-bit tensor is rounded. `transfer`: the buffer may be moved. */
  create(spec: TensorSpec, data?: HostData, transfer?: boolean): Sync<void>;
  /** Adopts the caller's GPUBuffer. Only webgpu in the same thread has it. */
  adopt?(spec: TensorSpec, buffer: GPUBuffer): void;
  /** The elements as stored. Waits for the work that produces them. */
  read(id: TensorId): Promise<ArrayBuffer>;
  /** `discard`: the memory is not kept for reuse. */
  release(id: TensorId, discard?: boolean): Sync<void>;
  /** Backends whose kernels serve few shapes have it. @throws MlaError limit-exceeded: none serves decode calls of this one */
  checkDecode?(shape: DecodeShape): Sync<void>;
  decode(op: DecodeOp): Sync<void>;
  append(op: AppendOp): Sync<void>;
  copyBlocks(op: CopyBlocksOp): Sync<void>;
  /** All of them in order, in one submission. Backends that run models have it. */
  run?(ops: readonly StepOp[]): Sync<void>;
  finished(): Promise<void>;
  /** Starts a measurement of the decode calls that follow. */
  timeBegin(): Sync<void>;
  /** Ends it: device (or wall) milliseconds. */
  timeEnd(): Promise<{ ms: number; source: 'device' | 'wall' }>;
  /** Backends with a choice of configurations have it; undefined from one that has none. */
  tune?(op: TuneOp): Promise<TuneReport | undefined>;
  flushCache(): Sync<void>;
  memory(): Sync<MemoryStats>;
  destroy(): Sync<void>;
}

/** Bytes of an element. */
export function elementBytes(dtype: DType): number {
  return dtype === 'bf16' || dtype === 'f16' ? 2 : 4;
}

/** Product of a shape. */
export function elementCount(shape: readonly number[]): number {
  return shape.reduce((n, d) => n * d, 1);
}

/** Block tables and lengths, whose contents the host keeps. Weights of packed integers have three dimensions. */
export function isIndex({ dtype, shape }: Pick<TensorSpec, 'dtype' | 'shape'>): boolean {
  return dtype === 'i32' && shape.length <= 2;
}

/** Elements as a device stores them: f32 for a 16-bit tensor is rounded. */
export function storedBits({ dtype }: Pick<TensorSpec, 'dtype'>, data: HostData): HostData {
  return data instanceof Float32Array && (dtype === 'bf16' || dtype === 'f16') ? encode16(dtype, data) : data;
}
