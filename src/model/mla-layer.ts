/**
 * Multi-head Latent Attention as a layer: hidden state in, hidden state out, from DeepSeek's weights.
 *
 * Keys and values come from one latent a token (kv_lora_rank numbers) and one RoPE key that all heads share; only those reach
 * the cache. kv_b_proj, which would make keys and values of each head from the latent, is absorbed: its key half W_UK into the
 * queries, its value half W_UV behind the attention. So attention runs on the latent itself, one KV head for all heads.
 */
import type { TensorId } from '../backend.ts';
import type { Rows, StepOp } from '../ops.ts';
import type { LayerStep } from './layer-step.ts';
import { matmul, type SplitWeight } from './split-weight.ts';

export interface MlaDims {
  readonly hidden: number;
  readonly heads: number;
  /** Width of the low-rank query; null where queries come from the hidden state at once. */
  readonly qLoraRank: number | null;
  readonly kvLoraRank: number;
  readonly nope: number;
  readonly rope: number;
  /** Width of a head's value. */
  readonly value: number;
  readonly eps: number;
  /** Of the norms of the low-rank query and of the latent. */
  readonly latentEps: number;
  readonly softmaxScale: number;
}

export interface MlaWeights {
  /** f32 [hidden]. */
  readonly inputNorm: TensorId;
  /** [heads * (nope + rope), hidden], or from the low-rank query when there is one. */
  readonly q: SplitWeight;
  /** [qLoraRank, hidden] and its norm, f32 [qLoraRank]. */
  readonly qA: { readonly weight: SplitWeight; readonly norm: TensorId } | undefined;
  /** [kvLoraRank + rope, hidden]. */
  readonly kvA: SplitWeight;
  /** f32 [kvLoraRank]. */
  readonly kvNorm: TensorId;
  /** [heads, kvLoraRank, nope]: a head's query into the latent's space. */
  readonly uk: SplitWeight;
  /** [heads, value, kvLoraRank]: a latent out into a head's value. */
  readonly uv: SplitWeight;
  /** [hidden, heads * value]. */
  readonly o: SplitWeight;
}

/** Scratch: f32 for as many tokens as a step may have. */
export interface MlaScratch {
  /** [T, hidden]. */
  readonly normed: TensorId;
  /** [T, qLoraRank]. */
  readonly qLow: TensorId;
  /** [T, heads * (nope + rope)]. */
  readonly q: TensorId;
  /** [T, kvLoraRank + rope]. */
  readonly kv: TensorId;
  /** [T, heads * value]. */
  readonly values: TensorId;
}

export class MlaLayer {
  readonly dims: MlaDims;
  readonly #weights: MlaWeights;
  readonly #scratch: MlaScratch;

  constructor(dims: MlaDims, weights: MlaWeights, scratch: MlaScratch) {
    this.dims = dims;
    this.#weights = weights;
    this.#scratch = scratch;
  }

  /** x += attention(norm(x)), for x f32 [T, hidden]. @param kvCache this layer's pool */
  ops(step: LayerStep, x: TensorId, kvCache: TensorId): StepOp[] {
    const { hidden, heads, qLoraRank, kvLoraRank, nope, rope, value, eps, latentEps, softmaxScale } = this.dims;
    const w = this.#weights;
    const s = this.#scratch;
    const { tokens, angles } = step;
    const head = nope + rope;
    const latent = kvLoraRank + rope;
    const ops: StepOp[] = [norm(tokens, hidden, x, w.inputNorm, eps, s.normed)];
    if (qLoraRank !== null && w.qA) {
      ops.push(
        ...matmul(tokens, qLoraRank, hidden, plain(s.normed, hidden), w.qA.weight, plain(s.qLow, qLoraRank)),
        norm(tokens, qLoraRank, s.qLow, w.qA.norm, latentEps, s.qLow),
        ...matmul(tokens, heads * head, qLoraRank, plain(s.qLow, qLoraRank), w.q, plain(s.q, heads * head)),
      );
    } else {
      ops.push(...matmul(tokens, heads * head, hidden, plain(s.normed, hidden), w.q, plain(s.q, heads * head)));
    }
    ops.push(
      ...matmul(tokens, latent, hidden, plain(s.normed, hidden), w.kvA, plain(s.kv, latent)),
      {
        op: 'appendLatent', tokens, x: plain(s.kv, latent), dV: kvLoraRank, rope, normWeight: w.kvNorm, eps: latentEps, angles,
        kvCache, blockSize: step.blockSize, slots: step.slots,
      },
    );
    for (const group of step.groups) {
      const count = group.b * group.sQ;
      const from = (offset: number): Rows => ({ tensor: s.q, stride: heads * head, group: head, offset: group.row * heads * head + offset });
      const to = (offset: number): Rows => ({ tensor: group.q, stride: heads * latent, group: latent, offset });
      ops.push(
        ...matmul(count, kvLoraRank, nope, from(0), w.uk, to(0), { groups: heads, outBf16: true }),
        { op: 'rope', tokens: count, heads, n: rope, x: from(nope), angles: angles.subarray(group.row * rope, (group.row + count) * rope), out: to(kvLoraRank) },
        {
          op: 'decode', b: group.b, sQ: group.sQ, hQ: heads, hKv: 1, dQk: latent, dV: kvLoraRank, blockSize: step.blockSize, dtype: 'bf16',
          q: group.q, kvCache, out: group.out, lse: group.lse, blockTable: group.blockTable, maxBlocksPerSeq: group.maxBlocksPerSeq,
          metadata: group.metadata, metadataId: group.metadataId, softmaxScale, causal: group.sQ > 1,
        },
        ...matmul(count, value, kvLoraRank, { tensor: group.out, stride: heads * kvLoraRank, group: kvLoraRank, offset: 0 }, w.uv,
          { tensor: s.values, stride: heads * value, group: value, offset: group.row * heads * value }, { groups: heads, xBf16: true }),
      );
    }
    ops.push(...matmul(tokens, hidden, heads * value, plain(s.values, heads * value), w.o, plain(x, hidden), { accumulate: true }));
    return ops;
  }
}

/** Rows that lie end to end. */
export function plain(tensor: TensorId, width: number): Rows {
  return { tensor, stride: width, group: 0, offset: 0 };
}

export function norm(tokens: number, n: number, x: TensorId, weight: TensorId, eps: number, out: TensorId): StepOp {
  return { op: 'rmsNorm', tokens, n, x: plain(x, n), weight, eps, out: plain(out, n) };
}
