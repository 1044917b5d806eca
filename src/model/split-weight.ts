/**
 * A matrix on the device, in as many tensors as the device's bindings ask for, and the operations with it: one for each.
 *
 * An embedding of DeepSeek-V3 is 1.85 GB and a layer's experts are 15 GB of bf16, where WebGPU binds 128 MiB unless asked for more.
 */
import type { TensorId } from '../backend.ts';
import type { EmbedOp, ExpertsOp, MatmulOp, Rows, Weight } from '../ops.ts';

/** Some of a matrix's rows, or of its groups. */
export interface WeightSegment {
  readonly first: number;
  readonly count: number;
  readonly weight: Weight;
}

export interface SplitWeight {
  /** What is split: [n, k] by rows, [groups or experts, n, k] by groups. */
  readonly by: 'rows' | 'groups';
  /** In order, all of it. */
  readonly segments: readonly WeightSegment[];
}

/** A segment is put together in an array of JavaScript. */
const MOST_BYTES = 1 << 30;

/**
 * Cuts `count` rows or groups of `bytes` each into as few segments as a device can bind, about even. What is larger than a binding by
 * itself gets a segment of its own, which the device refuses.
 * @param limits of a device (`MlaInfo.limits`)
 */
export function splitEvenly(count: number, bytes: number, limits: Readonly<Record<string, number>>): { readonly first: number; readonly count: number }[] {
  const most = Math.min(MOST_BYTES, limits['maxStorageBufferBindingSize'] ?? Infinity, limits['maxBufferSize'] ?? Infinity);
  const segments = Math.ceil(count / Math.max(1, Math.floor(most / bytes)));
  return Array.from({ length: segments }, (_, i) => {
    const first = Math.floor((i * count) / segments);
    return { first, count: Math.floor(((i + 1) * count) / segments) - first };
  });
}

/** A matrix in one tensor. @param count its rows, or groups */
export function whole(by: SplitWeight['by'], count: number, weight: Weight): SplitWeight {
  return { by, segments: [{ first: 0, count, weight }] };
}

/** out = weight x: f32 in, f32 out, one group, unless `rest` says otherwise. */
export function matmul(
  tokens: number, n: number, k: number, x: Rows, { by, segments }: SplitWeight, out: Rows,
  rest: Partial<Pick<MatmulOp, 'groups' | 'xBf16' | 'outBf16' | 'accumulate'>> = {},
): MatmulOp[] {
  return segments.map(({ first, count, weight }) => {
    const op: MatmulOp = { op: 'matmul', tokens, groups: 1, n, k, x, xBf16: false, weight, out, outBf16: false, accumulate: false, ...rest };
    return by === 'rows'
      ? { ...op, n: count, out: { ...out, offset: out.offset + first } }
      : { ...op, groups: count, x: { ...x, offset: x.offset + first * x.group }, out: { ...out, offset: out.offset + first * out.group } };
  });
}

/** out[t, :] = table[ids[t], :], for a table of bf16. */
export function embed(ids: Int32Array, n: number, table: SplitWeight, out: TensorId): EmbedOp[] {
  return table.segments.map(({ first, count, weight }) => ({ op: 'embed', ids, first, rows: count, table: weight.data, tableDtype: 'bf16', n, out }));
}

/** @see ExpertsOp */
export function experts(op: Omit<ExpertsOp, 'op' | 'weight' | 'first' | 'experts'>, { segments }: SplitWeight): ExpertsOp[] {
  return segments.map(({ first, count, weight }) => ({ ...op, op: 'experts', first, experts: count, weight }));
}
