/**
 * Checks of decode arguments, all before anything is enqueued or allocated. Pure: no device is touched.
 *
 * What comes out is the problem in plain numbers. Limits of a device are that backend's to check.
 */
import type { DecodeShape } from './backend.ts';
import { MlaError, describe, shapeText } from './errors.ts';
import type { DType, DecodeArgs, IndexInput, KvDType, MlaMetadata } from './mla.ts';
import { BLOCK_SIZES, checkSeqlens, faultOfSchedule } from './schedule.ts';
import { DeviceTensor, checkShape } from './tensor.ts';

/** A decode problem: the shape of the call and of the pool. */
export interface Problem extends DecodeShape {
  readonly numBlocks: number;
}

export interface CheckedDecode {
  readonly problem: Problem;
  /** A copy, where it was given. */
  readonly metadata: MlaMetadata | undefined;
  readonly cacheSeqlens: Int32Array;
  /** [b, maxBlocksPerSeq] */
  readonly blockTable: Int32Array;
  readonly maxBlocksPerSeq: number;
  readonly softmaxScale: number;
  readonly causal: boolean;
}

/** dtype and shape of any TensorInput. @throws MlaError invalid-argument, invalid-shape, invalid-dtype, destroyed */
export function inspect(input: unknown, argument: string): { dtype: DType; shape: readonly number[] } {
  if (input instanceof DeviceTensor) {
    input.checkAlive(argument);
    return { dtype: input.dtype, shape: input.shape };
  }
  if (typeof input !== 'object' || input === null || ArrayBuffer.isView(input)) {
    throw new MlaError('invalid-argument', 'not a tensor', {
      argument, expected: 'a tensor or { data, shape }', got: describe(input),
      ...(ArrayBuffer.isView(input) ? { fix: 'A bare array has no shape: pass { data, shape }' } : {}),
    });
  }
  const { shape, dtype } = input as { shape?: unknown; dtype?: unknown };
  checkShape(shape, argument);
  if ('gpuBuffer' in input) {
    checkDType(dtype, argument);
    return { dtype, shape };
  }
  const data = (input as { data?: unknown }).data;
  const resolved = hostDType(data, dtype, argument);
  const count = shape.reduce((n, d) => n * d, 1);
  if ((data as Float32Array).length !== count) {
    throw new MlaError('invalid-shape', 'data does not fill the shape', {
      argument, expected: `${count} elements for ${shapeText(shape)}`, got: String((data as Float32Array).length),
    });
  }
  return { dtype: resolved, shape };
}

function checkDType(dtype: unknown, argument: string): asserts dtype is DType {
  if (dtype !== 'bf16' && dtype !== 'f16' && dtype !== 'f32' && dtype !== 'i32') {
    throw new MlaError('invalid-dtype', 'unknown element type', { argument: `${argument}.dtype`, expected: 'bf16, f16, f32 or i32', got: describe(dtype) });
  }
}

function hostDType(data: unknown, dtype: unknown, argument: string): DType {
  const allowed: readonly DType[] | undefined =
    data instanceof Float32Array ? ['bf16', 'f16', 'f32']
    : data instanceof Uint16Array ? ['bf16', 'f16']
    : data instanceof Int32Array ? ['i32']
    : undefined;
  if (!allowed) {
    throw new MlaError('invalid-dtype', 'data of a type that is not taken', {
      argument: `${argument}.data`, expected: 'Float32Array, Uint16Array (bits) or Int32Array', got: describe(data),
    });
  }
  if (dtype === undefined) return allowed[0]!;
  checkDType(dtype, argument);
  if (!allowed.includes(dtype)) {
    throw new MlaError('invalid-dtype', 'element type does not fit the data', { argument: `${argument}.dtype`, expected: allowed.join(' or '), got: describe(dtype) });
  }
  return dtype;
}

/** Host contents of an index argument. @throws MlaError invalid-dtype, invalid-shape, invalid-argument */
function indexData(input: IndexInput, argument: string, rank: number): { data: Int32Array; shape: readonly number[] | undefined } {
  if (input instanceof Int32Array) return { data: input, shape: undefined };
  const { dtype, shape } = inspect(input, argument);
  if (dtype !== 'i32') {
    throw new MlaError('invalid-dtype', 'indices are i32', { argument, expected: 'i32', got: dtype });
  }
  checkShape(shape, argument, rank);
  const data = input instanceof DeviceTensor ? input.host : (input as { data?: Int32Array }).data;
  if (!data) {
    throw new MlaError('invalid-argument', 'contents unknown to the host', {
      argument, expected: 'an Int32Array or a tensor made from one', got: 'a device buffer', fix: 'Indices are checked before work is enqueued: pass them from the host',
    });
  }
  return { data, shape };
}

/** @throws MlaError naming the argument; see the class */
export function checkDecode(args: DecodeArgs): CheckedDecode {
  if (typeof args !== 'object' || args === null) {
    throw new MlaError('invalid-argument', 'no arguments', { argument: 'args', expected: 'an object', got: describe(args) });
  }
  const q = inspect(args.q, 'q');
  checkShape(q.shape, 'q', 4);
  const dtype = kvDType(q.dtype, 'q');
  const kv = inspect(args.kvCache, 'kvCache');
  checkShape(kv.shape, 'kvCache', 4);
  if (kv.dtype !== dtype) {
    throw new MlaError('invalid-dtype', 'q and kvCache differ', { argument: 'kvCache', expected: dtype, got: kv.dtype });
  }
  const [b, sQ, hQ, dQk] = q.shape as [number, number, number, number];
  const [numBlocks, blockSize, hKv, dKv] = kv.shape as [number, number, number, number];
  if (dKv !== dQk) {
    throw new MlaError('invalid-shape', 'q and kvCache differ in d_qk', { argument: 'kvCache.shape[3]', expected: String(dQk), got: String(dKv) });
  }
  const dV = args.headDimV;
  checkHeadDims(dQk, dV, 'headDimV');
  if (hQ % hKv !== 0) {
    throw new MlaError('invalid-shape', 'h_q is not a multiple of h_kv', { argument: 'q.shape[2]', expected: `a multiple of ${hKv}`, got: String(hQ) });
  }
  checkBlockSize(blockSize, 'kvCache.shape[1]');
  const problem: Problem = { b, sQ, hQ, hKv, dQk, dV, blockSize, numBlocks, dtype };

  const seqlens = indexData(args.cacheSeqlens, 'cacheSeqlens', 1).data;
  checkSeqlens(seqlens);
  if (seqlens.length !== b) {
    throw new MlaError('invalid-shape', 'one length a sequence', { argument: 'cacheSeqlens', expected: `[${b}]`, got: `[${seqlens.length}]` });
  }
  const table = indexData(args.blockTable, 'blockTable', 2);
  const rows = table.shape?.[0] ?? b;
  const maxBlocksPerSeq = table.shape?.[1] ?? table.data.length / b;
  if (rows !== b || !Number.isInteger(maxBlocksPerSeq) || maxBlocksPerSeq < 1) {
    throw new MlaError('invalid-shape', 'one row a sequence', {
      argument: 'blockTable', expected: `[${b}, max_blocks_per_seq]`, got: table.shape ? shapeText(table.shape) : `${table.data.length} numbers`,
    });
  }
  // Contents of tensors do not change: a step's layers ask for the same check again and again.
  const fixed = args.blockTable instanceof DeviceTensor;
  const known = fixed ? checkedTables.get(table.data) : undefined;
  if (known?.blockSize !== blockSize || known.numBlocks !== numBlocks || !sameNumbers(known.seqlens, seqlens)) {
    checkBlockTable(table.data, maxBlocksPerSeq, seqlens, blockSize, numBlocks);
    if (fixed) checkedTables.set(table.data, { seqlens: args.cacheSeqlens instanceof DeviceTensor ? seqlens : seqlens.slice(), blockSize, numBlocks });
  }

  const scale = args.softmaxScale ?? dQk ** -0.5;
  if (typeof scale !== 'number' || !Number.isFinite(scale)) {
    throw new MlaError('invalid-argument', 'not a finite number', { argument: 'softmaxScale', expected: 'a finite number', got: describe(scale) });
  }
  if (args.causal !== undefined && typeof args.causal !== 'boolean') {
    throw new MlaError('invalid-argument', 'not a boolean', { argument: 'causal', expected: 'true or false', got: describe(args.causal) });
  }
  const metadata = args.metadata === undefined ? undefined : checkMetadata(args.metadata, problem, seqlens);
  checkOutput(args.out, 'out', dtype, [b, sQ, hQ, dV]);
  checkOutput(args.lse, 'lse', 'f32', [b, hQ, sQ]);
  return { problem, metadata, cacheSeqlens: seqlens, blockTable: table.data, maxBlocksPerSeq, softmaxScale: scale, causal: args.causal ?? false };
}

function kvDType(dtype: DType, argument: string): KvDType {
  if (dtype !== 'bf16' && dtype !== 'f16') {
    throw new MlaError('invalid-dtype', 'not a 16-bit type', { argument, expected: 'bf16 or f16', got: dtype });
  }
  return dtype;
}

/** @throws MlaError unless d_v is a multiple of 32 up to 512 and d_qk exceeds it by a multiple of 16 up to 64 */
export function checkHeadDims(dQk: number, dV: unknown, argument: string): asserts dV is number {
  if (!Number.isSafeInteger(dV) || (dV as number) < 32 || (dV as number) > 512 || (dV as number) % 32 !== 0) {
    throw new MlaError('invalid-argument', 'value width not supported', { argument, expected: 'a multiple of 32 from 32 to 512', got: describe(dV) });
  }
  const rope = dQk - (dV as number);
  if (rope < 16 || rope > 64 || rope % 16 !== 0) {
    throw new MlaError('invalid-shape', 'RoPE part not supported', {
      argument, expected: `d_qk - d_v a multiple of 16 from 16 to 64`, got: `${dQk} - ${String(dV)} = ${rope}`,
    });
  }
}

export function checkBlockSize(blockSize: unknown, argument: string): asserts blockSize is number {
  if (!BLOCK_SIZES.includes(blockSize as number)) {
    throw new MlaError('invalid-shape', 'block size not supported', { argument, expected: BLOCK_SIZES.join(', '), got: describe(blockSize) });
  }
}

function sameNumbers(a: Int32Array, b: Int32Array): boolean {
  if (a === b) return true;
  if (a.length !== b.length) return false;
  for (let i = 0; i < a.length; i++) if (a[i] !== b[i]) return false;
  return true;
}

/** Contents of tables that are tensors, and what they were last found right for. */
const checkedTables = new WeakMap<Int32Array, { readonly seqlens: Int32Array; readonly blockSize: number; readonly numBlocks: number }>();

function checkBlockTable(table: Int32Array, maxBlocksPerSeq: number, seqlens: Int32Array, blockSize: number, numBlocks: number): void {
  for (let i = 0; i < seqlens.length; i++) {
    const used = Math.ceil(seqlens[i]! / blockSize);
    if (used > maxBlocksPerSeq) {
      throw new MlaError('out-of-range', 'length beyond the block table', {
        argument: `cacheSeqlens[${i}]`, expected: `at most ${maxBlocksPerSeq * blockSize} (${maxBlocksPerSeq} blocks of ${blockSize})`, got: String(seqlens[i]),
      });
    }
    for (let j = 0; j < used; j++) {
      const id = table[i * maxBlocksPerSeq + j]!;
      if (id < 0 || id >= numBlocks) {
        throw new MlaError('out-of-range', 'no such block', { argument: `blockTable[${i}][${j}]`, expected: `0 .. ${numBlocks - 1}`, got: String(id) });
      }
    }
  }
}

/** @returns the metadata as it was when it was first used. What becomes of a caller's object after that changes nothing. */
function checkMetadata(given: MlaMetadata, { sQ, hQ, hKv, blockSize }: Problem, seqlens: Int32Array): MlaMetadata {
  const metadata = sound.get(given) ?? soundCopy(given);
  const mismatch = (field: string, expected: string, got: string): MlaError =>
    new MlaError('metadata-mismatch', 'made for another call', { argument: `metadata.${field}`, expected, got, fix: 'Call getMlaMetadata with this step’s lengths and shape' });
  const rows = (sQ * hQ) / hKv;
  if (metadata.numQTokensPerHeadK !== rows) throw mismatch('numQTokensPerHeadK', String(rows), String(metadata.numQTokensPerHeadK));
  if (metadata.numHeadsK !== hKv) throw mismatch('numHeadsK', String(hKv), String(metadata.numHeadsK));
  if (metadata.blockSize !== blockSize) throw mismatch('blockSize', String(blockSize), String(metadata.blockSize));
  if (metadata.cacheSeqlens.length !== seqlens.length) throw mismatch('cacheSeqlens.length', String(seqlens.length), String(metadata.cacheSeqlens.length));
  for (let i = 0; i < seqlens.length; i++) {
    if (metadata.cacheSeqlens[i] !== seqlens[i]) throw mismatch(`cacheSeqlens[${i}]`, String(seqlens[i]), String(metadata.cacheSeqlens[i]));
  }
  return metadata;
}

/** By what callers hold: once a step, not once a layer. */
const sound = new WeakMap<MlaMetadata, MlaMetadata>();

function soundCopy(given: MlaMetadata): MlaMetadata {
  const refuse = (got: string): MlaError => new MlaError('invalid-argument', 'not metadata', { argument: 'metadata', expected: 'the result of getMlaMetadata, unchanged', got });
  if (typeof given !== 'object' || given === null || !(given.cacheSeqlens instanceof Int32Array) || !(given.order instanceof Int32Array)) throw refuse(describe(given));
  const fault = faultOfSchedule(given);
  if (fault !== undefined) throw refuse(fault);
  const { tileSchedulerMetadata, order, numSplits, cacheSeqlens, ...rest } = given;
  const copy = { ...rest, tileSchedulerMetadata: tileSchedulerMetadata.slice(), order: order.slice(), numSplits: numSplits.slice(), cacheSeqlens: cacheSeqlens.slice() };
  sound.set(given, copy);
  return copy;
}

function checkOutput(tensor: unknown, argument: string, dtype: DType, shape: readonly number[]): void {
  if (tensor === undefined) return;
  if (!(tensor instanceof DeviceTensor)) {
    throw new MlaError('invalid-argument', 'not a device tensor', { argument, expected: 'a tensor of this instance', got: describe(tensor) });
  }
  tensor.checkAlive(argument);
  if (tensor.dtype !== dtype) throw new MlaError('invalid-dtype', 'wrong element type', { argument, expected: dtype, got: tensor.dtype });
  if (tensor.shape.length !== shape.length || shape.some((d, i) => d !== tensor.shape[i])) {
    throw new MlaError('invalid-shape', 'wrong shape', { argument, expected: shapeText(shape), got: shapeText(tensor.shape) });
  }
}
