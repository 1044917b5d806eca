/** Rotary positions: rope, and appendLatent, which writes new tokens' normalised and rotated rows into their pages. */
import { encode16 } from '../bf16.ts';
import type { AppendLatentOp, RopeOp } from '../ops.ts';
import { normalize } from './rows.ts';
import { rowAt, type Tensors } from './tensors.ts';

export function rope({ tokens, heads, n, x, angles, out }: RopeOp, tensors: Tensors): void {
  const [from, to] = [tensors.f32(x.tensor), tensors.bits(out.tensor)];
  const head = new Float32Array(n);
  for (let t = 0; t < tokens; t++) {
    for (let h = 0; h < heads; h++) {
      rotate(from, rowAt(x, t, h), angles, t * n, head, 0, n);
      const at = rowAt(out, t, h);
      encode16('bf16', head, to.subarray(at, at + n));
    }
  }
}

export function appendLatent(op: AppendLatentOp, tensors: Tensors): void {
  const { tokens, x, dV, rope: turned, normWeight, eps, angles, kvCache, slots } = op;
  const [from, weight, cache] = [tensors.f32(x.tensor), tensors.f32(normWeight), tensors.bits(kvCache)];
  const width = dV + turned;
  const row = new Float32Array(width);
  for (let t = 0; t < tokens; t++) {
    const at = rowAt(x, t);
    normalize(from, at, weight, eps, row, 0, dV);
    rotate(from, at + dV, angles, t * turned, row, dV, turned);
    encode16('bf16', row, cache.subarray(slots[t]! * width, (slots[t]! + 1) * width));
  }
}

function rotate(x: Float32Array, xAt: number, angles: Float32Array, anglesAt: number, out: Float32Array, outAt: number, n: number): void {
  for (let i = 0; i < n; i += 2) {
    const [cos, sin] = [angles[anglesAt + i]!, angles[anglesAt + i + 1]!];
    const [a, b] = [x[xAt + i]!, x[xAt + i + 1]!];
    out[outAt + i] = a * cos - b * sin;
    out[outAt + i + 1] = a * sin + b * cos;
  }
}
