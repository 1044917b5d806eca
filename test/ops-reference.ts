/**
 * The operations of src/ops.ts in float64, written from their definitions and sharing nothing with src/.
 *
 * Matrices are arrays of rows. Whatever is stored in 16 bits or as integers comes as the values that it holds.
 */
export type Row = readonly number[];
export type Matrix = readonly Row[];

export function rmsNorm(x: Row, weight: Row, eps: number): number[] {
  const mean = x.reduce((sum, v) => sum + v * v, 0) / x.length;
  return x.map((v, i) => (v * weight[i]!) / Math.sqrt(mean + eps));
}

/** W x. */
export function product(weight: Matrix, x: Row): number[] {
  return weight.map((row) => row.reduce((sum, w, i) => sum + w * x[i]!, 0));
}

/** Complex numbers (x[2i], x[2i + 1]), each multiplied by (cos, sin). */
export function rope(x: Row, angles: Row): number[] {
  const out: number[] = [];
  for (let i = 0; i < x.length; i += 2) {
    out.push(x[i]! * angles[i]! - x[i + 1]! * angles[i + 1]!);
    out.push(x[i]! * angles[i + 1]! + x[i + 1]! * angles[i]!);
  }
  return out;
}

export function swiglu(x: Row): number[] {
  const n = x.length / 2;
  return x.slice(0, n).map((gate, i) => (gate / (1 + Math.exp(-gate))) * x[n + i]!);
}

export interface RouterArgs {
  readonly logits: Row;
  readonly bias?: Row;
  readonly topK: number;
  readonly scoring: 'softmax' | 'sigmoid';
  readonly groups: number;
  readonly topGroups: number;
  readonly groupScore: 'max' | 'top2';
  readonly normalize: boolean;
  readonly scale: number;
}

export function router({ logits, bias, topK, scoring, groups, topGroups, groupScore, normalize, scale }: RouterArgs): { ids: number[]; weights: number[] } {
  const total = logits.reduce((sum, x) => sum + Math.exp(x), 0);
  const scores = logits.map((x) => (scoring === 'softmax' ? Math.exp(x) / total : 1 / (1 + Math.exp(-x))));
  const choice = scores.map((score, e) => score + (bias?.[e] ?? 0));
  let left = order(choice);
  if (groups > 1) {
    const size = logits.length / groups;
    const marks = Array.from({ length: groups }, (_, g) => {
      const sorted = choice.slice(g * size, (g + 1) * size).sort((a, b) => b - a);
      return groupScore === 'max' ? sorted[0]! : sorted[0]! + sorted[1]!;
    });
    const open = order(marks).slice(0, topGroups);
    left = left.filter((e) => open.includes(Math.floor(e / size)));
  }
  const ids = left.slice(0, topK);
  const sum = ids.reduce((s, e) => s + scores[e]!, 0);
  return { ids, weights: ids.map((e) => (normalize ? scores[e]! / (sum + 1e-20) : scores[e]!) * scale) };
}

export interface SampleArgs {
  readonly temperature: number;
  readonly topK: number;
  readonly topP: number;
  readonly repetitionPenalty: number;
}

/** Tokens that may be chosen, by descending probability, and the sums of their probabilities up to each, of 1 in all. */
export function distribution(logits: Row, seen: Row, { temperature, topK, topP, repetitionPenalty }: SampleArgs): { ids: number[]; sums: number[] } {
  const changed = logits.map((x, id) => (!seen.includes(id) ? x : x > 0 ? x / repetitionPenalty : x * repetitionPenalty));
  let ids = order(changed);
  if (temperature === 0) return { ids: [ids[0]!], sums: [1] };
  if (topK > 0) ids = ids.slice(0, topK);
  const sums = (): number[] => {
    const powers = ids.map((id) => Math.exp((changed[id]! - changed[ids[0]!]!) / temperature));
    const total = powers.reduce((a, b) => a + b, 0);
    let sum = 0;
    return powers.map((p) => (sum += p / total));
  };
  if (topP < 1) {
    const enough = sums().findIndex((sum) => sum >= topP);
    ids = ids.slice(0, enough < 0 ? ids.length : enough + 1);
  }
  return { ids, sums: sums() };
}

/** Indices by descending value, the lower one first on a tie. */
function order(values: Row): number[] {
  return values.map((_, i) => i).sort((a, b) => values[b]! - values[a]! || a - b);
}
