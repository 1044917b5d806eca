/** Device time of compute passes: timestamp queries where the device has them, else wall time until the queue is idle. */
import { MlaError } from '../errors.ts';
import type { GpuContext } from './device.ts';
import type { DeviceMemory } from './memory.ts';

const PASSES = 2048; // two queries each: WebGPU's query sets hold 4096

export class Timer {
  readonly #gpu: GpuContext;
  readonly #memory: DeviceMemory;
  readonly #wait: <T>(work: Promise<T>) => Promise<T>;
  #queries: GPUQuerySet | undefined;
  #resolve: GPUBuffer | undefined;
  #passes = -1; // negative: not measuring
  #start = 0;
  #destroyed = false;

  /** @param wait how to wait for the device; telling of errors noted since the last wait when absent */
  constructor(gpu: GpuContext, memory: DeviceMemory, wait = <T>(work: Promise<T>): Promise<T> => gpu.settle(work)) {
    this.#gpu = gpu;
    this.#memory = memory;
    this.#wait = wait;
  }

  get onDevice(): boolean {
    return this.#gpu.features.includes('timestamp-query');
  }

  /** @throws MlaError invalid-argument, out-of-memory, device-lost */
  async begin(): Promise<void> {
    if (this.#passes >= 0) throw new MlaError('invalid-argument', 'a measurement is under way', { argument: 'time', fix: 'Measure one thing at a time' });
    this.#passes = 0;
    try {
      if (this.onDevice) {
        if (!this.#queries) await this.#make();
      } else {
        await this.#wait(this.#gpu.device.queue.onSubmittedWorkDone());
        this.#start = performance.now();
      }
    } catch (error) {
      this.#passes = -1;
      throw error;
    }
  }

  async #make(): Promise<void> {
    const { device } = this.#gpu;
    const { value: { queries, resolve }, fault } = this.#gpu.watch('making a timer', () => ({
      queries: device.createQuerySet({ label: 'timer', type: 'timestamp', count: 2 * PASSES }),
      resolve: device.createBuffer({ label: 'timer', size: 16 * PASSES, usage: 0x200 | 0x04 /* QUERY_RESOLVE | COPY_SRC */ }),
    }));
    const refused = (await fault) ?? (this.#destroyed ? new MlaError('destroyed', 'the timer was destroyed') : undefined);
    if (refused) {
      queries.destroy();
      resolve.destroy();
      throw refused;
    }
    [this.#queries, this.#resolve] = [queries, resolve];
  }

  /** What a pass adds to its descriptor. */
  pass(): { timestampWrites?: GPUComputePassTimestampWrites } {
    if (this.#passes < 0 || !this.#queries) return {};
    if (this.#passes === PASSES) {
      throw new MlaError('limit-exceeded', 'too many calls in one measurement', { argument: 'time', expected: `at most ${PASSES}`, got: 'more' });
    }
    const at = 2 * this.#passes++;
    return { timestampWrites: { querySet: this.#queries, beginningOfPassWriteIndex: at, endOfPassWriteIndex: at + 1 } };
  }

  /** The last pass was not submitted: its queries hold nothing. */
  takeBack(): void {
    if (this.#passes > 0) this.#passes--;
  }

  async end(): Promise<{ ms: number; source: 'device' | 'wall' }> {
    const passes = this.#passes;
    this.#passes = -1;
    const { device } = this.#gpu;
    if (!this.#queries) {
      await this.#wait(device.queue.onSubmittedWorkDone());
      return { ms: performance.now() - this.#start, source: 'wall' };
    }
    if (passes === 0) return { ms: 0, source: 'device' };
    const staging = this.#memory.staging(16 * passes);
    const encoder = device.createCommandEncoder({ label: 'timer' });
    encoder.resolveQuerySet(this.#queries, 0, 2 * passes, this.#resolve!, 0);
    encoder.copyBufferToBuffer(this.#resolve!, 0, staging.buffer, 0, 16 * passes);
    device.queue.submit([encoder.finish()]);
    let nanoseconds = 0;
    try {
      await this.#wait(staging.buffer.mapAsync(1 /* READ */, 0, 16 * passes));
      // Another turn may have destroyed what is mapped.
      this.#gpu.check();
      const times = new BigUint64Array(staging.buffer.getMappedRange(0, 16 * passes));
      for (let i = 0; i < passes; i++) nanoseconds += Number(times[2 * i + 1]! - times[2 * i]!);
      staging.buffer.unmap();
    } catch (error) {
      // It may be mapped, or about to be.
      this.#memory.discard(staging);
      throw error;
    }
    this.#memory.release(staging);
    return { ms: nanoseconds / 1e6, source: 'device' };
  }

  destroy(): void {
    this.#destroyed = true;
    this.#queries?.destroy();
    this.#resolve?.destroy();
  }
}
