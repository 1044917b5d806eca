/** Launcher of shaders/combine.wgsl: merges the splits of a sequence. */
import type { DecodeOp } from '../backend.ts';
import bf16Source from '../../shaders/bf16.wgsl?raw';
import combineSource from '../../shaders/combine.wgsl?raw';
import type { CombineConfig } from './combine-grid.ts';
import { constants, expand, type Kernels } from './kernel.ts';
import { PLAN_LAYOUT } from '../plan.ts';

/** Bindings: plan, partials, out, lse. */
export function combineKernel<Result>(kernels: Kernels<Result>, { dtype, dV }: Pick<DecodeOp, 'dtype' | 'dV'>, { threads, mostGroups }: CombineConfig): Result {
  return kernels.get(
    `combine ${dtype} d${dV} ${threads}`,
    () => [
      { name: 'plan', access: 'read', element: 'u32' },
      { name: 'partials', access: 'read', element: 'vec4<f32>' },
      { name: 'out', access: 'read_write', element: 'vec2<u32>' },
      { name: 'lse', access: 'read_write', element: 'u32' },
    ],
    () =>
      [
        constants({ ...PLAN_LAYOUT, IS_BF16: dtype === 'bf16', V_QUADS: dV / 4, THREADS: threads, MOST_GROUPS: mostGroups }),
        bf16Source, expand(combineSource, {}),
      ].join('\n'),
  );
}
