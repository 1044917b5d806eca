/**
 * The NVIDIA driver's C interface: which of its functions are used, how they are reached (libcuda.so.1 through koffi, on
 * first use) and what its result codes mean.
 *
 * Only numbers cross: handles, device addresses and host addresses are below 2^53, so each is a Number, and structs are
 * bytes whose address is passed. A call then costs no allocation and no conversion of types.
 */
import { MlaError, type MlaErrorCode } from '../errors.ts';

/** Types of arguments, in koffi's words. Results are all CUresult. */
const SIGNATURES = {
  cuInit: ['uint32_t'],
  cuDriverGetVersion: ['uintptr_t'],
  cuGetErrorName: ['int', 'uintptr_t'],
  cuGetErrorString: ['int', 'uintptr_t'],
  cuDeviceGetCount: ['uintptr_t'],
  cuDeviceGet: ['uintptr_t', 'int'],
  cuDeviceGetName: ['uintptr_t', 'int', 'int'],
  cuDeviceGetAttribute: ['uintptr_t', 'int', 'int'],
  cuDeviceTotalMem_v2: ['uintptr_t', 'int'],
  cuDevicePrimaryCtxRetain: ['uintptr_t', 'int'],
  cuDevicePrimaryCtxRelease_v2: ['int'],
  cuCtxSetCurrent: ['uintptr_t'],
  cuModuleLoadData: ['uintptr_t', 'uintptr_t'],
  cuModuleUnload: ['uintptr_t'],
  cuModuleGetFunction: ['uintptr_t', 'uintptr_t', 'uintptr_t'],
  cuFuncSetAttribute: ['uintptr_t', 'int', 'int'],
  cuLaunchKernelEx: ['uintptr_t', 'uintptr_t', 'uintptr_t', 'uintptr_t'],
  cuTensorMapEncodeTiled: [
    'uintptr_t', 'int', 'uint32_t', 'uintptr_t', 'uintptr_t', 'uintptr_t', 'uintptr_t', 'uintptr_t', 'int', 'int', 'int', 'int',
  ],
  cuStreamCreate: ['uintptr_t', 'uint32_t'],
  cuStreamSynchronize: ['uintptr_t'],
  cuStreamDestroy_v2: ['uintptr_t'],
  cuEventCreate: ['uintptr_t', 'uint32_t'],
  cuEventRecord: ['uintptr_t', 'uintptr_t'],
  cuEventQuery: ['uintptr_t'],
  cuEventSynchronize: ['uintptr_t'],
  cuEventElapsedTime: ['uintptr_t', 'uintptr_t', 'uintptr_t'],
  cuEventDestroy_v2: ['uintptr_t'],
  cuMemPoolCreate: ['uintptr_t', 'uintptr_t'],
  cuMemPoolDestroy: ['uintptr_t'],
  cuMemAllocFromPoolAsync: ['uintptr_t', 'uint64_t', 'uintptr_t', 'uintptr_t'],
  cuMemFreeAsync: ['uint64_t', 'uintptr_t'],
  cuMemHostAlloc: ['uintptr_t', 'size_t', 'uint32_t'],
  cuMemFreeHost: ['uintptr_t'],
  cuMemcpyHtoDAsync_v2: ['uint64_t', 'uintptr_t', 'size_t', 'uintptr_t'],
  cuMemcpyDtoHAsync_v2: ['uintptr_t', 'uint64_t', 'size_t', 'uintptr_t'],
  cuMemcpyDtoDAsync_v2: ['uint64_t', 'uint64_t', 'size_t', 'uintptr_t'],
  cuMemsetD32Async: ['uint64_t', 'uint32_t', 'size_t', 'uintptr_t'],
} as const;

export type DriverCall = keyof typeof SIGNATURES;

/** The driver's functions, and what it takes to pass them memory of this process. */
export interface DriverTable {
  readonly calls: Readonly<Record<DriverCall, (...args: number[]) => number>>;
  /** Where an ArrayBuffer's bytes lie. They do not move: memory of an ArrayBuffer is outside of V8's heap. */
  address(buffer: ArrayBuffer): number;
  /** Memory that the driver owns, as an ArrayBuffer: not to be touched once it is freed. */
  view(address: number, bytes: number): ArrayBuffer;
  /** A C string. */
  text(address: number): string;
}

export const SUCCESS = 0;
export const NOT_READY = 600;
export const OUT_OF_MEMORY = 2;
/** After these nothing in the context works any more. */
const LOST: ReadonlySet<number> = new Set([4, 46, 201, 214, 220, 226, 700, 702, 709, 710, 714, 715, 716, 717, 718, 719, 721, 810, 999]);

/** What is used of koffi. Its own types would be missing where it is not installed. */
interface Koffi {
  load(path: string): { func(name: string, result: string, types: string[]): (...args: number[]) => number };
  address(buffer: ArrayBuffer): bigint;
  view(address: number, bytes: number): ArrayBuffer;
  readonly decode: { string(address: number): string };
}

/** How the driver is reached: replaced in tests. */
export interface DriverSource {
  readonly platform: string;
  /** @throws when there is no libcuda.so.1 */
  probe(): void;
  importKoffi(): Promise<Koffi>;
}

const system: DriverSource = {
  platform: process.platform,
  // Loading it as an addon always fails, with one message when the file is missing and another when it is there.
  probe: () => process.dlopen({ exports: {} }, 'libcuda.so.1'),
  importKoffi: () => import('koffi'),
};

const GET_DRIVER = 'Install the NVIDIA driver (https://www.nvidia.com/drivers)';
const UPDATE_DRIVER = 'Update the NVIDIA driver (https://www.nvidia.com/drivers)';

type Library = ReturnType<Koffi['load']>;

// For good: koffi unloads a library that nothing refers to, at any garbage collection, and a driver has threads of its own.
const libraries = new Map<Koffi, Library>();

/** @throws MlaError backend-unavailable (other platform, no driver, driver too old), missing-dependency (koffi) */
export async function loadDriver(source: DriverSource = system): Promise<DriverTable> {
  if (source.platform !== 'linux') throw unavailable('the cuda backend runs on Linux', 'linux', source.platform, 'Use backend webgpu');
  // Before koffi is asked for: where there is no driver, installing koffi would not help.
  try {
    source.probe();
  } catch (cause) {
    if (/cannot open shared object file/.test((cause as Error).message)) {
      throw unavailable('no NVIDIA driver', 'libcuda.so.1', 'no such file', GET_DRIVER, cause);
    }
  }
  let koffi: Koffi;
  try {
    koffi = await source.importKoffi();
  } catch (cause) {
    const missing = (cause as { code?: string }).code === 'ERR_MODULE_NOT_FOUND';
    throw new MlaError(missing ? 'missing-dependency' : 'backend-unavailable',
      missing ? 'CUDA in Node needs the optional package "koffi"' : `the package "koffi" did not load: ${(cause as Error).message}`,
      { argument: 'backend', expected: 'koffi', got: missing ? 'not installed' : 'a load error', fix: 'Run: npm install koffi', cause });
  }
  let library: Library;
  try {
    library = libraries.get(koffi) ?? koffi.load('libcuda.so.1');
    libraries.set(koffi, library);
  } catch (cause) {
    throw unavailable(`the NVIDIA driver did not load: ${(cause as Error).message}`, 'libcuda.so.1', 'a load error', GET_DRIVER, cause);
  }
  const calls = {} as Record<DriverCall, (...args: number[]) => number>;
  for (const [name, types] of Object.entries(SIGNATURES) as [DriverCall, readonly string[]][]) {
    try {
      calls[name] = library.func(name, 'int', [...types]);
    } catch (cause) {
      throw unavailable('the NVIDIA driver is too old', `a driver with ${name}`, 'one without', UPDATE_DRIVER, cause);
    }
  }
  return {
    calls,
    address: (buffer) => Number(koffi.address(buffer)),
    view: (address, bytes) => koffi.view(address, bytes),
    text: (address) => koffi.decode.string(address),
  };
}

export function unavailable(summary: string, expected: string, got: string, fix: string, cause?: unknown): MlaError {
  return new MlaError('backend-unavailable', summary, { argument: 'backend', expected, got, fix, ...(cause === undefined ? {} : { cause }) });
}

/** What a result code means, in this package's terms and the driver's own words. */
export function driverError(driver: DriverTable, result: number, what: string, code?: MlaErrorCode): MlaError {
  const kind = code ?? (result === OUT_OF_MEMORY ? 'out-of-memory' : LOST.has(result) ? 'device-lost' : 'internal');
  const fix = kind === 'out-of-memory' ? 'Free tensors or use a smaller cache' : kind === 'device-lost' ? 'Make a new instance with createMla; the process may have to be started anew' : undefined;
  return new MlaError(kind, `${what}: the NVIDIA driver reports ${describeResult(driver, result)}`, fix === undefined ? {} : { fix });
}

/** `CUDA_ERROR_OUT_OF_MEMORY (2, out of memory)` */
export function describeResult(driver: DriverTable, result: number): string {
  const out = new HostBlock(driver, 8);
  const text = (call: 'cuGetErrorName' | 'cuGetErrorString'): string | undefined =>
    driver.calls[call](result, out.address) === SUCCESS && out.pointer(0) !== 0 ? driver.text(out.pointer(0)) : undefined;
  const name = text('cuGetErrorName') ?? 'an unknown result';
  const words = text('cuGetErrorString');
  return `${name} (${result}${words === undefined ? '' : `, ${words}`})`;
}

const ALIGNMENT = 64; // what a CUtensorMap asks for

/** Memory of this process that the driver reads or writes during a call, as several views. */
export class HostBlock {
  readonly address: number;
  readonly bytes: Uint8Array<ArrayBuffer>;
  readonly i32: Int32Array<ArrayBuffer>;
  readonly u32: Uint32Array<ArrayBuffer>;
  readonly f32: Float32Array<ArrayBuffer>;

  constructor(driver: Pick<DriverTable, 'address'>, size: number) {
    const whole = Math.ceil(size / 8) * 8;
    const buffer = new ArrayBuffer(whole + ALIGNMENT);
    const start = driver.address(buffer);
    const offset = (ALIGNMENT - (start % ALIGNMENT)) % ALIGNMENT;
    this.address = start + offset;
    this.bytes = new Uint8Array(buffer, offset, whole);
    this.i32 = new Int32Array(buffer, offset, whole / 4);
    this.u32 = new Uint32Array(buffer, offset, whole / 4);
    this.f32 = new Float32Array(buffer, offset, whole / 4);
  }

  /** The pointer, handle or size at byte `at`. */
  pointer(at: number): number {
    return this.u32[at / 4]! + this.u32[at / 4 + 1]! * 2 ** 32;
  }

  setPointer(at: number, value: number): void {
    this.u32[at / 4] = value; // modulo 2^32
    this.u32[at / 4 + 1] = value / 2 ** 32;
  }
}
