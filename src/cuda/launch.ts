/** One kernel, ready to launch: CUlaunchConfig, its attributes and the parameters' place, written once. */
import type { CudaContext } from './context.ts';
import { HostBlock } from './driver.ts';

// CUlaunchConfig
const CONFIG = { grid: 0, block: 12, shared: 24, stream: 32, attributes: 40, count: 48 } as const;
// CUlaunchAttribute: an id and, 8 bytes on, a value of 64
const ATTRIBUTE_BYTES = 72;
const ATTRIBUTE_VALUE = 8;
const CLUSTER_DIMENSION = 4;
const PROGRAMMATIC_STREAM_SERIALIZATION = 6;
const MAX_DYNAMIC_SHARED = 8; // CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES

const ATTRIBUTES_AT = 56;
const PARAMS_AT = ATTRIBUTES_AT + 2 * ATTRIBUTE_BYTES;

export interface LaunchOptions {
  readonly threads: number;
  /** Dynamic shared memory: what a launch asks for, and the most that one may. */
  readonly sharedBytes?: number;
  /** Blocks of a cluster in x. */
  readonly cluster?: number;
  /** May start before the kernel in front of it has ended, and waits for it itself. */
  readonly dependent?: boolean;
}

export class Launch {
  readonly #context: CudaContext;
  readonly #kernel: number;
  readonly #block: HostBlock;
  readonly #what: string;
  readonly #arguments: number;
  readonly #sharedBytes: number;

  /**
   * @param kernel a CUfunction
   * @param params address of the one parameter's bytes, read at each launch
   * @throws MlaError internal
   */
  constructor(context: CudaContext, name: string, kernel: number, params: number, options: LaunchOptions) {
    const { threads, sharedBytes = 0, cluster = 1, dependent = false } = options;
    this.#context = context;
    this.#kernel = kernel;
    this.#what = `launching ${name}`;
    const block = (this.#block = new HostBlock(context.driver, PARAMS_AT + 8));
    block.u32.set([1, 1, 1], CONFIG.grid / 4);
    block.u32.set([threads, 1, 1], CONFIG.block / 4);
    this.#sharedBytes = sharedBytes;
    block.setPointer(CONFIG.stream, context.stream);
    block.setPointer(CONFIG.attributes, block.address + ATTRIBUTES_AT);
    let count = 0;
    const attribute = (id: number, ...value: number[]): void => {
      const at = ATTRIBUTES_AT + ATTRIBUTE_BYTES * count++;
      block.u32[at / 4] = id;
      block.u32.set(value, (at + ATTRIBUTE_VALUE) / 4);
    };
    if (cluster > 1) attribute(CLUSTER_DIMENSION, cluster, 1, 1);
    if (dependent) attribute(PROGRAMMATIC_STREAM_SERIALIZATION, 1);
    block.u32[CONFIG.count / 4] = count;
    block.setPointer(PARAMS_AT, params);
    this.#arguments = block.address + PARAMS_AT;
    if (sharedBytes > 0) context.check(context.driver.calls.cuFuncSetAttribute(kernel, MAX_DYNAMIC_SHARED, sharedBytes), `preparing ${name}`);
  }

  /** Enqueues it. @throws MlaError device-lost, internal */
  run(x: number, y = 1, z = 1, sharedBytes: number = this.#sharedBytes): void {
    const { u32, address } = this.#block;
    u32[CONFIG.shared / 4] = sharedBytes;
    u32[0] = x;
    u32[1] = y;
    u32[2] = z;
    this.#context.check(this.#context.driver.calls.cuLaunchKernelEx(address, this.#kernel, this.#arguments, 0), this.#what);
  }
}
