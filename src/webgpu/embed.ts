/** Launcher of shaders/embed.wgsl. */
import type { EmbedOp } from '../ops.ts';
import source from '../../shaders/embed.wgsl?raw';
import { constants } from './kernel.ts';
import { ARGS, COLUMN_THREADS, PARAMS, columnGrid, reads, writes } from './launch.ts';
import type { Dispatch, Launching } from './step.ts';

const LOAD = {
  f32: 'fn load_table(at: u32) -> f32 { return table[at]; }',
  bf16: 'fn load_table(at: u32) -> f32 { return bitcast<f32>(select(table[at / 2u] << 16u, table[at / 2u] & 0xffff0000u, at % 2u == 1u)); }',
};

export function embed({ ids, first, rows, table, tableDtype, n, out }: EmbedOp, { kernels, traits, buffer }: Launching): Dispatch {
  const kernel = kernels.get(
    `embed ${tableDtype}`,
    () => [PARAMS, ARGS, reads('table', tableDtype === 'bf16' ? 'u32' : 'f32'), writes('out', 'f32')],
    () => [constants({ THREADS: COLUMN_THREADS }), LOAD[tableDtype], source].join('\n'),
  );
  return { label: 'embed', kernel, params: [ids.length, n, first, rows], args: [ids], buffers: [buffer(table), buffer(out)], grid: columnGrid(n, ids.length, traits.limits) };
}
