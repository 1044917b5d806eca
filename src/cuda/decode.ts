/** Launcher of native-cuda/decode.cu and decode_few.cu: the split-KV kernels. */
import type { KvDType } from '../mla.ts';
import { DECODE_KERNELS, DECODE_SHARED_BYTES, type DecodeConfig, type DecodeKernelName } from './config.ts';
import type { CudaContext } from './context.ts';
import { Launch } from './launch.ts';
import type { Modules } from './modules.ts';

const DTYPES: readonly KvDType[] = ['bf16', 'f16'];

export class DecodeKernels {
  readonly #launches: Readonly<Record<DecodeKernelName, Launch>>;

  /** @param params address of DecodeParams, read at each launch */
  constructor(context: CudaContext, modules: Modules, params: number) {
    this.#launches = Object.fromEntries(
      Object.entries(DECODE_KERNELS).flatMap(([end, { cubin, threads, cluster }]) =>
        DTYPES.map((dtype) => {
          const name = `decode_${dtype}${end}`;
          return [name, new Launch(context, name, modules.function(cubin, name), params, { threads, sharedBytes: DECODE_SHARED_BYTES, cluster })];
        }),
      ),
    ) as Record<DecodeKernelName, Launch>;
  }

  run({ kernel, grid }: DecodeConfig): void {
    this.#launches[kernel].run(grid[0], grid[1], grid[2]);
  }
}
