/** Launcher of shaders/experts.wgsl. */
import type { ExpertsOp } from '../ops.ts';
import source from '../../shaders/experts.wgsl?raw';
import laneSource from '../../shaders/lane_sums.wgsl?raw';
import { constants, expand } from './kernel.ts';
import { PARAMS, checkGrid, reads, writes } from './launch.ts';
import { matmulConfig, tileRows } from './matmul-config.ts';
import type { Dispatch, Launching } from './step.ts';
import { vectorReader, weightReader, weightTensors } from './weight.ts';

/** @throws MlaError limit-exceeded */
export function experts(op: ExpertsOp, { kernels, traits, buffer }: Launching): Dispatch {
  const { tokens, topK, n, k, weight } = op;
  const gather = op.how === 'gather';
  const rows = weightReader(weight, k);
  const vectors = vectorReader({ stride: k, group: 0, offset: 0 }, k, false);
  const config = matmulConfig(traits.kind, 1, Math.ceil(k / rows.unit), n * (gather ? 1 : topK));
  const { threads, lanes } = config;
  const kernel = kernels.get(
    `experts ${op.how} ${rows.key} x ${vectors.key} ${threads}/${lanes}`,
    () => [PARAMS, vectors.binding, ...rows.bindings, reads('ids', 'u32'), ...(gather ? [reads('weights', 'f32')] : []), writes('out', 'f32')],
    () => {
      const values = { THREADS: threads, LANES: lanes, ROWS: config.rows, VALUES: config.rows, UNIT: rows.unit, QUADS: rows.unit / 4, GATHER: gather };
      return [constants(values), rows.source(), vectors.source(), laneSource, expand(source, values)].join('\n');
    },
  );
  const grid = [gather ? tokens : tokens * topK, Math.ceil(n / tileRows(config)), 1] as const;
  checkGrid(grid, 'x', traits.limits);
  return {
    label: 'experts', kernel, params: [n, k, topK, op.first, op.experts],
    buffers: [op.x, ...weightTensors(weight), op.ids, ...(gather ? [op.weights] : []), op.out].map(buffer), grid,
  };
}
