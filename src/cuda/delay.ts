/** Launcher of native-cuda/delay.cu: keeps the device busy for a while. */
import type { CudaContext } from './context.ts';
import { HostBlock } from './driver.ts';
import { Launch } from './launch.ts';
import type { Modules } from './modules.ts';

export class DelayKernel {
  readonly #params: HostBlock;
  readonly #launch: Launch;

  constructor(context: CudaContext, modules: Modules) {
    this.#params = new HostBlock(context.driver, 8);
    this.#launch = new Launch(context, 'delay', modules.function('delay', 'delay'), this.#params.address, { threads: 1 });
  }

  run(nanoseconds: number): void {
    this.#params.u32[0] = nanoseconds;
    this.#launch.run(1);
  }
}
