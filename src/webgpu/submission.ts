/** One submission of one compute pass, and what is to be given back once it is on its way. */
import { MlaError } from '../errors.ts';
import type { DeviceTraits } from './config.ts';
import type { BindGroups } from './bind-groups.ts';
import type { GpuContext } from './device.ts';
import type { KernelCache } from './kernel.ts';
import { whenGranted, type Allocation, type DeviceMemory } from './memory.ts';
import type { Timer } from './timer.ts';

/** What work is encoded with. */
export interface Machine {
  readonly gpu: GpuContext;
  readonly memory: DeviceMemory;
  readonly kernels: KernelCache;
  readonly bindGroups: BindGroups;
  readonly traits: DeviceTraits;
}

export class Submission {
  readonly pass: GPUComputePassEncoder;
  readonly #machine: Machine;
  readonly #doubted: Allocation[] = [];
  #close: (() => Promise<MlaError | undefined>) | undefined;
  readonly #released: Allocation[] = [];
  readonly #discarded: Allocation[] = [];

  private constructor(machine: Machine, pass: GPUComputePassEncoder) {
    this.#machine = machine;
    this.pass = pass;
  }

  /**
   * Encodes and submits. Where `encode` throws nothing is submitted.
   * @param timer what measures it, if anything does
   * @returns a promise where memory is used that the device has not granted yet, which rejects if it does not
   */
  static run(machine: Machine, label: string, timer: Timer | undefined, encode: (submission: Submission) => void): void | Promise<void> {
    const { device } = machine.gpu;
    const encoder = device.createCommandEncoder({ label });
    const submission = new Submission(machine, encoder.beginComputePass({ label, ...timer?.pass() }));
    let told: Promise<MlaError | undefined> | undefined;
    try {
      encode(submission);
      submission.pass.end();
      device.queue.submit([encoder.finish()]);
    } catch (error) {
      timer?.takeBack();
      throw error;
    } finally {
      told = submission.#end();
    }
    if (!told) return;
    return whenGranted(submission.#doubted, told).catch((error: unknown) => {
      // A kernel that was refused is what was wrong first, and is told of once.
      throw error instanceof MlaError && error.code === 'internal' ? (machine.gpu.noted() ?? error) : error;
    });
  }

  /** To be called before the use of memory is encoded. */
  use(allocations: readonly Allocation[]): void {
    for (const allocation of allocations) {
      if (allocation.granted) continue;
      // What becomes of that is told of once, as what it is: not as an error of what uses it.
      this.#close ??= this.#machine.gpu.scope('a submission');
      this.#doubted.push(allocation);
    }
  }

  /** Gives memory back: not before the submission, for what is written into it meanwhile would be there for all of it. */
  release(allocation: Allocation): void {
    this.#released.push(allocation);
  }

  /** Frees memory that the submission may use. */
  discard(allocation: Allocation): void {
    this.#discarded.push(allocation);
  }

  /** @returns what the device has to say, where memory was used that it had not granted */
  #end(): Promise<MlaError | undefined> | undefined {
    const told = this.#close?.();
    for (const allocation of this.#released) this.#machine.memory.release(allocation);
    for (const allocation of this.#discarded) this.#machine.memory.discard(allocation);
    return told;
  }
}
