/**
 * Device time of decode calls, from events around each.
 *
 * An event notes its time when the device comes to it; on an idle device that is before the kernels behind it are even
 * launched, and the time would hold this program's. So each call is enqueued behind a kernel that keeps the device
 * busy for HOLD_NS.
 */
import { MlaError } from '../errors.ts';
import type { CudaContext } from './context.ts';

const MOST_CALLS = 2048;
/** Several times what enqueueing a call takes. */
const HOLD_NS = 100_000;

export class Timer {
  readonly #context: CudaContext;
  readonly #hold: (nanoseconds: number) => void;
  /** Begin and end of each call, in turn. */
  readonly #events: number[] = [];
  #calls = -1; // negative: not measuring

  /** @param hold enqueues the kernel that does nothing for so long */
  constructor(context: CudaContext, hold: (nanoseconds: number) => void) {
    this.#context = context;
    this.#hold = hold;
  }

  begin(): void {
    if (this.#calls >= 0) throw new MlaError('invalid-argument', 'a measurement is under way', { argument: 'time', fix: 'Measure one thing at a time' });
    this.#calls = 0;
  }

  /** Before a call is enqueued. Its end is `after`. @throws MlaError limit-exceeded */
  before(): void {
    if (this.#calls < 0) return;
    if (this.#calls === MOST_CALLS) {
      throw new MlaError('limit-exceeded', 'too many calls in one measurement', { argument: 'time', expected: `at most ${MOST_CALLS}`, got: 'more' });
    }
    const at = 2 * this.#calls;
    while (this.#events.length < at + 2) this.#events.push(this.#context.timedEvent());
    this.#hold(HOLD_NS);
    this.#record(at);
  }

  after(): void {
    if (this.#calls >= 0) this.#record(2 * this.#calls++ + 1);
  }

  async end(): Promise<{ ms: number; source: 'device' }> {
    const calls = this.#calls;
    this.#calls = -1;
    // A measurement that begins while this one is waited for has others.
    const events = this.#events.splice(0, 2 * calls);
    try {
      const { driver, out } = this.#context;
      this.#context.enter();
      await this.#context.wait(this.#context.fence());
      let ms = 0;
      for (let i = 0; i < calls; i++) {
        this.#context.check(driver.calls.cuEventElapsedTime(out.address, events[2 * i]!, events[2 * i + 1]!), 'reading the time');
        ms += out.f32[0]!;
      }
      return { ms, source: 'device' };
    } finally {
      this.#events.push(...events);
    }
  }

  #record(at: number): void {
    this.#context.check(this.#context.driver.calls.cuEventRecord(this.#events[at]!, this.#context.stream), 'recording an event');
  }
}
