/** Launcher of shaders/combine.wgsl: merges the splits of a sequence. */
import type { DecodeOp } from '../backend.ts';
import bf16Source from '../../shaders/bf16.wgsl?raw';
import combineSource from '../../shaders/combine.wgsl?raw';
import { constants, type Kernel, type KernelCache } from './kernel.ts';
import { PLAN_LAYOUT } from '../plan.ts';

const THREADS = 64;

/** Bindings: plan, partials, out, lse. */
export function combineKernel(kernels: KernelCache, { dtype, dV }: DecodeOp): Kernel {
  return kernels.get(
    `combine ${dtype} d${dV}`,
    () => [
      { name: 'plan', access: 'read', element: 'u32' },
      { name: 'partials', access: 'read', element: 'vec2<f32>' },
      { name: 'out', access: 'read_write', element: 'u32' },
      { name: 'lse', access: 'read_write', element: 'u32' },
    ],
    () =>
      [
        constants({
          ...PLAN_LAYOUT, IS_BF16: dtype === 'bf16', V_WORDS: dV / 2, THREADS,
          WORDS_PER_THREAD: Math.ceil(dV / 2 / THREADS),
        }),
        bf16Source, combineSource,
      ].join('\n'),
  );
}
