/** Launcher of native-cuda/combine.cu: merges the splits of a sequence. It starts while the decode kernel in front of it ends. */
import type { CombineKernelName, DecodeConfig } from './config.ts';
import type { CudaContext } from './context.ts';
import { Launch } from './launch.ts';
import type { Modules } from './modules.ts';

const THREADS: Readonly<Record<CombineKernelName, number>> = { combine_bf16: 256, combine_f16: 256, combine_few_bf16: 128, combine_few_f16: 128 };

export class CombineKernels {
  readonly #launches: Readonly<Record<CombineKernelName, Launch>>;

  /** @param params address of CombineParams, read at each launch */
  constructor(context: CudaContext, modules: Modules, params: number) {
    this.#launches = Object.fromEntries(
      Object.entries(THREADS).map(([name, threads]) => [name, new Launch(context, name, modules.function('combine', name), params, { threads, dependent: true })]),
    ) as Record<CombineKernelName, Launch>;
  }

  run({ kernel, grid }: NonNullable<DecodeConfig['combine']>): void {
    this.#launches[kernel].run(grid[0], grid[1], grid[2]);
  }
}
