/** Launcher of native-cuda/gather_q.cu: query rows of each KV head laid side by side. */
import type { DecodeOp } from '../backend.ts';
import type { CudaContext } from './context.ts';
import { HostBlock } from './driver.ts';
import { Launch } from './launch.ts';
import type { Modules } from './modules.ts';
import { GATHER_PARAMS, writeGatherParams } from './params.ts';

const THREADS = 256;
const ROWS = THREADS / 32; // a warp each

export class GatherQKernel {
  readonly #params: HostBlock;
  readonly #launch: Launch;

  constructor(context: CudaContext, modules: Modules) {
    this.#params = new HostBlock(context.driver, GATHER_PARAMS.bytes);
    this.#launch = new Launch(context, 'gather_q', modules.function('gather_q', 'gather_q'), this.#params.address, { threads: THREADS });
  }

  run({ b, sQ, hQ, hKv }: DecodeOp, from: number, to: number): void {
    const rows = b * sQ * hQ;
    writeGatherParams(this.#params, { from, to, rows, sQ, hKv, group: hQ / hKv });
    this.#launch.run(Math.ceil(rows / ROWS));
  }
}
