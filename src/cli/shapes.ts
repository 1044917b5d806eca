/** Benchmark shapes as files hold them (test/bench/shapes.json is one), checked, and what a shape costs. */
import { describe, MlaError } from '../errors.ts';
import type { KvDType, TuneArgs } from '../mla.ts';

/** One decode step. */
export interface BenchShape {
  readonly name: string;
  readonly regime?: string;
  readonly b: number;
  readonly s_q: number;
  readonly h_q: number;
  readonly h_kv: number;
  readonly d_qk: number;
  readonly d_v: number;
  readonly block_size: number;
  readonly causal: boolean;
  readonly dtype: KvDType;
  /** [b] tokens in the cache. */
  readonly seqlens: readonly number[];
}

/** Floating point operations and bytes of one call, as the design counts them. */
export interface ShapeCost {
  readonly flops: number;
  readonly bytes: number;
}

/**
 * Reads shapes: an array of objects. h_kv (1), s_q (1), d_qk (576), d_v (512), block_size (64), causal (false) and
 * dtype (bf16) may be absent.
 * @throws MlaError invalid-file, naming the shape and the field
 */
export function parseShapes(json: string, file: string): BenchShape[] {
  let list: unknown;
  try {
    list = JSON.parse(json);
  } catch (cause) {
    throw new MlaError('invalid-file', 'is not JSON', { argument: file, got: (cause as Error).message, cause });
  }
  if (!Array.isArray(list) || list.length === 0) {
    throw new MlaError('invalid-file', 'holds no shapes', { argument: file, expected: 'an array of shapes', got: describe(list) });
  }
  const shapes = list.map((value: unknown, i) => parseShape(value, `${file}: shape ${i}`));
  const names = new Set<string>();
  for (const { name } of shapes) {
    if (names.has(name)) throw new MlaError('invalid-file', 'has two shapes of one name', { argument: file, got: describe(name) });
    names.add(name);
  }
  return shapes;
}

function parseShape(value: unknown, where: string): BenchShape {
  if (typeof value !== 'object' || value === null || Array.isArray(value)) {
    throw new MlaError('invalid-file', 'is not an object', { argument: where, got: describe(value) });
  }
  const fields = value as Readonly<Record<string, unknown>>;
  const fail = (field: string, expected: string): never => {
    throw new MlaError('invalid-file', 'has a wrong value', { argument: `${where}.${field}`, expected, got: describe(fields[field]) });
  };
  const positive = (field: string, otherwise?: number): number => {
    const n = fields[field] ?? otherwise;
    return Number.isSafeInteger(n) && (n as number) > 0 ? (n as number) : fail(field, 'an integer > 0');
  };
  const { name, regime, causal = false, dtype = 'bf16', seqlens } = fields;
  if (typeof name !== 'string' || name === '') return fail('name', 'a name');
  if (regime !== undefined && typeof regime !== 'string') return fail('regime', 'a string');
  if (typeof causal !== 'boolean') return fail('causal', 'true or false');
  if (dtype !== 'bf16' && dtype !== 'f16') return fail('dtype', 'bf16 or f16');
  const b = positive('b');
  if (!Array.isArray(seqlens) || seqlens.length !== b || !seqlens.every((n) => Number.isSafeInteger(n) && n >= 0)) {
    return fail('seqlens', `${b} integers >= 0`);
  }
  return {
    name, ...(regime !== undefined && { regime }), b, causal, dtype, seqlens: seqlens as number[],
    s_q: positive('s_q', 1), h_q: positive('h_q'), h_kv: positive('h_kv', 1),
    d_qk: positive('d_qk', 576), d_v: positive('d_v', 512), block_size: positive('block_size', 64),
  };
}

export function shapeCost({ b, s_q, h_q, h_kv, d_qk, d_v, seqlens }: BenchShape): ShapeCost {
  const tokens = seqlens.reduce((sum, n) => sum + n, 0);
  return {
    flops: 2 * h_q * s_q * (d_qk + d_v) * tokens,
    bytes: 2 * (b * s_q * h_q * (d_qk + d_v) + tokens * h_kv * d_qk),
  };
}

/** The calls that a shape is tuned with, whatever their load. */
export function tuneArgs({ s_q, h_q, h_kv, d_qk, d_v, dtype }: BenchShape): TuneArgs {
  return { numQTokensPerHeadK: (s_q * h_q) / h_kv, numHeadsK: h_kv, headDim: d_qk, headDimV: d_v, dtype };
}

/** Shapes that a software adapter finishes in seconds, for when no file is given. */
export const BUILT_IN_SHAPES: readonly BenchShape[] = [
  builtIn('b1-q1-h16-1024', 16, 1, [1024]),
  builtIn('b1-q1-h128-1024', 128, 1, [1024]),
  builtIn('b1-q1-h16-8192', 16, 1, [8192]),
  builtIn('b8-q1-h16-ragged512', 16, 1, [512, 1, 737, 290, 1023, 448, 64, 911]),
  builtIn('b2-q2-h16-512-causal', 16, 2, [512, 389]),
];

function builtIn(name: string, h_q: number, s_q: number, seqlens: readonly number[]): BenchShape {
  return { name, b: seqlens.length, s_q, h_q, h_kv: 1, d_qk: 576, d_v: 512, block_size: 64, causal: s_q > 1, dtype: 'bf16', seqlens };
}
