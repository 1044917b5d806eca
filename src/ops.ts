/**
 * What a transformer needs of a device besides attention: operations on tensors, as plain data.
 *
 * A step is a list of them, encoded in order into one submission. Rows are tokens: [T, n] throughout, activations f32.
 * Small host arrays (ids, positions' angles, slots) travel with the operation. Kernels know shapes, no models.
 */
import type { DecodeOp, AppendOp, TensorId } from './backend.ts';

/** Where rows are in a tensor: element (t, g, i) of the operation is at t * stride + g * group + offset + i. Elements, not bytes. */
export interface Rows {
  readonly tensor: TensorId;
  readonly stride: number;
  /** From one group (head) to the next; 0 where there is one. */
  readonly group: number;
  readonly offset: number;
}

/**
 * A matrix [groups or experts, n, k] in one of three forms: bf16; int8 with a scale a row of n (`data` is i32, four numbers a
 * word along k, k a multiple of 4; `scales` f32 [.., n]); f32.
 */
export interface Weight {
  readonly form: 'bf16' | 'int8' | 'f32';
  readonly data: TensorId;
  readonly scales: TensorId | undefined;
}

/** out[t, :] = table[ids[t] - first, :] where the table has that row; elsewhere out[t, :] stays. */
export interface EmbedOp {
  readonly op: 'embed';
  readonly ids: Int32Array;
  /** Id of the table's first row. */
  readonly first: number;
  readonly rows: number;
  /** [rows, n], bf16 or f32. */
  readonly table: TensorId;
  readonly tableDtype: 'bf16' | 'f32';
  readonly n: number;
  /** f32 [T, n]. */
  readonly out: TensorId;
}

/** out[t, :] = x[t, :] / sqrt(mean(x[t, :]^2) + eps) * weight, n numbers a row; rows may be slices of wider ones. */
export interface RmsNormOp {
  readonly op: 'rmsNorm';
  readonly tokens: number;
  readonly n: number;
  readonly x: Rows;
  /** f32 [n]. */
  readonly weight: TensorId;
  readonly eps: number;
  readonly out: Rows;
}

/**
 * out[t, g, j] (+)= sum_i x[t, g, i] * weight[g, j, i]. f32 sums. `out` is f32, or bf16 (rounded to nearest even) when
 * `outBf16`; bf16 output does not accumulate. `x` is f32, or bf16 when `xBf16`.
 */
export interface MatmulOp {
  readonly op: 'matmul';
  readonly tokens: number;
  readonly groups: number;
  readonly n: number;
  readonly k: number;
  readonly x: Rows;
  readonly xBf16: boolean;
  readonly weight: Weight;
  readonly out: Rows;
  readonly outBf16: boolean;
  readonly accumulate: boolean;
}

/**
 * Rotates pairs (2i, 2i + 1) of every head's n numbers by the token's angles, and rounds to bf16:
 * out[2i] = x[2i] cos_i - x[2i+1] sin_i, out[2i+1] = x[2i] sin_i + x[2i+1] cos_i.
 */
export interface RopeOp {
  readonly op: 'rope';
  readonly tokens: number;
  readonly heads: number;
  /** Numbers a head, even. */
  readonly n: number;
  readonly x: Rows;
  /** [T, n / 2, 2]: cosine, sine. */
  readonly angles: Float32Array;
  /** bf16. */
  readonly out: Rows;
}

/**
 * The new tokens' rows of the latent cache: RMSNorm of the latent, RoPE of the key part, both rounded to bf16, into their slots.
 */
export interface AppendLatentOp {
  readonly op: 'appendLatent';
  readonly tokens: number;
  /** f32 rows of d_v + rope numbers: the latent, then the key part. */
  readonly x: Rows;
  readonly dV: number;
  readonly rope: number;
  /** f32 [d_v]. */
  readonly normWeight: TensorId;
  readonly eps: number;
  /** [T, rope / 2, 2]: cosine, sine. */
  readonly angles: Float32Array;
  /** [num_blocks, block_size, 1, d_v + rope] bf16. */
  readonly kvCache: TensorId;
  readonly blockSize: number;
  /** [T]: block id * block_size + offset in the block. */
  readonly slots: Int32Array;
}

/** out[t, i] = silu(x[t, i]) * x[t, n + i]; rows of x hold gate, then up. f32. */
export interface SwigluOp {
  readonly op: 'swiglu';
  readonly tokens: number;
  readonly n: number;
  readonly x: TensorId;
  readonly out: TensorId;
}

/**
 * Chooses experts and their weights from logits [T, experts].
 *   softmax: score = softmax(logits). sigmoid: score = sigmoid(logits). Choice by score + bias (bias only chooses).
 *   groups > 1: experts in so many equal groups; a group counts by its best score (softmax, 'max') or the sum of its two best
 *   ('top2'); experts outside the `topGroups` best groups are out.
 *   The topK best by choice score, best first, the lower index on a tie. Weights are the scores (without bias), divided by their
 *   sum + 1e-20 when `normalize`, times `scale`.
 */
export interface RouterOp {
  readonly op: 'router';
  readonly tokens: number;
  readonly experts: number;
  readonly topK: number;
  readonly scoring: 'softmax' | 'sigmoid';
  readonly groups: number;
  readonly topGroups: number;
  readonly groupScore: 'max' | 'top2';
  readonly normalize: boolean;
  readonly scale: number;
  /** f32 [T, experts]. */
  readonly logits: TensorId;
  /** f32 [experts]. */
  readonly bias: TensorId | undefined;
  /** i32 [T, topK]. */
  readonly ids: TensorId;
  /** f32 [T, topK]. */
  readonly weights: TensorId;
}

/**
 * Matrix products with the expert that the router chose. 'spread': out[t, e, :] = W[ids[t, e]] x[t, :]. 'gather':
 * out[t, :] += sum_e weights[t, e] W[ids[t, e]] x[t, e, :]. f32. The weight has experts `first` to `first + experts` (exclusive);
 * choices of others change nothing.
 */
export interface ExpertsOp {
  readonly op: 'experts';
  readonly how: 'spread' | 'gather';
  readonly tokens: number;
  readonly topK: number;
  readonly first: number;
  readonly experts: number;
  readonly n: number;
  readonly k: number;
  /** spread: [T, k]; gather: [T, topK, k]. */
  readonly x: TensorId;
  /** [experts, n, k]. */
  readonly weight: Weight;
  readonly ids: TensorId;
  readonly weights: TensorId;
  /** spread: [T, topK, n]; gather: [T, n]. */
  readonly out: TensorId;
}

/** out[s, :] = x[rows[s], :]. f32. */
export interface TakeRowsOp {
  readonly op: 'takeRows';
  readonly rows: Int32Array;
  readonly n: number;
  readonly x: TensorId;
  readonly out: TensorId;
}

/** How the next token of one sequence is chosen. */
export interface SamplingRow {
  /** 0: the largest logit, the lower id on a tie. */
  readonly temperature: number;
  /** 0: all. */
  readonly topK: number;
  /** 1: all. */
  readonly topP: number;
  /** 1: none. Logits of ids in `seen` are divided by it when positive, multiplied when negative. */
  readonly repetitionPenalty: number;
  /** In [0, 1): where in the cumulative probabilities of the tokens that are left, by descending probability, the choice falls. */
  readonly random: number;
}

/** ids[s] = the token chosen from logits[s, :]. */
export interface SampleOp {
  readonly op: 'sample';
  readonly rows: readonly SamplingRow[];
  readonly vocab: number;
  /** f32 [S, vocab]; repetition penalty may change it. */
  readonly logits: TensorId;
  /** Ids that the penalty applies to, each once, row after row; row s has seenStart[s] .. seenStart[s + 1]. */
  readonly seen: Int32Array;
  readonly seenStart: Int32Array;
  /** i32 [S]. */
  readonly out: TensorId;
}

export type StepOp =
  | EmbedOp | RmsNormOp | MatmulOp | RopeOp | AppendLatentOp | SwigluOp | RouterOp | ExpertsOp | TakeRowsOp | SampleOp
  | ({ readonly op: 'decode' } & DecodeOp) | ({ readonly op: 'append' } & AppendOp);
