/** Which device: the first of compute capability 9.0, the only one that the cubins are made for. */
import { MlaError, describe } from '../errors.ts';
import { HostBlock, SUCCESS, describeResult, unavailable, type DriverTable } from './driver.ts';

export interface DeviceFacts {
  readonly handle: number;
  readonly name: string;
  readonly multiProcessors: number;
  readonly l2Bytes: number;
  readonly memoryBytes: number;
  readonly sharedMemoryBytes: number;
  /** 1000 * major + 10 * minor of the CUDA version that the driver has. */
  readonly driverVersion: number;
}

// CUdevice_attribute
const MULTI_PROCESSORS = 16;
const L2_BYTES = 38;
const CAPABILITY_MAJOR = 75;
const CAPABILITY_MINOR = 76;
const SHARED_BYTES = 97;

const OTHER_BACKEND = 'Use backend webgpu';

/** `13.0` */
export function versionText(version: number): string {
  return `${Math.floor(version / 1000)}.${Math.floor((version % 1000) / 10)}`;
}

/**
 * @param needed driver version that the cubins need
 * @param ordinal the caller's choice of device
 * @throws MlaError backend-unavailable, invalid-argument
 */
export function findDevice(driver: DriverTable, needed: number, ordinal?: number): DeviceFacts {
  const { calls } = driver;
  const out = new HostBlock(driver, 256);
  const ask = (result: number, what: string): void => {
    if (result !== SUCCESS) throw unavailable(`${what}: the NVIDIA driver reports ${describeResult(driver, result)}`, 'a working NVIDIA driver', `result ${result}`, 'Check what nvidia-smi says');
  };
  ask(calls.cuInit(0), 'no CUDA here');
  ask(calls.cuDriverGetVersion(out.address), 'asking for the driver version');
  const driverVersion = out.i32[0]!;
  if (driverVersion < needed) {
    throw unavailable('the NVIDIA driver is too old for the kernels', `a driver for CUDA ${versionText(needed)} or newer`, `one for CUDA ${versionText(driverVersion)}`,
      'Update the NVIDIA driver (https://www.nvidia.com/drivers)');
  }
  ask(calls.cuDeviceGetCount(out.address), 'counting devices');
  const count = out.i32[0]!;
  if (ordinal !== undefined && !(Number.isInteger(ordinal) && ordinal >= 0 && ordinal < count)) {
    throw new MlaError('invalid-argument', 'no such CUDA device', { argument: 'cudaDevice', expected: `0 .. ${count - 1}`, got: describe(ordinal) });
  }
  const others: string[] = [];
  for (let i = ordinal ?? 0; i < (ordinal === undefined ? count : ordinal + 1); i++) {
    ask(calls.cuDeviceGet(out.address, i), 'opening a device');
    const handle = out.i32[0]!;
    const attribute = (which: number): number => {
      ask(calls.cuDeviceGetAttribute(out.address, which, handle), 'asking what the device can do');
      return out.i32[0]!;
    };
    const capability = `${attribute(CAPABILITY_MAJOR)}.${attribute(CAPABILITY_MINOR)}`;
    ask(calls.cuDeviceGetName(out.address, 256, handle), 'asking for the name of a device');
    const name = new TextDecoder().decode(out.bytes.subarray(0, out.bytes.indexOf(0)));
    if (capability !== '9.0') {
      others.push(`${name} (${capability})`);
      continue;
    }
    ask(calls.cuDeviceTotalMem_v2(out.address, handle), 'asking for the memory of a device');
    return {
      handle, name, driverVersion, memoryBytes: out.pointer(0),
      multiProcessors: attribute(MULTI_PROCESSORS), l2Bytes: attribute(L2_BYTES), sharedMemoryBytes: attribute(SHARED_BYTES),
    };
  }
  throw unavailable('no Hopper GPU', 'compute capability 9.0', others.length > 0 ? others.join(', ') : 'no CUDA device', OTHER_BACKEND);
}
