/** Launcher of shaders/rope.wgsl. */
import type { RopeOp } from '../ops.ts';
import bf16Source from '../../shaders/bf16.wgsl?raw';
import source from '../../shaders/rope.wgsl?raw';
import { constants } from './kernel.ts';
import { ARGS, COLUMN_THREADS, PARAMS, checkPairs, columnGrid, reads, writes } from './launch.ts';
import type { Dispatch, Launching } from './step.ts';

/** @throws MlaError invalid-argument */
export function rope({ tokens, heads, n, x, angles, out }: RopeOp, { kernels, traits, buffer }: Launching): Dispatch {
  checkPairs(out, n);
  const kernel = kernels.get(
    'rope',
    () => [PARAMS, ARGS, reads('x', 'f32'), writes('out', 'u32')],
    () => [constants({ THREADS: COLUMN_THREADS, IS_BF16: true }), bf16Source, source].join('\n'),
  );
  return {
    label: 'rope', kernel, params: [tokens, heads, n / 2, x.stride, x.group, x.offset, out.stride, out.group, out.offset],
    args: [angles], buffers: [buffer(x.tensor), buffer(out.tensor)], grid: columnGrid((heads * n) / 2, tokens, traits.limits),
  };
}
