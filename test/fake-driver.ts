/**
 * An NVIDIA driver that is not there: memory, events and modules kept in this program, launches noted, every result code
 * to be had on demand. It computes nothing.
 */
import { NOT_READY, SUCCESS, type DriverCall, type DriverTable } from '../src/cuda/driver.ts';

export interface Launched {
  readonly kernel: string;
  readonly grid: readonly number[];
  readonly threads: number;
  readonly sharedBytes: number;
  /** Attribute id and the first numbers of its value. */
  readonly attributes: readonly (readonly number[])[];
  /** The parameter's bytes at the launch. */
  readonly params: Uint8Array;
}

export interface FakeDevice {
  readonly name: string;
  readonly capability: readonly [number, number];
  readonly memoryBytes?: number;
}

export const HOPPER: FakeDevice = { name: 'Fake H100', capability: [9, 0] };

const NAMES: Readonly<Record<number, readonly [string, string]>> = {
  2: ['CUDA_ERROR_OUT_OF_MEMORY', 'out of memory'],
  100: ['CUDA_ERROR_NO_DEVICE', 'no CUDA-capable device is detected'],
  200: ['CUDA_ERROR_INVALID_IMAGE', 'device kernel image is invalid'],
  700: ['CUDA_ERROR_ILLEGAL_ADDRESS', 'an illegal memory access was encountered'],
  719: ['CUDA_ERROR_LAUNCH_FAILED', 'unspecified launch failure'],
};

const PARAM_BYTES = 640;

export class FakeDriver implements DriverTable {
  readonly calls: Readonly<Record<DriverCall, (...args: number[]) => number>>;
  readonly launches: Launched[] = [];
  /** How often each function was called. */
  readonly counts = new Map<DriverCall, number>();
  /** What a function answers instead of doing its work. */
  readonly fail = new Map<DriverCall, number>();
  /** Bytes copied to the device. */
  uploaded = 0;
  /** Times that an event says that it is not done yet. */
  pending = 0;
  /** Bytes that are left of the device's memory. */
  free: number;
  readonly #devices: readonly FakeDevice[];
  readonly #version: number;
  /** Memory by where it starts, a kind each; handles too, so that what is left over shows. */
  readonly #held = new Map<number, { readonly kind: string; readonly bytes: Uint8Array<ArrayBuffer> }>();
  readonly #host = new Map<ArrayBuffer, number>();
  readonly #ranges: { readonly start: number; readonly buffer: ArrayBuffer }[] = [];
  readonly #functions = new Map<number, string>();
  // Above 2^32, as addresses are.
  #next = 0x7f00_0000_0000;

  constructor(devices: readonly FakeDevice[] = [HOPPER], version = 13000) {
    this.#devices = devices;
    this.#version = version;
    this.free = devices[0]?.memoryBytes ?? 80e9;
    const work = this.#work();
    this.calls = Object.fromEntries(
      Object.entries(work).map(([name, run]) => [
        name,
        (...args: number[]) => {
          this.counts.set(name as DriverCall, this.count(name as DriverCall) + 1);
          return this.fail.get(name as DriverCall) ?? run(...args) ?? SUCCESS;
        },
      ]),
    ) as unknown as DriverTable['calls'];
  }

  count(name: DriverCall): number {
    return this.counts.get(name) ?? 0;
  }

  /** What has been made and not given back. */
  get held(): string[] {
    return [...this.#held.values()].map(({ kind }) => kind).sort();
  }

  address(buffer: ArrayBuffer): number {
    let start = this.#host.get(buffer);
    if (start === undefined) {
      // Aligned as malloc aligns, and no better.
      start = this.#take(buffer.byteLength + 64) + 16;
      this.#host.set(buffer, start);
      this.#ranges.push({ start, buffer });
    }
    return start;
  }

  view(address: number): ArrayBuffer {
    return this.#held.get(address)!.bytes.buffer;
  }

  text(address: number): string {
    const bytes = this.bytesAt(address, 64);
    return new TextDecoder().decode(bytes.subarray(0, bytes.indexOf(0)));
  }

  /** Memory of either side. */
  bytesAt(address: number, length: number): Uint8Array {
    for (const { start, buffer } of this.#ranges) if (address >= start && address < start + buffer.byteLength) return new Uint8Array(buffer, address - start, Math.min(length, buffer.byteLength - (address - start)));
    for (const [start, { bytes }] of this.#held) if (address >= start && address < start + bytes.length) return bytes.subarray(address - start, address - start + length);
    throw new Error(`no memory at ${address.toString(16)}`);
  }

  #take(size: number): number {
    const at = this.#next;
    this.#next += Math.ceil((size + 1) / 256) * 256;
    return at;
  }

  #hold(kind: string, out: number, size = 0): void {
    const at = this.#take(size);
    this.#held.set(at, { kind, bytes: new Uint8Array(size) });
    this.#put(out, at);
  }

  #drop(at: number): number | void {
    if (!this.#held.delete(at)) return 400;
  }

  #put(out: number, value: number): void {
    const bytes = this.bytesAt(out, 8);
    new DataView(bytes.buffer, bytes.byteOffset).setBigUint64(0, BigInt(value), true);
  }

  #put32(out: number, value: number): void {
    const bytes = this.bytesAt(out, 4);
    new DataView(bytes.buffer, bytes.byteOffset).setInt32(0, value, true);
  }

  #string(out: number, text: string | undefined): number | void {
    if (text === undefined) return 1;
    this.#put(out, this.address(new TextEncoder().encode(`${text}\0`).buffer));
  }

  #copy(to: number, from: number, size: number): void {
    this.bytesAt(to, size).set(this.bytesAt(from, size));
  }

  #launch(config: number, kernel: number, args: number): void {
    const view = (at: number, size: number): DataView => {
      const bytes = this.bytesAt(at, size);
      return new DataView(bytes.buffer, bytes.byteOffset, bytes.length);
    };
    const c = view(config, 56);
    const u32 = (at: number): number => c.getUint32(at, true);
    const attributes = Array.from({ length: u32(48) }, (_, i) => {
      const a = view(Number(c.getBigUint64(40, true)) + 72 * i, 72);
      return [0, 8, 12, 16].map((at) => a.getUint32(at, true));
    });
    const params = Number(view(args, 8).getBigUint64(0, true));
    this.launches.push({
      kernel: this.#functions.get(kernel)!, grid: [u32(0), u32(4), u32(8)], threads: u32(12), sharedBytes: u32(24), attributes,
      params: this.bytesAt(params, PARAM_BYTES).slice(),
    });
  }

  #work(): Record<DriverCall, (...args: number[]) => number | void> {
    const device = (i: number): FakeDevice => this.#devices[i]!;
    const nothing = (): void => undefined;
    return {
      cuInit: nothing,
      cuDriverGetVersion: (out) => this.#put32(out!, this.#version),
      cuGetErrorName: (code, out) => this.#string(out!, NAMES[code!]?.[0]),
      cuGetErrorString: (code, out) => this.#string(out!, NAMES[code!]?.[1]),
      cuDeviceGetCount: (out) => this.#put32(out!, this.#devices.length),
      cuDeviceGet: (out, i) => this.#put32(out!, i!),
      cuDeviceGetName: (out, _size, i) => this.bytesAt(out!, 256).set(new TextEncoder().encode(`${device(i!).name}\0`)),
      cuDeviceGetAttribute: (out, which, i) => this.#put32(out!, { 16: 132, 38: 50 << 20, 75: device(i!).capability[0], 76: device(i!).capability[1], 97: 232448 }[which!]!),
      cuDeviceTotalMem_v2: (out, i) => this.#put(out!, device(i!).memoryBytes ?? 80e9),
      cuDevicePrimaryCtxRetain: (out) => this.#hold('context', out!),
      cuDevicePrimaryCtxRelease_v2: () => this.#drop([...this.#held].find(([, { kind }]) => kind === 'context')?.[0] ?? 0),
      cuCtxSetCurrent: nothing,
      cuModuleLoadData: (out) => this.#hold('module', out!),
      cuModuleUnload: (at) => this.#drop(at!),
      cuModuleGetFunction: (out, _module, name) => {
        const at = this.#take(0);
        this.#functions.set(at, this.text(name!));
        this.#put(out!, at);
      },
      cuFuncSetAttribute: nothing,
      cuLaunchKernelEx: (config, kernel, args) => this.#launch(config!, kernel!, args!),
      cuTensorMapEncodeTiled: (to, type, rank, address, dimensions) => {
        if (to! % 64 !== 0) return 1;
        this.bytesAt(to!, 128).fill(0);
        this.#put32(to!, type!);
        this.#put32(to! + 4, rank!);
        this.#put(to! + 8, address!);
        this.#copy(to! + 16, dimensions!, 8 * rank!);
      },
      cuStreamCreate: (out) => this.#hold('stream', out!),
      cuStreamSynchronize: nothing,
      cuStreamDestroy_v2: (at) => this.#drop(at!),
      cuEventCreate: (out) => this.#hold('event', out!),
      cuEventRecord: nothing,
      cuEventQuery: () => (this.pending-- > 0 ? NOT_READY : ((this.pending = 0), SUCCESS)),
      cuEventSynchronize: nothing,
      cuEventElapsedTime: (out) => {
        const bytes = this.bytesAt(out!, 4);
        new DataView(bytes.buffer, bytes.byteOffset).setFloat32(0, 0.5, true);
      },
      cuEventDestroy_v2: (at) => this.#drop(at!),
      cuMemPoolCreate: (out) => this.#hold('pool', out!),
      cuMemPoolDestroy: (at) => this.#drop(at!),
      cuMemAllocFromPoolAsync: (out, size) => {
        if (size! > this.free) return 2;
        this.free -= size!;
        this.#hold('device memory', out!, size);
      },
      cuMemFreeAsync: (at) => {
        this.free += this.#held.get(at!)?.bytes.length ?? 0;
        return this.#drop(at!);
      },
      cuMemHostAlloc: (out, size) => this.#hold('pinned memory', out!, size),
      cuMemFreeHost: (at) => this.#drop(at!),
      cuMemcpyHtoDAsync_v2: (to, from, size) => {
        this.uploaded += size!;
        this.#copy(to!, from!, size!);
      },
      cuMemcpyDtoHAsync_v2: (to, from, size) => this.#copy(to!, from!, size!),
      cuMemcpyDtoDAsync_v2: (to, from, size) => this.#copy(to!, from!, size!),
      cuMemsetD32Async: nothing,
    };
  }
}
