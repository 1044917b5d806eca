/** How tuning gives way to others: in batches on the device, and in slices on its thread, each when its turn has come. */

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
