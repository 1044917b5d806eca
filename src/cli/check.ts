/** Sampled rows of a benchmark's result against attention in double precision. */
import { decode16 } from '../bf16.ts';
import { LSE_ABSOLUTE, LSE_RELATIVE, OUT_ABSOLUTE, OUT_RELATIVE } from '../bounds.ts';
import { seededRandom } from '../random.ts';
import type { BenchShape } from './shapes.ts';
import type { Workload } from './workload.ts';

/** Rows sampled a shape. */
const ROWS = 6;
/** Of a row. */
const COSINE_DISTANCE = 5e-6;

export interface CheckReport {
  readonly ok: boolean;
  readonly rows: number;
  /** Largest differences seen. */
  readonly out: number;
  readonly lse: number;
  readonly cosine: number;
  /** The first row that is out of bounds. */
  readonly fault?: string;
}

/** Samples rows (sequence, query token, head) at random, from the longest sequence always one. */
export async function checkWorkload(shape: BenchShape, workload: Workload, seed: number): Promise<CheckReport> {
  const { b, s_q, h_q, d_v } = shape;
  const out = await workload.out.read();
  const lse = await workload.lse.read();
  const random = seededRandom(seed);
  const pick = (n: number): number => Math.floor(random() * n);
  const worst = { out: 0, lse: 0, cosine: 0 };
  let fault: string | undefined;
  for (let n = 0; n < ROWS; n++) {
    const i = n === 0 ? shape.seqlens.indexOf(Math.max(...shape.seqlens)) : pick(b);
    const [query, head] = [pick(s_q), pick(h_q)];
    const want = attend(shape, workload, i, query, head);
    const at = ((i * s_q + query) * h_q + head) * d_v;
    const seen = compare(out.subarray(at, at + d_v), lse[(i * h_q + head) * s_q + query]!, want);
    for (const key of ['out', 'lse', 'cosine'] as const) worst[key] = Math.max(worst[key], seen[key]);
    if (!seen.ok) fault ??= `sequence ${i}, query ${query}, head ${head}: out off by ${seen.out.toExponential(2)}, lse by ${seen.lse.toExponential(2)}`;
  }
  return { ok: fault === undefined, rows: ROWS, ...worst, ...(fault !== undefined && { fault }) };
}

interface Row {
  readonly out: Float64Array;
  readonly lse: number;
}

function attend(shape: BenchShape, { q, key, dtype }: Workload, i: number, query: number, head: number): Row {
  const { s_q, h_q, h_kv, d_qk, d_v } = shape;
  const at = ((i * s_q + query) * h_q + head) * d_qk;
  const left = decode16(dtype, q.subarray(at, at + d_qk));
  const length = shape.seqlens[i]!;
  const visible = shape.causal ? Math.max(0, length - s_q + query + 1) : length;
  const out = new Float64Array(d_v);
  const right = new Float32Array(d_qk);
  const kv = Math.floor(head / (h_q / h_kv));
  let highest = -Infinity;
  let sum = 0;
  for (let t = 0; t < visible; t++) {
    decode16(dtype, key(i, t, kv), right);
    let score = 0;
    for (let d = 0; d < d_qk; d++) score += left[d]! * right[d]!;
    score *= d_qk ** -0.5;
    if (score > highest) {
      const rescale = Math.exp(highest - score);
      for (let d = 0; d < d_v; d++) out[d]! *= rescale;
      sum *= rescale;
      highest = score;
    }
    const p = Math.exp(score - highest);
    sum += p;
    for (let d = 0; d < d_v; d++) out[d]! += p * right[d]!;
  }
  if (visible === 0) return { out, lse: Infinity };
  return { out: out.map((value) => value / sum), lse: highest + Math.log(sum) };
}

function compare(out: Float32Array | Int32Array, lse: number, want: Row): { ok: boolean; out: number; lse: number; cosine: number } {
  let [dot, got2, want2, worst, ok] = [0, 0, 0, 0, true];
  for (let d = 0; d < want.out.length; d++) {
    const [x, y] = [out[d]!, want.out[d]!];
    const difference = Math.abs(x - y);
    if (!(difference <= OUT_ABSOLUTE || difference <= OUT_RELATIVE * Math.abs(y))) ok = false;
    worst = Math.max(worst, difference);
    dot += x * y;
    got2 += x * x;
    want2 += y * y;
  }
  const cosine = got2 + want2 === 0 ? 0 : 1 - (2 * dot) / (got2 + want2);
  const lseDifference = lse === want.lse ? 0 : Math.abs(lse - want.lse);
  if (!(cosine <= COSINE_DISTANCE)) ok = false;
  if (!(lseDifference <= LSE_ABSOLUTE || lseDifference <= LSE_RELATIVE * Math.abs(want.lse))) ok = false;
  return { ok, out: worst, lse: lseDifference, cosine };
}
