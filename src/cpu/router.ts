/** The router of a mixture of experts. */
import type { RouterOp } from '../ops.ts';
import type { Tensors } from './tensors.ts';

export function router(op: RouterOp, tensors: Tensors): void {
  const { experts, topK, normalize, scale } = op;
  const [logits, ids, weights] = [tensors.f32(op.logits), tensors.i32(op.ids), tensors.f32(op.weights)];
  const bias = op.bias === undefined ? undefined : tensors.f32(op.bias);
  for (let t = 0; t < op.tokens; t++) {
    const scores = scoresOf(op.scoring, logits.subarray(t * experts, (t + 1) * experts));
    const choice = scores.map((score, e) => score + (bias?.[e] ?? 0));
    const chosen = best(eligible(op, choice), choice, topK);
    const sum = chosen.reduce((total, e) => total + scores[e]!, 0);
    chosen.forEach((e, i) => {
      ids[t * topK + i] = e;
      weights[t * topK + i] = (scores[e]! / (normalize ? sum + 1e-20 : 1)) * scale;
    });
  }
}

function scoresOf(scoring: RouterOp['scoring'], logits: Float32Array): Float32Array {
  if (scoring === 'sigmoid') return logits.map((x) => 1 / (1 + Math.exp(-x)));
  const most = logits.reduce((x, y) => Math.max(x, y), -Infinity);
  const powers = logits.map((x) => Math.exp(x - most));
  const sum = powers.reduce((x, y) => x + y, 0);
  return powers.map((x) => x / sum);
}

/** The experts of the best groups. */
function eligible({ experts, groups, topGroups, groupScore }: RouterOp, choice: Float32Array): number[] {
  const all = Array.from({ length: experts }, (_, e) => e);
  if (groups <= 1) return all;
  const size = experts / groups;
  const counts = Float32Array.from({ length: groups }, (_, g) => {
    const [first, second = 0] = choice.slice(g * size, (g + 1) * size).sort().reverse();
    return groupScore === 'max' ? first! : first! + second;
  });
  const taken = new Set(best(Array.from({ length: groups }, (_, g) => g), counts, topGroups));
  return all.filter((e) => taken.has(Math.floor(e / size)));
}

/** The `count` best of `items` by score, best first, the lower on a tie. */
function best(items: readonly number[], scores: Float32Array, count: number): number[] {
  return [...items].sort((a, b) => scores[b]! - scores[a]! || a - b).slice(0, count);
}
