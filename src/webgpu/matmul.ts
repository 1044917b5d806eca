/** Launcher of shaders/matmul.wgsl, and of shaders/matmul_tiled.wgsl where there are many tokens. */
import { MlaError } from '../errors.ts';
import type { MatmulOp } from '../ops.ts';
import bf16Source from '../../shaders/bf16.wgsl?raw';
import laneSource from '../../shaders/lane_sums.wgsl?raw';
import source from '../../shaders/matmul.wgsl?raw';
import { constants, expand } from './kernel.ts';
import { PARAMS, checkGrid, checkPairs, writes } from './launch.ts';
import { matmulConfig, tileConfig, tileRows } from './matmul-config.ts';
import { matmulTiled } from './matmul-tiled.ts';
import type { Dispatch, Launching } from './step.ts';
import { vectorReader, weightReader, weightTensors } from './weight.ts';

/** @throws MlaError limit-exceeded, invalid-argument */
export function matmul(op: MatmulOp, launching: Launching): Dispatch {
  const { kernels, traits, buffer } = launching;
  const { tokens, groups, n, k, x, out, weight, outBf16, accumulate } = op;
  if (x.tensor === out.tensor) throw new MlaError('invalid-argument', 'a product cannot be written into its factor', { argument: 'out', expected: 'another tensor than x', got: 'x' });
  if (outBf16) checkPairs(out, n);
  const tile = tileConfig(traits.kind, tokens, groups, n);
  if (tile) return matmulTiled(op, tile, launching);
  const rows = weightReader(weight, k);
  const vectors = vectorReader(x, k, op.xBf16);
  const config = matmulConfig(traits.kind, tokens, Math.ceil(k / rows.unit), groups * n);
  const { threads, lanes } = config;
  const store = outBf16 ? 'bf16' : accumulate ? 'add' : 'f32';
  const kernel = kernels.get(
    `matmul ${rows.key} x ${vectors.key} to ${store} ${threads}/${lanes} ${config.rows}x${config.tokens}`,
    () => [PARAMS, vectors.binding, ...rows.bindings, writes('out', outBf16 ? 'u32' : 'f32')],
    () => {
      const values = {
        THREADS: threads, LANES: lanes, ROWS: config.rows, TOKENS: config.tokens, VALUES: config.rows * config.tokens, UNIT: rows.unit, QUADS: rows.unit / 4,
        STORE: outBf16 ? 2 : 1, OUT_BF16: outBf16, ACCUMULATE: store === 'add', IS_BF16: true,
      };
      return [constants(values), bf16Source, rows.source(), vectors.source(), laneSource, expand(source, values)].join('\n');
    },
  );
  const grid = [Math.ceil(tokens / config.tokens), Math.ceil(n / tileRows(config)), groups] as const;
  checkGrid(grid, 'x', traits.limits);
  return {
    label: 'matmul', kernel, params: [tokens, n, k, x.stride, x.group, x.offset, out.stride, out.group, out.offset],
    buffers: [x.tensor, ...weightTensors(weight), out.tensor].map(buffer), grid,
  };
}
