/** Launcher of shaders/swiglu.wgsl. */
import type { SwigluOp } from '../ops.ts';
import source from '../../shaders/swiglu.wgsl?raw';
import { constants } from './kernel.ts';
import { COLUMN_THREADS, PARAMS, columnGrid, reads, writes } from './launch.ts';
import type { Dispatch, Launching } from './step.ts';

export function swiglu({ tokens, n, x, out }: SwigluOp, { kernels, traits, buffer }: Launching): Dispatch {
  const kernel = kernels.get(
    'swiglu',
    () => [PARAMS, reads('x', 'f32'), writes('out', 'f32')],
    () => [constants({ THREADS: COLUMN_THREADS }), source].join('\n'),
  );
  return { label: 'swiglu', kernel, params: [tokens, n], buffers: [buffer(x), buffer(out)], grid: columnGrid(n, tokens, traits.limits) };
}
