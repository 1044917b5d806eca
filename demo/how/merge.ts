/** Merging partial results of attention by their LSE. Pure. */
export interface Partial {
  /** [d_v], normalised over the keys that the part saw. */
  readonly out: ArrayLike<number>;
  readonly lse: number;
}

export interface Merged {
  readonly out: Float64Array;
  readonly lse: number;
  /** Of each part; they sum to one. */
  readonly weights: readonly number[];
}

export function mergeByLse(partials: readonly Partial[]): Merged {
  const highest = Math.max(...partials.map(({ lse }) => lse));
  const lse = highest + Math.log(partials.reduce((sum, part) => sum + Math.exp(part.lse - highest), 0));
  const weights = partials.map((part) => Math.exp(part.lse - lse));
  const out = Float64Array.from({ length: partials[0]!.out.length }, (_, d) => partials.reduce((sum, part, i) => sum + weights[i]! * part.out[d]!, 0));
  return { out, lse, weights };
}
