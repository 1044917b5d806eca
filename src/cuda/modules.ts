/** The cubins in a context, and the functions in them. */
import { MlaError } from '../errors.ts';
import type { CudaContext } from './context.ts';
import { CUBINS, type CubinName, type Kernels } from './cubin.ts';
import { versionText } from './device.ts';
import { HostBlock, SUCCESS, describeResult, unavailable } from './driver.ts';

/** Results of loading a cubin that say that this driver, or this device, cannot run it. */
const NOT_LOADABLE: ReadonlySet<number> = new Set([200, 209, 218, 222, 223, 301, 801]);

export class Modules {
  readonly #context: CudaContext;
  readonly #handles = new Map<CubinName, number>();
  #functions = 0;

  /** @throws MlaError backend-unavailable (driver too old), out-of-memory, internal */
  constructor(context: CudaContext, { images, manifest }: Kernels) {
    this.#context = context;
    const { driver, out, device } = context;
    try {
      for (const name of CUBINS) {
        const result = driver.calls.cuModuleLoadData(out.address, driver.address(images[name]));
        if (NOT_LOADABLE.has(result)) {
          throw unavailable(`the NVIDIA driver cannot load the kernels: it reports ${describeResult(driver, result)}`,
            `a driver for CUDA ${versionText(manifest.driver)} or newer (the kernels are from nvcc ${manifest.nvcc})`, `one for CUDA ${versionText(device.driverVersion)}`,
            'Update the NVIDIA driver (https://www.nvidia.com/drivers)');
        }
        context.check(result, `loading ${name}.cubin`);
        this.#handles.set(name, out.pointer(0));
      }
    } catch (error) {
      this.destroy();
      throw error;
    }
  }

  /** Functions asked for so far. */
  get count(): number {
    return this.#functions;
  }

  /** A CUfunction. @throws MlaError internal */
  function(cubin: CubinName, name: string): number {
    const { driver, out } = this.#context;
    const text = new HostBlock(driver, name.length + 1);
    new TextEncoder().encodeInto(name, text.bytes);
    const result = driver.calls.cuModuleGetFunction(out.address, this.#handles.get(cubin)!, text.address);
    if (result !== SUCCESS) throw new MlaError('internal', `${cubin}.cubin has no ${name}: the NVIDIA driver reports ${describeResult(driver, result)}`);
    this.#functions++;
    return out.pointer(0);
  }

  destroy(): void {
    for (const handle of this.#handles.values()) this.#context.driver.calls.cuModuleUnload(handle);
    this.#handles.clear();
  }
}
