/** The Node entry: everything of the environment-neutral one, with CUDA on Hopper GPUs and WebGPU from npm `webgpu` (Dawn). */
import { availableParallelism } from 'node:os';
import { setImmediate as nextTurn } from 'node:timers/promises';
import type { Backend } from './backend.ts';
import { createFrom, openBackend, wantedBackend, type Candidate } from './create.ts';
import { createCpuBackend } from './cpu/backend.ts';
import { createCudaBackend, type CudaOptions } from './cuda/backend.ts';
import { MlaError, describe } from './errors.ts';
import type { CreateOptions } from './index.ts';
import type { BackendName, Mla } from './mla.ts';
import { fileStore } from './tune-file.ts';
import { createWebGpuBackend } from './webgpu/backend.ts';
import { checkDeviceOptions } from './webgpu/device.ts';

export * from './index.ts';
export { folderSource } from './model/folder-source.ts';

export interface NodeCreateOptions extends CreateOptions, CudaOptions {
  /** Toggles for Dawn's `create`, such as 'backend=vulkan' or 'enable-dawn-features=...', in place of `DAWN_TOGGLES`; with them 'auto' is webgpu. */
  readonly dawn?: readonly string[];
}

/**
 * How Dawn is made when nothing is said: with the extensions that the matrix tier needs; without bounds checks in shaders, which
 * are all ours and whose inputs are validated; with timestamps as fine as the device has them.
 */
export const DAWN_TOGGLES: readonly string[] = [
  'enable-dawn-features=allow_unsafe_apis,vulkan_enable_f16_on_nvidia,disable_robustness', 'disable-dawn-features=timestamp_quantization',
];

/**
 * WebGPU in Node, from the optional peer package `webgpu`. One instance a set of toggles, kept for the life of the
 * process: Dawn's devices must not outlive it.
 * @throws MlaError missing-dependency, backend-unavailable, invalid-argument
 */
export async function nodeGpu(dawn: readonly string[] = DAWN_TOGGLES): Promise<GPU> {
  checkToggles(dawn);
  const { create, globals } = await importWebGpu();
  const key = dawn.join(' ');
  let gpu = gpus.get(key);
  if (!gpu) {
    checkVulkanLoader();
    for (const [name, value] of Object.entries(globals)) if (!(name in globalThis)) Object.assign(globalThis, { [name]: value });
    try {
      gpu = create([...dawn]);
    } catch (cause) {
      throw new MlaError('invalid-argument', `Dawn does not take them: ${(cause as Error).message}`, { argument: 'dawn', expected: 'toggles of Dawn', got: describe(key), cause });
    }
    gpus.set(key, gpu);
  }
  return gpu;
}

/** @throws MlaError invalid-argument */
function checkToggles(dawn: unknown): asserts dawn is readonly string[] | undefined {
  if (dawn !== undefined && !(Array.isArray(dawn) && dawn.every((toggle) => typeof toggle === 'string'))) {
    throw new MlaError('invalid-argument', 'not toggles', { argument: 'dawn', expected: 'an array of strings', got: describe(dawn) });
  }
}

/**
 * On Linux Dawn reaches GPUs through Vulkan's loader only, and writes to stderr when there is none: said here instead.
 * Loading it as an addon always fails, with one message when the file is missing and another when it is there.
 */
function checkVulkanLoader(): void {
  if (process.platform !== 'linux') return;
  try {
    process.dlopen({ exports: {} }, 'libvulkan.so.1');
  } catch (cause) {
    if (!/cannot open shared object file/.test((cause as Error).message)) return;
    throw new MlaError('backend-unavailable', 'the Vulkan loader is not installed', {
      argument: 'backend', expected: 'libvulkan.so.1', got: 'no such file', fix: 'Install the GPU driver and the package libvulkan1 (vulkan-loader)', cause,
    });
  }
}

const gpus = new Map<string, GPU>();

async function importWebGpu(): Promise<{ create: (options: string[]) => GPU; globals: object }> {
  try {
    return (await import('webgpu')) as never;
  } catch (cause) {
    const missing = (cause as { code?: string }).code === 'ERR_MODULE_NOT_FOUND';
    throw new MlaError(missing ? 'missing-dependency' : 'backend-unavailable',
      missing ? 'WebGPU in Node needs the optional package "webgpu"' : `the package "webgpu" did not load: ${(cause as Error).message}`,
      { argument: 'backend', expected: 'webgpu', got: missing ? 'not installed' : 'a load error', fix: 'Run: npm install webgpu', cause });
  }
}

/** So long, milliseconds: little beside what a software adapter takes for anything. */
const REST_MS = 0.5;
const restCell = new Int32Array(new SharedArrayBuffer(4));

/**
 * Dawn in Node asks at every turn of the event loop whether work is done, and one turn follows the other without a pause: on a processor
 * that a software adapter would compute on. So this thread sleeps before the next turn.
 */
async function rest(): Promise<void> {
  Atomics.wait(restCell, 0, 0, REST_MS);
  await nextTurn();
}

function candidates(options: NodeCreateOptions): Candidate[] {
  checkDeviceOptions(options);
  checkToggles(options.dawn);
  const given = options.device ?? options.adapter ?? options.gpu;
  const cuda: Candidate = { backend: 'cuda', open: (reason) => createCudaBackend(options, reason) };
  const webgpu: Candidate = {
    backend: 'webgpu',
    open: async (reason) => {
      const { dawn = DAWN_TOGGLES } = options;
      const machine = { store: fileStore(), rest, processors: availableParallelism() };
      if (given) return createWebGpuBackend(options, reason, machine);
      const unchecked = dawn.some((toggle) => /^enable-dawn-features=(.*,)?disable_robustness(,|$)/.test(toggle));
      return createWebGpuBackend({ ...options, gpu: await nodeGpu(dawn) }, reason, { ...machine, variant: dawn.join(' '), unchecked });
    },
  };
  const cpu: Candidate = { backend: 'cpu', open: async (reason) => createCpuBackend(reason) };
  // Who brings a WebGPU device, adapter or gpu means it to be used.
  return given ? [webgpu, cuda, cpu] : [cuda, webgpu, cpu];
}

/** Makes an instance on the best backend there is, or on the one asked for. @throws MlaError backend-unavailable, missing-dependency, invalid-argument */
export async function createMla(options: NodeCreateOptions = {}): Promise<Mla> {
  return createFrom(candidates(options), wantedBackend(options));
}

/** What `createMla` makes an instance of; for serving it to another thread. */
export async function createBackend(options: NodeCreateOptions = {}): Promise<Backend> {
  return openBackend(candidates(options), wantedBackend(options));
}

export interface BackendReport {
  readonly backend: BackendName;
  readonly available: boolean;
  readonly reason: string;
  readonly device?: string;
  readonly tier?: string;
  readonly tierNotes?: readonly string[];
  readonly features?: readonly string[];
  readonly limits?: Readonly<Record<string, number>>;
  readonly software?: boolean;
}

/** Opens every backend once and says what it found, in the order `auto` prefers them. */
export async function listBackends(options: NodeCreateOptions = {}): Promise<BackendReport[]> {
  const reports: BackendReport[] = [];
  for (const { backend, open } of candidates(options)) {
    try {
      const opened = await open('');
      const { device, tier, tierNotes, features, limits, software } = opened.info;
      await opened.destroy();
      reports.push({
        backend, available: true, reason: 'works', device, ...(tier === undefined ? {} : { tier }), ...(tierNotes === undefined ? {} : { tierNotes }),
        features, limits, software,
      });
    } catch (error) {
      reports.push({ backend, available: false, reason: (error as Error).message });
    }
  }
  return reports;
}
