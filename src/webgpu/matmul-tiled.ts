/** Launcher of shaders/matmul_tiled.wgsl. */
import type { MatmulOp } from '../ops.ts';
import bf16Source from '../../shaders/bf16.wgsl?raw';
import source from '../../shaders/matmul_tiled.wgsl?raw';
import { constants, expand } from './kernel.ts';
import { PARAMS, checkGrid, writes } from './launch.ts';
import { tileTokens, type TileConfig } from './matmul-config.ts';
import type { Dispatch, Launching } from './step.ts';
import { vectorReader, weightReader, weightTensors } from './weight.ts';

/** As `matmul`, whose checks have been made. @throws MlaError limit-exceeded */
export function matmulTiled(op: MatmulOp, config: TileConfig, { kernels, traits, buffer }: Launching): Dispatch {
  const { tokens, groups, n, k, x, out, weight, outBf16, accumulate } = op;
  const rows = weightReader(weight, k);
  const vectors = vectorReader(x, k, op.xBf16);
  const { threads, step } = config;
  const store = outBf16 ? 'bf16' : accumulate ? 'add' : 'f32';
  const kernel = kernels.get(
    `matmul tiled ${rows.key} x ${vectors.key} to ${store} ${threads} ${config.tileRows}/${config.pairs}x${config.tokens} ${step}`,
    () => [PARAMS, vectors.binding, ...rows.bindings, writes('out', outBf16 ? 'u32' : 'f32')],
    () => {
      const values = {
        THREADS: threads, TILE_ROWS: config.tileRows, TILE_TOKENS: tileTokens(config), PAIRS: config.pairs, TOKENS: config.tokens, STEP: step, UNIT: rows.unit, QUADS: rows.unit / 4,
        OUT_BF16: outBf16, ACCUMULATE: store === 'add', IS_BF16: true,
      };
      return [constants(values), bf16Source, rows.source(), vectors.source(), expand(source, values)].join('\n');
    },
  );
  const grid = [Math.ceil(tokens / tileTokens(config)), Math.ceil(n / config.tileRows), groups] as const;
  checkGrid(grid, 'x', traits.limits);
  return {
    label: 'matmul', kernel, params: [tokens, n, k, x.stride, x.group, x.offset, out.stride, out.group, out.offset],
    buffers: [x.tensor, ...weightTensors(weight), out.tensor].map(buffer), grid,
  };
}
