/** Launcher of shaders/take_rows.wgsl. */
import type { TakeRowsOp } from '../ops.ts';
import source from '../../shaders/take_rows.wgsl?raw';
import { constants } from './kernel.ts';
import { ARGS, COLUMN_THREADS, PARAMS, columnGrid, reads, writes } from './launch.ts';
import type { Dispatch, Launching } from './step.ts';

export function takeRows({ rows, n, x, out }: TakeRowsOp, { kernels, traits, buffer }: Launching): Dispatch {
  const kernel = kernels.get(
    'take rows',
    () => [PARAMS, ARGS, reads('x', 'f32'), writes('out', 'f32')],
    () => [constants({ THREADS: COLUMN_THREADS }), source].join('\n'),
  );
  return { label: 'take rows', kernel, params: [rows.length, n], args: [rows], buffers: [buffer(x), buffer(out)], grid: columnGrid(n, rows.length, traits.limits) };
}
