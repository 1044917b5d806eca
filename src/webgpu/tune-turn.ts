/**
 * How tuning gives way to others: one measurement after the other on a device, in batches, and in slices on its thread, each when its turn
 * has come.
 */

/** Waits for a turn. What it resolves to, if anything, is called when that is over. Rejects when there is to be no other. */
export type Turn = () => Promise<(() => void) | void>;

/** What is worked out on this thread takes so long at a time, milliseconds. */
const SLICE_MS = 4;

export async function withTurn<T>(turn: Turn, work: () => Promise<T>): Promise<T> {
  const over = await turn();
  try {
    return await work();
  } finally {
    over?.();
  }
}

/** A slice goes on to the next `yield` after its time is up. */
export async function inSlices<T>(turn: Turn, work: Generator<void, T>): Promise<T> {
  for (;;) {
    await pause(0);
    const step = await withTurn(turn, async () => {
      const end = performance.now() + SLICE_MS;
      for (;;) {
        const next = work.next();
        if (next.done || performance.now() > end) return next;
      }
    });
    if (step.done) return step.value;
  }
}

/** Keeps no program from ending. */
export function pause(ms: number): Promise<void> {
  return new Promise((resolve) => {
    const timer: unknown = setTimeout(resolve, ms);
    if (typeof timer === 'object') (timer as { unref?(): void } | null)?.unref?.();
  });
}

/** What the instances of one device have in common, in this thread: two that measured at once would measure each other. */
export class TuneSite {
  static readonly #sites = new Map<string, TuneSite>();

  /** The one named `name`. */
  static of(name: string): TuneSite {
    let site = TuneSite.#sites.get(name);
    if (!site) TuneSite.#sites.set(name, (site = new TuneSite()));
    return site;
  }

  #last: Promise<unknown> = Promise.resolve();
  /** The background's last batch, until it is done. */
  batch: Promise<void> = Promise.resolve();
  /** Measurements of callers that are under way. */
  timing = 0;
  /** Who waits for `tune`, and so for the background before it. */
  asked = 0;

  /** Does `work` once all that was asked for before is done. */
  inTurn<T>(work: () => Promise<T>): Promise<T> {
    const done = this.#last.then(work);
    this.#last = done.catch(() => undefined);
    return done;
  }
}
