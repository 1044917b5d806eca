/**
 * Device memory of one context: every allocation of this backend is made and freed here.
 *
 * It comes from a memory pool of our own in the order of the stream, so that neither making nor freeing waits for the
 * device; and work is ordered by the stream, which makes reuse safe without waiting.
 */
import { MlaError } from '../errors.ts';
import type { MemoryStats } from '../mla.ts';
import { Pool } from '../pool.ts';
import type { CudaContext } from './context.ts';
import { HostBlock, OUT_OF_MEMORY, describeResult } from './driver.ts';

export interface Allocation {
  /** Of the device; a multiple of 256. */
  readonly address: number;
}

const POOLED_BYTES = 512 << 20;

// CUmemPoolProps
const PROPS_BYTES = 88;
const PROPS_ALLOCATION_TYPE = 0; // i32: 1 is CU_MEM_ALLOCATION_TYPE_PINNED, the only one
const PROPS_LOCATION_TYPE = 8; // i32: 1 is CU_MEM_LOCATION_TYPE_DEVICE
const PROPS_LOCATION_ID = 12; // i32: which device

export class DeviceMemory {
  readonly #context: CudaContext;
  readonly #source: number;
  readonly #pool: Pool<Allocation>;

  /** @throws MlaError internal */
  constructor(context: CudaContext) {
    this.#context = context;
    const { calls } = context.driver;
    const props = new HostBlock(context.driver, PROPS_BYTES);
    props.i32[PROPS_ALLOCATION_TYPE / 4] = 1;
    props.i32[PROPS_LOCATION_TYPE / 4] = 1;
    props.i32[PROPS_LOCATION_ID / 4] = context.device.handle;
    context.check(calls.cuMemPoolCreate(context.out.address, props.address), 'making a memory pool');
    this.#source = context.out.pointer(0);
    // A failure means that the context is lost, and the memory with it.
    this.#pool = new Pool(({ address }) => void calls.cuMemFreeAsync(address, context.stream), POOLED_BYTES);
  }

  /**
   * Memory of at least `bytes`. Contents are unspecified.
   * @param details what an error says of the request
   * @throws MlaError limit-exceeded, out-of-memory, device-lost
   */
  take(bytes: number, label: string, details: { argument?: string; expected?: string; got?: string } = {}): Allocation {
    const { memoryBytes } = this.#context.device;
    const told = { argument: label, expected: `at most ${memoryBytes} B`, got: `${bytes} B`, ...details };
    if (bytes > memoryBytes) throw new MlaError('limit-exceeded', `${label} is larger than this device's memory`, told);
    return this.#pool.take(bytes, '', (size) => {
      const { out, stream, driver } = this.#context;
      const ask = (): number => driver.calls.cuMemAllocFromPoolAsync(out.address, size, this.#source, stream);
      let result = ask();
      if (result === OUT_OF_MEMORY) {
        this.#pool.trim();
        result = ask();
      }
      if (result === OUT_OF_MEMORY) {
        throw new MlaError('out-of-memory', `no room for ${label}: the NVIDIA driver reports ${describeResult(driver, result)}`, { ...told, fix: 'Free tensors or use a smaller cache' });
      }
      this.#context.check(result, `allocating ${size} B for ${label}`);
      return { address: out.pointer(0) };
    });
  }

  /** Gives an allocation back for reuse. */
  release(allocation: Allocation): void {
    this.#pool.release(allocation);
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
    const { calls } = this.#context.driver;
    calls.cuStreamSynchronize(this.#context.stream); // idle by now: for the frees alone
    calls.cuMemPoolDestroy(this.#source);
  }
}
