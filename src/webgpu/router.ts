/** Launcher of shaders/router.wgsl. */
import type { RouterOp } from '../ops.ts';
import source from '../../shaders/router.wgsl?raw';
import sumSource from '../../shaders/workgroup_sum.wgsl?raw';
import { constants } from './kernel.ts';
import { PARAMS, f32Bits, reads, tokenGrid, writes } from './launch.ts';
import type { Dispatch, Launching } from './step.ts';

/** A model has one router's shape: it is compiled in. */
export function router(op: RouterOp, { kernels, traits, buffer }: Launching): Dispatch {
  const { tokens, experts, topK, groups, topGroups, normalize } = op;
  const biased = op.bias !== undefined;
  const [softmax, top2] = [op.scoring === 'softmax', op.groupScore === 'top2'];
  const threads = traits.kind === 'software' ? 16 : 256;
  const kernel = kernels.get(
    `router ${op.scoring} ${topK}/${experts} groups ${topGroups}/${groups} ${op.groupScore}${biased ? ' biased' : ''}${normalize ? ' normalized' : ''}`,
    () => [PARAMS, reads('logits', 'f32'), ...(biased ? [reads('bias', 'f32')] : []), writes('ids', 'u32'), writes('weights', 'f32')],
    () => [
      constants({ THREADS: threads, EXPERTS: experts, TOP_K: topK, GROUPS: groups, TOP_GROUPS: topGroups, SOFTMAX: softmax, TOP2: top2, NORMALIZE: normalize }),
      `fn load_bias(expert: u32) -> f32 { return ${biased ? 'bias[expert]' : '0.0'}; }`, sumSource, source,
    ].join('\n'),
  );
  return {
    label: 'router', kernel, params: [tokens, f32Bits(op.scale)],
    buffers: [op.logits, ...(biased ? [op.bias] : []), op.ids, op.weights].map(buffer), grid: tokenGrid(tokens, traits.limits),
  };
}
