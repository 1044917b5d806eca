/**
 * Decode attention in plain TypeScript, a generator that pauses after every KV block so that its caller can give the
 * thread back.
 *
 * How work is cut: a sequence and KV head at a time; each KV block is widened to f32 once and used by all query rows,
 * with a running maximum and sum a row (the kernels' online softmax, in one pass and without splits).
 */
import type { DecodeOp } from '../backend.ts';
import { decode16, encode16 } from '../bf16.ts';
import { dot } from './dot.ts';
import type { Tensors } from './tensors.ts';

export function* decode(op: DecodeOp, tensors: Tensors): Generator<void, void, void> {
  const { b, sQ, hQ, hKv, dQk, dV, blockSize, dtype, causal } = op;
  const group = hQ / hKv;
  const rows = sQ * group;
  const lengths = op.metadata.cacheSeqlens;
  const scale = op.softmaxScale;
  const memory = {
    q: tensors.bits(op.q), kvCache: tensors.bits(op.kvCache), out: tensors.bits(op.out), lse: tensors.f32(op.lse),
    blockTable: typeof op.blockTable === 'number' ? tensors.i32(op.blockTable) : op.blockTable,
  };
  const queries = new Float32Array(rows * dQk);
  const keys = new Float32Array(blockSize * dQk);
  const output = new Float32Array(rows * dV);
  const highest = new Float64Array(rows);
  const total = new Float64Array(rows);
  const scores = new Float64Array(blockSize);

  for (let i = 0; i < b; i++) {
    const length = lengths[i]!;
    for (let head = 0; head < hKv; head++) {
      // Row r is query token r / group of head head * group + r % group.
      const qRow = (r: number): number => (i * sQ + Math.floor(r / group)) * hQ + head * group + (r % group);
      for (let r = 0; r < rows; r++) {
        decode16(dtype, memory.q.subarray(qRow(r) * dQk, (qRow(r) + 1) * dQk), queries.subarray(r * dQk, (r + 1) * dQk));
      }
      output.fill(0);
      highest.fill(-Infinity);
      total.fill(0);
      for (let start = 0; start < length; start += blockSize) {
        const block = memory.blockTable[i * op.maxBlocksPerSeq + start / blockSize]!;
        const count = Math.min(blockSize, length - start);
        for (let t = 0; t < count; t++) {
          const at = ((block * blockSize + t) * hKv + head) * dQk;
          decode16(dtype, memory.kvCache.subarray(at, at + dQk), keys.subarray(t * dQk, (t + 1) * dQk));
        }
        for (let r = 0; r < rows; r++) {
          const visible = causal ? Math.min(count, length - sQ + Math.floor(r / group) + 1 - start) : count;
          if (visible <= 0) continue;
          const query = queries.subarray(r * dQk, (r + 1) * dQk);
          let most = highest[r]!;
          for (let t = 0; t < visible; t++) {
            const score = dot(query, 0, keys, t * dQk, dQk) * scale;
            scores[t] = score;
            if (!(score <= most)) most = score; // NaN wins, and stays
          }
          if (most === -Infinity) continue; // Every key seen so far weighs nothing.
          const acc = output.subarray(r * dV, (r + 1) * dV);
          const rescale = Math.exp(highest[r]! - most);
          if (rescale !== 1) for (let d = 0; d < dV; d++) acc[d]! *= rescale;
          let sum = total[r]! * rescale;
          for (let t = 0; t < visible; t++) {
            const p = Math.exp(scores[t]! - most);
            sum += p;
            const v = t * dQk;
            for (let d = 0; d < dV; d++) acc[d]! += p * keys[v + d]!;
          }
          highest[r] = most;
          total[r] = sum;
        }
        yield;
      }
      for (let r = 0; r < rows; r++) {
        const sum = total[r]!;
        const acc = output.subarray(r * dV, (r + 1) * dV);
        const empty = sum === 0;
        for (let d = 0; d < dV; d++) acc[d] = empty ? 0 : acc[d]! / sum;
        encode16(dtype, acc, memory.out.subarray(qRow(r) * dV, (qRow(r) + 1) * dV));
        memory.lse[(i * hQ + head * group + (r % group)) * sQ + Math.floor(r / group)] = empty ? Infinity : highest[r]! + Math.log(sum);
      }
      yield;
    }
  }
}
