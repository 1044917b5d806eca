/**
 * Device memory of one context: every GPUBuffer of this package is made and freed here.
 *
 * Freed buffers are kept for reuse by size class, up to a bound, so that a decode loop allocates nothing after its
 * first steps. Writes and dispatches are ordered by the queue, which makes reuse safe without waiting.
 */
import { MlaError } from '../errors.ts';
import type { MemoryStats } from '../mla.ts';
import type { GpuContext } from './device.ts';

export interface Allocation {
  readonly buffer: GPUBuffer;
  /** What the device said of the allocation, once it has: await before trusting contents. */
  readonly fault: Promise<MlaError | undefined>;
}

const STORAGE = 0x80 | 0x08 | 0x04; // STORAGE | COPY_DST | COPY_SRC: GPUBufferUsage is not a global everywhere
const STAGING = 0x01 | 0x08; // MAP_READ | COPY_DST
const POOLED_BYTES = 256 << 20;

export class DeviceMemory {
  readonly #gpu: GpuContext;
  readonly #live = new Map<GPUBuffer, number>();
  readonly #free = new Map<string, Allocation[]>();
  #bytes = 0;
  #pooled = 0;
  #allocated = 0;

  constructor(gpu: GpuContext) {
    this.#gpu = gpu;
  }

  /** A storage buffer of at least `bytes`. Contents are unspecified. @throws MlaError limit-exceeded, device-lost */
  storage(bytes: number, label: string): Allocation {
    return this.#take(bytes, STORAGE, label);
  }

  /** A buffer to read back through. @throws MlaError limit-exceeded, device-lost */
  staging(bytes: number): Allocation {
    return this.#take(bytes, STAGING, 'readback');
  }

  #take(bytes: number, usage: number, label: string): Allocation {
    this.#gpu.check();
    const size = sizeClass(bytes);
    const { maxBufferSize, maxStorageBufferBindingSize } = this.#gpu.limits;
    const most = usage === STORAGE ? Math.min(maxBufferSize, maxStorageBufferBindingSize) : maxBufferSize;
    if (bytes > most) {
      throw new MlaError('limit-exceeded', `${label} is larger than one buffer of this device may be`, {
        argument: label, expected: `at most ${most} B`, got: `${bytes} B`,
      });
    }
    const free = this.#free.get(`${usage}/${size}`)?.pop();
    if (free) {
      this.#pooled -= size;
      return free;
    }
    const { value: buffer, fault } = this.#gpu.watch(`allocating ${bytes} B for ${label}`, () =>
      this.#gpu.device.createBuffer({ label, size: Math.min(size, alignDown(most)), usage }),
    );
    this.#live.set(buffer, size);
    this.#bytes += size;
    this.#allocated++;
    return { buffer, fault };
  }

  /** Gives an allocation back for reuse. */
  release(allocation: Allocation): void {
    const size = this.#live.get(allocation.buffer);
    if (size === undefined) return;
    if (this.#pooled + size > POOLED_BYTES) {
      this.#drop(allocation.buffer, size);
      return;
    }
    const key = `${allocation.buffer.usage}/${size}`;
    const list = this.#free.get(key);
    if (list) list.push(allocation);
    else this.#free.set(key, [allocation]);
    this.#pooled += size;
    // A buffer that the device refused must not be handed out again.
    void allocation.fault.then((fault) => {
      const at = fault ? (this.#free.get(key)?.indexOf(allocation) ?? -1) : -1;
      if (at < 0) return;
      this.#free.get(key)!.splice(at, 1);
      this.#pooled -= size;
      this.#drop(allocation.buffer, size);
    });
  }

  /** Frees an allocation without keeping it. */
  discard(allocation: Allocation): void {
    const size = this.#live.get(allocation.buffer);
    if (size !== undefined) this.#drop(allocation.buffer, size);
  }

  stats(): Pick<MemoryStats, 'bytes' | 'allocations' | 'allocated'> {
    return { bytes: this.#bytes, allocations: this.#live.size, allocated: this.#allocated };
  }

  destroy(): void {
    for (const buffer of this.#live.keys()) buffer.destroy();
    this.#live.clear();
    this.#free.clear();
    this.#bytes = this.#pooled = 0;
  }

  #drop(buffer: GPUBuffer, size: number): void {
    this.#live.delete(buffer);
    this.#bytes -= size;
    buffer.destroy();
  }
}

/** Multiples of 256 B up to 64 KiB, of 64 KiB above: reuse finds equals without wasting much. */
function sizeClass(bytes: number): number {
  const step = bytes <= 65536 ? 256 : 65536;
  return Math.max(step, Math.ceil(bytes / step) * step);
}

function alignDown(bytes: number): number {
  return bytes - (bytes % 4);
}
