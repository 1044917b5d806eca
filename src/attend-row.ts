/** One row of attention in double precision, by which results are checked. Pure. */
import { dot } from './cpu/dot.ts';

export interface AttendedRow {
  readonly out: Float64Array;
  /** Infinity where there are no keys. */
  readonly lse: number;
}

/** `n` numbers from `at` on, or more. */
export interface Numbers {
  readonly values: Float32Array;
  readonly at: number;
}

/**
 * The scale is d_qk^-0.5.
 * @param q d_qk numbers
 * @param key of a token: d_qk numbers, which may change once the key after the next is asked for
 * @returns a generator, which stops every 64 tokens, so that its caller can give the thread back
 */
export function* attendRow({ dQk, dV }: { readonly dQk: number; readonly dV: number }, q: Numbers, length: number, key: (token: number) => Numbers): Generator<void, AttendedRow> {
  const scale = dQk ** -0.5;
  const out = new Float64Array(dV);
  let highest = -Infinity;
  let sum = 0;
  // Two tokens at a time: half as many turns over `out`.
  for (let token = 0; token < length; token += 2) {
    if (token % 64 === 0) yield;
    const first = key(token);
    const second = token + 1 < length ? key(token + 1) : first;
    const score0 = dot(q.values, q.at, first.values, first.at, dQk) * scale;
    const score1 = token + 1 < length ? dot(q.values, q.at, second.values, second.at, dQk) * scale : -Infinity;
    const most = Math.max(score0, score1);
    if (most > highest) {
      const rescale = Math.exp(highest - most);
      for (let d = 0; d < dV; d++) out[d]! *= rescale;
      sum *= rescale;
      highest = most;
    }
    const [p0, p1] = [Math.exp(score0 - highest), Math.exp(score1 - highest)];
    sum += p0 + p1;
    for (let d = 0; d < dV; d++) out[d] = out[d]! + p0 * first.values[first.at + d]! + p1 * second.values[second.at + d]!;
  }
  return length === 0 ? { out, lse: Infinity } : { out: out.map((value) => value / sum), lse: highest + Math.log(sum) };
}
