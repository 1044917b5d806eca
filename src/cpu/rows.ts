/** Operations on whole rows of activations: embed, rmsNorm, swiglu, takeRows. */
import { decode16 } from '../bf16.ts';
import type { EmbedOp, RmsNormOp, SwigluOp, TakeRowsOp } from '../ops.ts';
import { rowAt, type Tensors } from './tensors.ts';

export function embed({ ids, first, rows, table, tableDtype, n, out }: EmbedOp, tensors: Tensors): void {
  const to = tensors.f32(out);
  ids.forEach((id, t) => {
    const from = id - first;
    if (from < 0 || from >= rows) return;
    const row = to.subarray(t * n, (t + 1) * n);
    if (tableDtype === 'f32') row.set(tensors.f32(table).subarray(from * n, (from + 1) * n));
    else decode16('bf16', tensors.bits(table).subarray(from * n, (from + 1) * n), row);
  });
}

export function rmsNorm({ tokens, n, x, weight, eps, out }: RmsNormOp, tensors: Tensors): void {
  const [from, to, scale] = [tensors.f32(x.tensor), tensors.f32(out.tensor), tensors.f32(weight)];
  for (let t = 0; t < tokens; t++) normalize(from, rowAt(x, t), scale, eps, to, rowAt(out, t), n);
}

/** One row. It may be its own output. */
export function normalize(from: Float32Array, fromAt: number, weight: Float32Array, eps: number, to: Float32Array, toAt: number, n: number): void {
  let squares = 0;
  for (let i = 0; i < n; i++) squares += from[fromAt + i]! ** 2;
  const factor = 1 / Math.sqrt(squares / n + eps);
  for (let i = 0; i < n; i++) to[toAt + i] = from[fromAt + i]! * factor * weight[i]!;
}

export function swiglu({ tokens, n, x, out }: SwigluOp, tensors: Tensors): void {
  const [from, to] = [tensors.f32(x), tensors.f32(out)];
  for (let t = 0; t < tokens; t++) {
    for (let i = 0; i < n; i++) {
      const gate = from[t * 2 * n + i]!;
      to[t * n + i] = (gate / (1 + Math.exp(-gate))) * from[t * 2 * n + n + i]!;
    }
  }
}

export function takeRows({ rows, n, x, out }: TakeRowsOp, tensors: Tensors): void {
  const [from, to] = [tensors.f32(x), tensors.f32(out)];
  rows.forEach((row, s) => to.set(from.subarray(row * n, (row + 1) * n), s * n));
}
