/** Chooses next tokens from logits. */
import type { SampleOp, SamplingRow } from '../ops.ts';
import type { Tensors } from './tensors.ts';

export function sample({ rows, vocab, logits, seen, seenStart, out }: SampleOp, tensors: Tensors): void {
  const [all, ids] = [tensors.f32(logits), tensors.i32(out)];
  rows.forEach((row, s) => {
    const own = all.subarray(s * vocab, (s + 1) * vocab);
    if (row.repetitionPenalty !== 1) penalize(own, seen.subarray(seenStart[s]!, seenStart[s + 1]!), row.repetitionPenalty);
    ids[s] = row.temperature === 0 ? largest(own) : draw(own, row);
  });
}

function penalize(logits: Float32Array, seen: Int32Array, penalty: number): void {
  for (const id of seen) logits[id] = logits[id]! > 0 ? logits[id]! / penalty : logits[id]! * penalty;
}

function largest(logits: Float32Array): number {
  let best = 0;
  for (let i = 1; i < logits.length; i++) if (logits[i]! > logits[best]!) best = i;
  return best;
}

function draw(logits: Float32Array, { temperature, topK, topP, random }: SamplingRow): number {
  const ids = descending(logits);
  let left = topK > 0 ? Math.min(topK, ids.length) : ids.length;
  const most = logits[ids[0]!]!;
  const sums = new Float64Array(left);
  for (let i = 0, sum = 0; i < left; i++) sums[i] = sum += Math.exp((logits[ids[i]!]! - most) / temperature);
  if (topP < 1) {
    const enough = topP * sums[left - 1]!;
    left = sums.findIndex((sum) => sum >= enough) + 1;
  }
  const target = random * sums[left - 1]!;
  const at = sums.findIndex((sum) => sum > target);
  return ids[Math.min(at, left - 1)]!;
}

const ID_SPAN = 2 ** 20;

/**
 * Ids by descending logit, the lower id first on a tie. Logits' bits, in an order that numbers have, and ids are sorted as one
 * number of 52 bits: with a comparing function a sort takes many times as long.
 */
function descending(logits: Float32Array): Uint32Array {
  const bits = new Uint32Array(new Float32Array(logits.map((x) => x + 0)).buffer); // -0 + 0 is 0
  const keys = new Float64Array(logits.length);
  for (let i = 0; i < keys.length; i++) {
    const x = bits[i]!;
    const rising = (x >>> 31 ? ~x : x | 0x80000000) >>> 0;
    keys[i] = (0xffffffff - rising) * ID_SPAN + i;
  }
  return Uint32Array.from(keys.sort(), (key) => key % ID_SPAN);
}
