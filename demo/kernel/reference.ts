/**
 * Attention in float64, from the definition and apart from src/:
 *
 *   lse = log sum_t exp(scale * K_t q),   out = sum_t exp(scale * K_t q - lse) V_t,   V_t = K_t[0 .. d_v)
 *
 * over the keys a row may see. The maximum and the sums run along with the keys, so that a sequence of any length
 * needs the memory of one tile.
 */
import { D_QK, D_V } from './shape.ts';

export interface ReferenceRow {
  /** [d_qk] bits of bf16. */
  readonly q: Uint16Array;
  /** Keys it sees: 0 .. visible - 1. */
  readonly visible: number;
}

export interface ReferenceResult {
  /** [d_v]; zeros where there was nothing to attend to. */
  readonly out: Float64Array;
  /** +inf where there was nothing to attend to. */
  readonly lse: number;
}

/** @param tiles the keys of one sequence in order, each [tokens, d_qk] bits of bf16 */
export function referenceDecode(tiles: Iterable<Uint16Array>, rows: readonly ReferenceRow[]): ReferenceResult[] {
  const scale = D_QK ** -0.5;
  const states = rows.map(({ q, visible }) => ({
    q: widen(q).map((value) => value * scale), visible, max: -Infinity, sum: 0, out: new Float64Array(D_V),
  }));
  let first = 0;
  for (const tile of tiles) {
    const keys = widen(tile);
    const tokens = tile.length / D_QK;
    const scores = new Float64Array(tokens);
    for (const state of states) {
      const seen = Math.min(tokens, state.visible - first);
      if (seen <= 0) continue;
      let max = state.max;
      for (let t = 0; t < seen; t++) {
        scores[t] = dot(state.q, keys, t * D_QK);
        max = Math.max(max, scores[t]!);
      }
      const rescale = Math.exp(state.max - max);
      state.max = max;
      state.sum *= rescale;
      for (let d = 0; d < D_V; d++) state.out[d]! *= rescale;
      for (let t = 0; t < seen; t++) {
        const p = Math.exp(scores[t]! - max);
        state.sum += p;
        for (let d = 0, at = t * D_QK; d < D_V; d++, at++) state.out[d]! += p * keys[at]!;
      }
    }
    first += tokens;
  }
  return states.map(({ max, sum, out }) => (sum === 0 ? { out, lse: Infinity } : { out: out.map((value) => value / sum), lse: max + Math.log(sum) }));
}

/** Four sums, so that the additions overlap. */
function dot(q: Float64Array, keys: Float64Array, at: number): number {
  let [a, b, c, d] = [0, 0, 0, 0];
  for (let i = 0; i < D_QK; i += 4) {
    a += q[i]! * keys[at + i]!;
    b += q[i + 1]! * keys[at + i + 1]!;
    c += q[i + 2]! * keys[at + i + 2]!;
    d += q[i + 3]! * keys[at + i + 3]!;
  }
  return a + b + (c + d);
}

/** bf16 is the upper half of a float32. */
function widen(bits: Uint16Array): Float64Array {
  const words = Uint32Array.from(bits, (value) => value << 16);
  return Float64Array.from(new Float32Array(words.buffer));
}

/** One bf16 number. */
export function widenOne(bits: number): number {
  word[0] = bits << 16;
  return number[0]!;
}

const word = new Uint32Array(1);
const number = new Float32Array(word.buffer);
