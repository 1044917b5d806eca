/** The feed-forward half of a layer: SwiGLU, or shared and routed experts with a router. */
import type { TensorId } from '../backend.ts';
import type { RouterOp, StepOp } from '../ops.ts';
import { norm, plain } from './mla-layer.ts';
import { experts, matmul, type SplitWeight } from './split-weight.ts';

export interface DenseWeights {
  /** [2 * width, hidden]: gate, then up. */
  readonly gateUp: SplitWeight;
  /** [hidden, width]. */
  readonly down: SplitWeight;
  readonly width: number;
}

export type Routing = Pick<RouterOp, 'experts' | 'topK' | 'scoring' | 'groups' | 'topGroups' | 'groupScore' | 'normalize' | 'scale'>;

export interface MoeWeights {
  readonly routing: Routing;
  /** [experts, hidden]. */
  readonly gate: SplitWeight;
  /** f32 [experts]. */
  readonly bias: TensorId | undefined;
  /** [experts, 2 * width, hidden] and [experts, hidden, width]. */
  readonly gateUp: SplitWeight;
  readonly down: SplitWeight;
  readonly width: number;
  readonly shared: DenseWeights | undefined;
}

/** Scratch, f32 but for the ids: T is the most tokens of a step. */
export interface FfnScratch {
  /** [T, hidden]. */
  readonly normed: TensorId;
  /** [T * max(topK, 1), 2 * widest] and half as wide. */
  readonly gateUp: TensorId;
  readonly inner: TensorId;
  /** [T, experts]; [T, topK] i32; [T, topK]. */
  readonly logits: TensorId;
  readonly ids: TensorId;
  readonly weights: TensorId;
}

/** x += mlp(norm(x)), for x f32 [T, hidden]. */
export function denseOps(tokens: number, hidden: number, x: TensorId, normWeight: TensorId, eps: number, w: DenseWeights, s: FfnScratch): StepOp[] {
  return [norm(tokens, hidden, x, normWeight, eps, s.normed), ...swigluOps(tokens, hidden, x, w, s)];
}

/** The same with experts: x += shared(norm(x)) + sum of the chosen experts. */
export function moeOps(tokens: number, hidden: number, x: TensorId, normWeight: TensorId, eps: number, w: MoeWeights, s: FfnScratch): StepOp[] {
  const { experts: count, topK } = w.routing;
  return [
    norm(tokens, hidden, x, normWeight, eps, s.normed),
    ...matmul(tokens, count, hidden, plain(s.normed, hidden), w.gate, plain(s.logits, count)),
    { op: 'router', tokens, ...w.routing, logits: s.logits, bias: w.bias, ids: s.ids, weights: s.weights },
    ...experts({ how: 'spread', tokens, topK, n: 2 * w.width, k: hidden, x: s.normed, ids: s.ids, weights: s.weights, out: s.gateUp }, w.gateUp),
    { op: 'swiglu', tokens: tokens * topK, n: w.width, x: s.gateUp, out: s.inner },
    ...experts({ how: 'gather', tokens, topK, n: hidden, k: w.width, x: s.inner, ids: s.ids, weights: s.weights, out: x }, w.down),
    ...(w.shared ? swigluOps(tokens, hidden, x, w.shared, s) : []),
  ];
}

function swigluOps(tokens: number, hidden: number, x: TensorId, { gateUp, down, width }: DenseWeights, s: FfnScratch): StepOp[] {
  return [
    ...matmul(tokens, 2 * width, hidden, plain(s.normed, hidden), gateUp, plain(s.gateUp, 2 * width)),
    { op: 'swiglu', tokens, n: width, x: s.gateUp, out: s.inner },
    ...matmul(tokens, hidden, width, plain(s.inner, width), down, plain(x, hidden), { accumulate: true }),
  ];
}
