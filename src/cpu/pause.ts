/** Turns for the event loop between pieces of long work on this thread. */
const SLICE_MS = 8;

export class Pause {
  #last = 0;

  /** Lets the event loop run, unless it has a few milliseconds ago. */
  async turn(): Promise<void> {
    if (performance.now() - this.#last < SLICE_MS) return;
    await new Promise<void>((resolve) => setTimeout(resolve, 0));
    this.#last = performance.now();
  }
}
