/**
 * Attention of a few heads computed twice from the same latents: with every head's keys and values made, and with the
 * matrices that would make them absorbed into query and output. Float64, pure.
 */
import { normalsFrom } from './normals.ts';

export interface Sizes {
  readonly heads: number;
  readonly tokens: number;
  readonly latent: number;
  readonly nope: number;
  readonly rope: number;
  readonly value: number;
}

export const SMALL: Sizes = { heads: 4, tokens: 24, latent: 32, nope: 16, rope: 8, value: 16 };

export interface Problem {
  readonly sizes: Sizes;
  /** [tokens, latent] */
  readonly latents: Float64Array;
  /** [tokens, rope] */
  readonly ropeKeys: Float64Array;
  /** [heads, nope] */
  readonly query: Float64Array;
  /** [heads, rope] */
  readonly ropeQuery: Float64Array;
  /** [heads, nope, latent] */
  readonly uk: Float64Array;
  /** [heads, value, latent] */
  readonly uv: Float64Array;
}

export function randomProblem(seed: number, sizes: Sizes = SMALL): Problem {
  const normals = normalsFrom(seed);
  const { heads, tokens, latent, nope, rope, value } = sizes;
  const scaled = (count: number): Float64Array => normals(count).map((x) => x / Math.sqrt(latent));
  return {
    sizes, latents: normals(tokens * latent), ropeKeys: normals(tokens * rope), query: normals(heads * nope), ropeQuery: normals(heads * rope),
    uk: scaled(heads * nope * latent), uv: scaled(heads * value * latent),
  };
}

/** [heads, value]: every head's keys and values are made from the latents first. */
export function perHead(problem: Problem): Float64Array {
  const { sizes: { heads, tokens, latent, nope, value }, latents, query, uk, uv } = problem;
  return concatenated(heads, (h) => {
    const keys = times(latents, matrix(uk, h, nope * latent), tokens, nope, latent);
    const values = times(latents, matrix(uv, h, value * latent), tokens, value, latent);
    const weights = softmax(problem, h, keys, matrix(query, h, nope));
    return weighted(weights, values, value);
  });
}

/** [heads, value]: attention over the latents; no key or value is made. */
export function absorbed(problem: Problem): Float64Array {
  const { sizes: { heads, latent, nope, value }, latents, query, uk, uv } = problem;
  return concatenated(heads, (h) => {
    const latentQuery = weighted(matrix(query, h, nope), matrix(uk, h, nope * latent), latent);
    const weights = softmax(problem, h, latents, latentQuery);
    return times(weighted(weights, latents, latent), matrix(uv, h, value * latent), 1, value, latent);
  });
}

export function largestDifference(a: ArrayLike<number>, b: ArrayLike<number>): number {
  let most = 0;
  for (let i = 0; i < a.length; i++) most = Math.max(most, Math.abs(a[i]! - b[i]!));
  return most;
}

/** Attention weights of a head over all tokens, from keys and a query of any width and the RoPE parts. */
function softmax({ sizes: { tokens, nope, rope }, ropeKeys, ropeQuery }: Problem, head: number, keys: Float64Array, query: Float64Array): Float64Array {
  const own = times(keys, query, tokens, 1, query.length);
  const position = times(ropeKeys, matrix(ropeQuery, head, rope), tokens, 1, rope);
  const scores = own.map((score, t) => (score + position[t]!) / Math.sqrt(nope + rope));
  const highest = Math.max(...scores);
  const exps = scores.map((score) => Math.exp(score - highest));
  const sum = exps.reduce((a, b) => a + b, 0);
  return exps.map((e) => e / sum);
}

function concatenated(heads: number, outputOf: (head: number) => Float64Array): Float64Array {
  return Float64Array.from(Array.from({ length: heads }, (_, h) => [...outputOf(h)]).flat());
}

function matrix(stack: Float64Array, index: number, size: number): Float64Array {
  return stack.subarray(index * size, (index + 1) * size);
}

/** a [rows, inner] times the transpose of b [columns, inner]. */
function times(a: Float64Array, b: Float64Array, rows: number, columns: number, inner: number): Float64Array {
  const product = new Float64Array(rows * columns);
  for (let r = 0; r < rows; r++) {
    for (let c = 0; c < columns; c++) {
      for (let i = 0; i < inner; i++) product[r * columns + c]! += a[r * inner + i]! * b[c * inner + i]!;
    }
  }
  return product;
}

/** The rows of a matrix, each of `width`, summed by weight. */
function weighted(weights: Float64Array, rows: Float64Array, width: number): Float64Array {
  const sum = new Float64Array(width);
  weights.forEach((weight, r) => {
    for (let i = 0; i < width; i++) sum[i]! += weight * rows[r * width + i]!;
  });
  return sum;
}
