/** Launcher of native-cuda/decode.cu: the split-KV kernels. */
import type { KvDType } from '../mla.ts';
import { DECODE_SHARED_BYTES, DECODE_THREADS, clusterOf, type DecodeConfig, type DecodeKernelName } from './config.ts';
import type { CudaContext } from './context.ts';
import { Launch } from './launch.ts';
import type { Modules } from './modules.ts';

const NAMES: readonly DecodeKernelName[] = (['bf16', 'f16'] satisfies KvDType[]).flatMap((dtype): DecodeKernelName[] => [`decode_${dtype}`, `decode_${dtype}_pair`]);

export class DecodeKernels {
  readonly #launches: Readonly<Record<DecodeKernelName, Launch>>;

  /** @param params address of DecodeParams, read at each launch */
  constructor(context: CudaContext, modules: Modules, params: number) {
    this.#launches = Object.fromEntries(
      NAMES.map((name) => [
        name,
        new Launch(context, name, modules.function('decode', name), params, { threads: DECODE_THREADS, sharedBytes: DECODE_SHARED_BYTES, cluster: clusterOf(name) }),
      ]),
    ) as Record<DecodeKernelName, Launch>;
  }

  run({ kernel, grid }: DecodeConfig): void {
    this.#launches[kernel].run(grid[0], grid[1], grid[2]);
  }
}
