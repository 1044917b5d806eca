/**
 * Device memory of one context: every GPUBuffer of this package is made and freed here.
 *
 * Writes and dispatches are ordered by the queue, which makes reuse safe without waiting.
 */
import { MlaError } from '../errors.ts';
import type { MemoryStats } from '../mla.ts';
import { Pool } from '../pool.ts';
import { bindingBytes } from './config.ts';
import type { GpuContext } from './device.ts';

export interface Allocation {
  readonly buffer: GPUBuffer;
  /** What the device said of the allocation, once it has: await before trusting contents. */
  readonly fault: Promise<MlaError | undefined>;
  /** The device has said yes. */
  granted: boolean;
}

/** What became of memory that was used before the device had granted it. @param told what the device had to say of its use @throws MlaError out-of-memory, device-lost */
export async function whenGranted(allocations: readonly Allocation[], told: Promise<MlaError | undefined>): Promise<void> {
  // First what was refused: what is said of its use comes of that.
  for (const answer of [...allocations.map(({ fault }) => fault), told]) {
    const refused = await answer;
    if (refused) throw refused;
  }
}

const STORAGE = 0x80 | 0x08 | 0x04; // STORAGE | COPY_DST | COPY_SRC: GPUBufferUsage is not a global everywhere
const PARAMETERS = STORAGE | 0x40; // UNIFORM
const STAGING = 0x01 | 0x08; // MAP_READ | COPY_DST
const POOLED_BYTES = 256 << 20;

export class DeviceMemory {
  readonly #gpu: GpuContext;
  readonly #pool: Pool<Allocation>;

  /** @param onDestroy told of each buffer that is freed for good */
  constructor(gpu: GpuContext, onDestroy: (buffer: GPUBuffer) => void) {
    this.#gpu = gpu;
    this.#pool = new Pool(({ buffer }) => {
      onDestroy(buffer);
      buffer.destroy();
    }, POOLED_BYTES);
  }

  /** A storage buffer of at least `bytes`. Contents are unspecified. @throws MlaError limit-exceeded, device-lost */
  storage(bytes: number, label: string): Allocation {
    return this.#take(bytes, STORAGE, label);
  }

  /** A storage buffer that uniforms can be bound in too. @throws MlaError limit-exceeded, device-lost */
  parameters(bytes: number): Allocation {
    return this.#take(bytes, PARAMETERS, 'parameters');
  }

  /** A buffer to read back through. @throws MlaError limit-exceeded, device-lost */
  staging(bytes: number): Allocation {
    return this.#take(bytes, STAGING, 'readback');
  }

  #take(bytes: number, usage: number, label: string): Allocation {
    this.#gpu.check();
    const { limits } = this.#gpu;
    const most = usage !== STAGING ? bindingBytes(limits) : limits.maxBufferSize;
    if (bytes > most) {
      throw new MlaError('limit-exceeded', `${label} is larger than one buffer of this device may be`, {
        argument: label, expected: `at most ${most} B`, got: `${bytes} B`,
      });
    }
    return this.#pool.take(bytes, String(usage), (size) => {
      const { value: buffer, fault } = this.#gpu.watch(`allocating ${bytes} B for ${label}`, () =>
        this.#gpu.device.createBuffer({ label, size: Math.min(size, alignDown(most)), usage }),
      );
      const allocation: Allocation = { buffer, fault, granted: false };
      void fault.then((error) => (allocation.granted = error === undefined));
      return allocation;
    });
  }

  /** Gives an allocation back for reuse. */
  release(allocation: Allocation): void {
    this.#pool.release(allocation);
    // A buffer that the device refused must not be handed out again.
    void allocation.fault.then((fault) => {
      if (fault) this.#pool.withdraw(allocation);
    });
  }

  /** Frees an allocation without keeping it. */
  discard(allocation: Allocation): void {
    this.#pool.discard(allocation);
  }

  stats(): Pick<MemoryStats, 'bytes' | 'allocations' | 'allocated'> {
    return this.#pool.stats();
  }

  destroy(): void {
    this.#pool.destroy();
  }
}

function alignDown(bytes: number): number {
  return bytes - (bytes % 4);
}
