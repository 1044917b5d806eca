/** Launcher of native-cuda/combine.cu: merges the splits of a sequence. It starts while the decode kernel in front of it ends. */
import type { KvDType } from '../mla.ts';
import { COMBINE_ALONE_BYTES, COMBINE_THREADS, type CombineKernelName, type DecodeConfig } from './config.ts';
import type { CudaContext } from './context.ts';
import { Launch } from './launch.ts';
import type { Modules } from './modules.ts';

const NAMES: readonly CombineKernelName[] = (['bf16', 'f16'] satisfies KvDType[]).map((dtype): CombineKernelName => `combine_${dtype}`);

export class CombineKernels {
  readonly #launches: Readonly<Record<CombineKernelName, Launch>>;

  /** @param params address of CombineParams, read at each launch */
  constructor(context: CudaContext, modules: Modules, params: number) {
    this.#launches = Object.fromEntries(
      NAMES.map((name) => [
        name,
        new Launch(context, name, modules.function('combine', name), params, { threads: COMBINE_THREADS, sharedBytes: COMBINE_ALONE_BYTES, dependent: true }),
      ]),
    ) as Record<CombineKernelName, Launch>;
  }

  run({ kernel, blocks, sharedBytes }: NonNullable<DecodeConfig['combine']>): void {
    this.#launches[kernel].run(blocks, 1, 1, sharedBytes);
  }
}
