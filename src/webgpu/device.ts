/**
 * One GPUDevice: how it is got, what it can do, and how its loss and its errors become MlaErrors.
 */
import { MlaError, describe } from '../errors.ts';
import { Owed } from '../owed.ts';
import type { KernelLimits } from './config.ts';
import type { SubgroupSize } from './subgroup-test.ts';
import { checkTier, type Tier } from './tier.ts';
import { checkTuneMode, type TuneMode } from './tune-mode.ts';

export interface DeviceOptions {
  /** Where adapters come from; `navigator.gpu` when absent. */
  readonly gpu?: GPU;
  readonly adapter?: GPUAdapter;
  /** The caller's device. It is used as it is and never destroyed. */
  readonly device?: GPUDevice;
  readonly powerPreference?: GPUPowerPreference;
  /** Kernel tier to use, or an error where it does not work; the best that works here when absent. */
  readonly tier?: Tier;
  /** 'adapter' (default) asks for all that the adapter has; 'default' keeps to WebGPU's defaults, as a page must that cannot choose. */
  readonly limits?: 'adapter' | 'default';
  /**
   * Choice of kernel configurations by measuring. 'auto': use what is remembered, and measure in the background, once,
   * what is not. 'stored': only use what is remembered. 'off': a fixed choice. 'auto' when absent, 'stored' on software adapters.
   */
  readonly tune?: TuneMode;
}

const LIMITS = [
  'maxStorageBufferBindingSize', 'maxBufferSize', 'maxStorageBuffersPerShaderStage', 'maxComputeWorkgroupStorageSize',
  'maxComputeInvocationsPerWorkgroup', 'maxComputeWorkgroupSizeX', 'maxComputeWorkgroupsPerDimension',
] as const satisfies readonly (keyof KernelLimits)[];

/** Asked for where the adapter has them. */
const FEATURES: readonly string[] = ['timestamp-query', 'subgroups', 'shader-f16', 'chromium-experimental-subgroup-matrix'];

/** Adapters that are programs, by their names. */
const SOFTWARE = /swiftshader|llvmpipe|lavapipe|basic render/i;

/** So long, milliseconds, a loss may stay unsaid after what it has cost. */
const LOSS_MS = 1000;

/** What adapters say of subgroups, where they say it: newer than the type declarations. */
type SubgroupInfo = Partial<Record<'subgroupMinSize' | 'subgroupMaxSize', number>> & { readonly subgroupMatrixConfigs?: Iterable<MatrixConfig> };

/** A kind of subgroup matrices. */
export interface MatrixConfig {
  readonly componentType: string;
  readonly resultComponentType: string;
  readonly M: number;
  readonly N: number;
  readonly K: number;
}

/** Leaves a processor to others for a moment, less than a millisecond. */
export type Rest = () => Promise<void>;

export class GpuContext {
  readonly device: GPUDevice;
  readonly owned: boolean;
  readonly limits: KernelLimits;
  readonly features: readonly string[];
  readonly name: string;
  readonly software: boolean;
  readonly vendor: string;
  readonly architecture: string;
  readonly subgroupSize: SubgroupSize | undefined;
  readonly matrixConfigs: readonly MatrixConfig[];
  /** Ends when the device is lost. */
  readonly #owed = new Owed();
  readonly #rest: Rest | undefined;
  #resting: Promise<void> | undefined;
  #error: MlaError | undefined;
  #stray: MlaError | undefined;

  constructor(device: GPUDevice, owned: boolean, info: GPUAdapterInfo | undefined, rest?: Rest, fallback = false) {
    this.device = device;
    this.owned = owned;
    this.limits = readLimits(device.limits);
    this.features = [...device.features].sort();
    this.vendor = info?.vendor ?? '';
    this.architecture = info?.architecture ?? '';
    const { subgroupMinSize: min, subgroupMaxSize: max, subgroupMatrixConfigs = [] } = (info ?? {}) as SubgroupInfo;
    this.subgroupSize = min !== undefined && max !== undefined ? { min, max } : undefined;
    this.matrixConfigs = [...subgroupMatrixConfigs];
    this.name = [info?.description || info?.device, info?.vendor, info?.architecture].filter(Boolean).join(', ') || 'unnamed WebGPU device';
    this.software = fallback || (info as { isFallbackAdapter?: boolean } | undefined)?.isFallbackAdapter === true || SOFTWARE.test(this.name);
    this.#rest = this.software ? rest : undefined;
    void device.lost.then((reason) => {
      this.#error ??= new MlaError('device-lost', `the GPU device was lost (${reason.reason || 'unknown'}): ${reason.message || 'no message'}`, { fix: 'Make a new instance with createMla' });
      this.#owed.end(this.#error);
    });
    // What no scope caught is remembered and reported by whoever waits next, not thrown at the page.
    if (owned) {
      device.addEventListener('uncapturederror', (event) => {
        event.preventDefault();
        this.note(gpuError((event as GPUUncapturedErrorEvent).error, 'a GPU operation failed'));
      });
    }
  }

  get #lost(): MlaError | undefined {
    return this.#error?.code === 'device-lost' ? this.#error : undefined;
  }

  /** Lost or destroyed. */
  get gone(): boolean {
    return this.#error !== undefined;
  }

  /** @throws MlaError device-lost, destroyed */
  check(): void {
    if (this.#error) throw this.#error;
  }

  /** Has whoever waits next told of `error`, unless there is one to tell already. */
  note(error: MlaError): void {
    this.#stray ??= error;
  }

  /** What was noted, for someone who tells of it now. */
  noted(): MlaError | undefined {
    const stray = this.#stray;
    this.#stray = undefined;
    return stray;
  }

  /** Waits for `work` of the device. @throws MlaError device-lost, destroyed; internal where the device refuses it */
  async wait<T>(work: Promise<T>): Promise<T> {
    try {
      const value = await this.#rested(this.#owed.wait(work));
      // Some work of a lost device is over without having been done.
      if (this.#lost) throw this.#lost;
      return value;
    } catch (error) {
      if (error instanceof MlaError) throw error;
      this.check();
      // A lost device rejects its promises shortly before it says that it is lost.
      let timer: ReturnType<typeof setTimeout> | undefined;
      await this.#owed.wait(new Promise((resolve) => (timer = setTimeout(resolve, LOSS_MS)))).finally(() => clearTimeout(timer));
      this.check();
      throw new MlaError('internal', `the device refused: ${(error as Error).message}`, { cause: error });
    }
  }

  /** As `work`, or rejects once the device is lost: of what others do for it, and nobody rests for. */
  owe<T>(work: Promise<T>): Promise<T> {
    return this.#owed.wait(work);
  }

  /** As `outcome`; this thread rests meanwhile where there is reason to. */
  async #rested<T>(outcome: Promise<T>): Promise<T> {
    if (this.#rest) {
      let pending = true;
      const end = (): void => {
        pending = false;
      };
      outcome.then(end, end);
      // However many wait, one rests.
      while (pending) await (this.#resting ??= this.#rest().finally(() => (this.#resting = undefined)));
    }
    return outcome;
  }

  /** As `wait`, and tells of what was noted. @throws MlaError device-lost, or what the device said since the last time */
  async settle<T>(work: Promise<T>): Promise<T> {
    const value = await this.wait(work);
    const stray = this.noted();
    if (stray) throw stray;
    return value;
  }

  /** Error scopes around what follows, in this turn: until the function returned is called, whose promise says what the device had to say of it. */
  scope(what: string): () => Promise<MlaError | undefined> {
    const { device } = this;
    device.pushErrorScope('internal');
    device.pushErrorScope('validation');
    device.pushErrorScope('out-of-memory');
    return () =>
      Promise.all([device.popErrorScope(), device.popErrorScope(), device.popErrorScope()]).then(
        (errors) => {
          const error = errors.find((e) => e !== null);
          // A device that is gone has nothing to say of it.
          return error ? gpuError(error, what) : this.#lost;
        },
        // Only a lost device rejects here, which may not have said so.
        (cause: unknown) => this.wait(Promise.reject(cause as Error)).then(() => undefined, (error: MlaError) => error),
      );
  }

  /** Runs `make` in error scopes. Resolves to what the device had to say of it. */
  watch<T>(what: string, make: () => T): { value: T; fault: Promise<MlaError | undefined> } {
    const close = this.scope(what);
    let value: T;
    try {
      value = make();
    } catch (error) {
      void close();
      throw error;
    }
    return { value, fault: close() };
  }

  destroy(): void {
    this.#error ??= new MlaError('destroyed', 'this backend was destroyed');
    if (this.owned) this.device.destroy();
  }
}

function gpuError(error: GPUError, what: string): MlaError {
  const kind = error.constructor?.name ?? '';
  if (kind === 'GPUOutOfMemoryError') {
    return new MlaError('out-of-memory', `${what}: the device is out of memory`, { fix: 'Free tensors or use a smaller cache', cause: error });
  }
  return new MlaError('internal', `${what}: ${error.message}`, { cause: error });
}

function readLimits(limits: GPUSupportedLimits): KernelLimits {
  return Object.fromEntries(LIMITS.map((name) => [name, limits[name]])) as unknown as KernelLimits;
}

/** Before anything is opened: another backend would not look at them. @throws MlaError invalid-argument */
export function checkDeviceOptions(options: DeviceOptions): void {
  const refuse = (argument: string, expected: string, got: unknown): never => {
    throw new MlaError('invalid-argument', `not ${expected}`, { argument, expected, got: describe(got) });
  };
  if (typeof options !== 'object' || options === null) refuse('options', 'an object', options);
  const { device, adapter, gpu, powerPreference, limits, tier, tune } = options;
  checkTier(tier);
  checkTuneMode(tune);
  if (device !== undefined && typeof device?.createBuffer !== 'function') refuse('device', 'a GPUDevice', device);
  if (adapter !== undefined && typeof adapter?.requestDevice !== 'function') refuse('adapter', 'a GPUAdapter', adapter);
  if (gpu !== undefined && typeof gpu?.requestAdapter !== 'function') refuse('gpu', 'a GPU', gpu);
  if (powerPreference !== undefined && powerPreference !== 'low-power' && powerPreference !== 'high-performance') refuse('powerPreference', 'low-power or high-performance', powerPreference);
  if (limits !== undefined && limits !== 'adapter' && limits !== 'default') refuse('limits', 'adapter or default', limits);
}

/**
 * @param rest for whoever waits for a software adapter; absent where waiting takes no processor
 * @throws MlaError backend-unavailable (no WebGPU, no adapter, no device), device-lost
 */
export async function openDevice(options: DeviceOptions, rest?: Rest): Promise<GpuContext> {
  if (options.device) {
    const { device } = options;
    return new GpuContext(device, false, device.adapterInfo ?? options.adapter?.info, rest);
  }
  const adapter = options.adapter ?? (await requestAdapter(options));
  const requiredFeatures = FEATURES.filter((name) => adapter.features.has(name as GPUFeatureName)) as GPUFeatureName[];
  const requiredLimits = options.limits === 'default' ? {} : Object.fromEntries(LIMITS.map((name) => [name, adapter.limits[name]]));
  let device: GPUDevice;
  try {
    device = await adapter.requestDevice({ label: 'flashmla-web', requiredFeatures, requiredLimits });
  } catch (error) {
    throw new MlaError('backend-unavailable', `the adapter gave no device: ${(error as Error).message}`, { argument: 'backend', cause: error });
  }
  // Where browsers said it before it was among what adapters say of themselves.
  return new GpuContext(device, true, adapter.info, rest, (adapter as { isFallbackAdapter?: boolean }).isFallbackAdapter === true);
}

/** For good: Dawn's devices must not outlive what they came from, which a caller may hold nowhere else. */
const kept = new Set<GPU>();

async function requestAdapter({ gpu = globalThis.navigator?.gpu, powerPreference = 'high-performance' }: DeviceOptions): Promise<GPUAdapter> {
  if (!gpu) {
    throw new MlaError('backend-unavailable', 'no WebGPU here', {
      argument: 'backend', expected: 'navigator.gpu', got: 'undefined',
      fix: 'Use a browser with WebGPU on a secure page (https or localhost), or in Node import flashmla-web/node',
    });
  }
  kept.add(gpu);
  let adapter: GPUAdapter | null;
  try {
    adapter = await gpu.requestAdapter({ powerPreference });
  } catch (error) {
    throw new MlaError('backend-unavailable', `the adapter was refused: ${(error as Error).message}`, { argument: 'backend', cause: error });
  }
  if (!adapter) {
    throw new MlaError('backend-unavailable', 'WebGPU has no adapter here', {
      argument: 'backend', expected: 'a GPU with a driver for it', got: 'none', fix: 'Check the GPU driver (Linux: Vulkan) and that the browser has not blocked the GPU',
    });
  }
  return adapter;
}
