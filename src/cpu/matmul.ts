/**
 * Matrix products: matmul and experts. Generators that pause every few milliseconds of work.
 *
 * A weight's row is widened to f32 once and meets all tokens that use it.
 */
import { decode16, toBf16 } from '../bf16.ts';
import type { ExpertsOp, MatmulOp, Weight } from '../ops.ts';
import { dot } from './dot.ts';
import { rowAt, type Tensors } from './tensors.ts';

/** Multiply-adds between pauses. */
const PAUSE_AFTER = 1 << 22;

export function* matmul(op: MatmulOp, tensors: Tensors): Generator<void, void, void> {
  const { tokens, groups, n, k, x, out, outBf16, accumulate } = op;
  const inputs = new Float32Array(tokens * k);
  const weights = new Float32Array(k);
  const load = rowLoader(op.weight, k, tensors);
  const [floats, bits] = [tensors.f32(out.tensor), tensors.bits(out.tensor)];
  let work = 0;
  for (let g = 0; g < groups; g++) {
    for (let t = 0; t < tokens; t++) {
      const at = rowAt(x, t, g);
      const row = inputs.subarray(t * k, (t + 1) * k);
      if (op.xBf16) decode16('bf16', tensors.bits(x.tensor).subarray(at, at + k), row);
      else row.set(tensors.f32(x.tensor).subarray(at, at + k));
    }
    for (let j = 0; j < n; j++) {
      const scale = load(g * n + j, weights);
      for (let t = 0; t < tokens; t++) {
        const value = dot(inputs, t * k, weights, 0, k) * scale;
        const at = rowAt(out, t, g) + j;
        if (outBf16) bits[at] = toBf16(value);
        else floats[at] = accumulate ? floats[at]! + value : value;
      }
      if ((work += (tokens + 1) * k) < PAUSE_AFTER) continue;
      work = 0;
      yield;
    }
  }
}

export function* experts(op: ExpertsOp, tensors: Tensors): Generator<void, void, void> {
  const { how, topK, n, k } = op;
  const [x, out, ids, shares] = [tensors.f32(op.x), tensors.f32(op.out), tensors.i32(op.ids), tensors.f32(op.weights)];
  const weights = new Float32Array(k);
  const load = rowLoader(op.weight, k, tensors);
  let work = 0;
  for (let expert = 0; expert < op.experts; expert++) {
    const users: number[] = [];
    for (let pair = 0; pair < op.tokens * topK; pair++) if (ids[pair] === op.first + expert) users.push(pair);
    if (users.length === 0) continue;
    for (let j = 0; j < n; j++) {
      const scale = load(expert * n + j, weights);
      for (const pair of users) {
        const token = Math.floor(pair / topK);
        const value = dot(x, (how === 'spread' ? token : pair) * k, weights, 0, k) * scale;
        if (how === 'spread') out[pair * n + j] = value;
        else out[token * n + j]! += shares[pair]! * value;
      }
      if ((work += (users.length + 1) * k) < PAUSE_AFTER) continue;
      work = 0;
      yield;
    }
  }
}

/** Loads a row of k numbers and tells what its products are to be multiplied by. */
function rowLoader({ form, data, scales }: Weight, k: number, tensors: Tensors): (row: number, into: Float32Array) => number {
  if (form === 'f32') {
    const floats = tensors.f32(data);
    return (row, into) => (into.set(floats.subarray(row * k, (row + 1) * k)), 1);
  }
  if (form === 'bf16') {
    const bits = tensors.bits(data);
    return (row, into) => (decode16('bf16', bits.subarray(row * k, (row + 1) * k), into), 1);
  }
  const words = tensors.i32(data);
  const bytes = new Int8Array(words.buffer, words.byteOffset, words.byteLength);
  const factors = tensors.f32(scales!);
  return (row, into) => (into.set(bytes.subarray(row * k, (row + 1) * k)), factors[row]!);
}
