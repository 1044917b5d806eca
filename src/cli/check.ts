/** Sampled rows of a benchmark's result against attention in double precision. */
import { attendRow, type AttendedRow } from '../attend-row.ts';
import { decode16 } from '../bf16.ts';
import { isNearLse, isNearOut } from '../bounds.ts';
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

function attend(shape: BenchShape, { q, key, dtype }: Workload, i: number, query: number, head: number): AttendedRow {
  const { s_q, h_q, h_kv, d_qk: dQk, d_v: dV } = shape;
  const at = ((i * s_q + query) * h_q + head) * dQk;
  const left = decode16(dtype, q.subarray(at, at + dQk));
  const length = shape.seqlens[i]!;
  const visible = shape.causal ? Math.max(0, length - s_q + query + 1) : length;
  const kv = Math.floor(head / (h_q / h_kv));
  const keys = [new Float32Array(dQk), new Float32Array(dQk)] as const;
  const row = attendRow({ dQk, dV }, { values: left, at: 0 }, visible, (t) => ({ values: decode16(dtype, key(i, t, kv), keys[t % 2]), at: 0 }));
  for (;;) {
    const { done, value } = row.next();
    if (done) return value;
  }
}

function compare(out: Float32Array | Int32Array, lse: number, want: AttendedRow): { ok: boolean; out: number; lse: number; cosine: number } {
  let [dot, got2, want2, worst, ok] = [0, 0, 0, 0, true];
  for (let d = 0; d < want.out.length; d++) {
    const [x, y] = [out[d]!, want.out[d]!];
    const difference = Math.abs(x - y);
    if (!isNearOut(x, y)) ok = false;
    worst = Math.max(worst, difference);
    dot += x * y;
    got2 += x * x;
    want2 += y * y;
  }
  const cosine = got2 + want2 === 0 ? 0 : 1 - (2 * dot) / (got2 + want2);
  const lseDifference = lse === want.lse ? 0 : Math.abs(lse - want.lse);
  if (!(cosine <= COSINE_DISTANCE)) ok = false;
  if (!isNearLse(lse, want.lse)) ok = false;
  return { ok, out: worst, lse: lseDifference, cosine };
}
