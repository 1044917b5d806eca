/** One device in use: its primary context, a stream of our own, and how results and their errors come back. */
import { MlaError } from '../errors.ts';
import type { DeviceFacts } from './device.ts';
import { HostBlock, NOT_READY, SUCCESS, driverError, unavailable, type DriverTable } from './driver.ts';

const NON_BLOCKING = 1; // CU_STREAM_NON_BLOCKING: no order with the default stream of others in this process
const NO_TIMING = 2; // CU_EVENT_DISABLE_TIMING
/** Milliseconds that a wait asks again at every turn of the event loop; after that timers, ever rarer. */
const EAGER_MS = 2;
const LONGEST_PAUSE_MS = 8;

export class CudaContext {
  readonly driver: DriverTable;
  readonly device: DeviceFacts;
  readonly stream: number;
  /** For results through pointers; read before the next call. */
  readonly out: HostBlock;
  readonly #handle: number;
  readonly #idleFences: number[] = [];
  readonly #timed = new Set<number>();
  readonly #fences = new Set<number>();
  #error: MlaError | undefined;

  /** @throws MlaError backend-unavailable */
  constructor(driver: DriverTable, device: DeviceFacts) {
    this.driver = driver;
    this.device = device;
    this.out = new HostBlock(driver, 64);
    const { calls } = driver;
    const ask = (result: number, what: string): void => {
      if (result !== SUCCESS) throw unavailable(driverError(driver, result, what).message, 'a device that is free for use', `result ${result}`, 'Check what nvidia-smi says');
    };
    ask(calls.cuDevicePrimaryCtxRetain(this.out.address, device.handle), 'making a context');
    this.#handle = this.out.pointer(0);
    try {
      ask(calls.cuCtxSetCurrent(this.#handle), 'entering the context');
      ask(calls.cuStreamCreate(this.out.address, NON_BLOCKING), 'making a stream');
      this.stream = this.out.pointer(0);
    } catch (error) {
      calls.cuCtxSetCurrent(0);
      calls.cuDevicePrimaryCtxRelease_v2(device.handle);
      throw error;
    }
  }

  /** Before calls of the driver: others on this thread may have entered another context. @throws MlaError device-lost, destroyed */
  enter(): void {
    if (this.#error) throw this.#error;
    this.check(this.driver.calls.cuCtxSetCurrent(this.#handle), 'entering the context');
  }

  /** @throws MlaError out-of-memory, device-lost, internal */
  check(result: number, what: string): void {
    if (result === SUCCESS) return;
    const error = driverError(this.driver, result, what);
    if (error.code === 'device-lost') this.#error ??= error;
    throw error;
  }

  /** An event behind all that is enqueued. */
  fence(): number {
    const { calls } = this.driver;
    let fence = this.#idleFences.pop();
    if (fence === undefined) {
      this.check(calls.cuEventCreate(this.out.address, NO_TIMING), 'making an event');
      fence = this.out.pointer(0);
      this.#fences.add(fence);
    }
    this.check(calls.cuEventRecord(fence, this.stream), 'recording an event');
    return fence;
  }

  /** An event that notes the time. */
  timedEvent(): number {
    this.check(this.driver.calls.cuEventCreate(this.out.address, 0), 'making an event');
    const event = this.out.pointer(0);
    this.#timed.add(event);
    return event;
  }

  /** Whether the work before a fence is done. @throws MlaError device-lost */
  passed(fence: number): boolean {
    this.enter();
    const result = this.driver.calls.cuEventQuery(fence);
    if (result === NOT_READY) return false;
    this.check(result, 'running the kernels');
    return true;
  }

  /** Gives a fence back. */
  retire(fence: number): void {
    this.#idleFences.push(fence);
  }

  /** Resolves once the work before the fence is done, and gives it back; the event loop runs meanwhile. @throws MlaError device-lost, destroyed */
  async wait(fence: number): Promise<void> {
    const start = performance.now();
    let pause = 1;
    try {
      while (!this.passed(fence)) {
        if (performance.now() - start < EAGER_MS) await new Promise<void>((resolve) => setImmediate(resolve));
        else {
          await new Promise<void>((resolve) => setTimeout(resolve, pause));
          pause = Math.min(LONGEST_PAUSE_MS, pause * 2);
        }
      }
    } finally {
      this.retire(fence);
    }
  }

  /** Refuses further work; waits for what is enqueued. */
  async close(): Promise<void> {
    if (this.#error) return;
    const { calls } = this.driver;
    try {
      this.enter();
      const fence = this.fence();
      this.#error = new MlaError('destroyed', 'this backend was destroyed');
      while (calls.cuEventQuery(fence) === NOT_READY) await new Promise<void>((resolve) => setTimeout(resolve, 1));
    } catch {
      // Lost: there is nothing to wait for.
    }
    this.#error ??= new MlaError('destroyed', 'this backend was destroyed');
  }

  /** Gives everything back. What fails now no longer matters. */
  destroy(): void {
    const { calls } = this.driver;
    for (const event of [...this.#fences, ...this.#timed]) calls.cuEventDestroy_v2(event);
    this.#fences.clear();
    this.#timed.clear();
    calls.cuStreamDestroy_v2(this.stream);
    calls.cuCtxSetCurrent(0); // or this thread would be left in a context that may be gone
    calls.cuDevicePrimaryCtxRelease_v2(this.device.handle);
  }

  /** Enters the context for what `destroy` frees, whatever became of it. */
  enterToFree(): void {
    this.driver.calls.cuCtxSetCurrent(this.#handle);
  }
}
