/**
 * Work that is owed by something that may end before it is done: a device, a thread.
 *
 * What `Promise.race` does with one promise for the end, whose reactions would hold every result for as long as it lives.
 */
export class Owed {
  readonly #waiting = new Set<(reason: unknown) => void>();
  #ended: { readonly reason: unknown } | undefined;

  /** Settles as `work` does, or rejects with the reason once there is an end. */
  wait<T>(work: Promise<T>): Promise<T> {
    return new Promise((resolve, reject) => {
      const settled = (): void => void this.#waiting.delete(reject);
      work.then(
        (value) => {
          settled();
          resolve(value);
        },
        (error: unknown) => {
          settled();
          reject(error as Error);
        },
      );
      // After what is done already.
      if (this.#ended) queueMicrotask(() => reject(this.#ended!.reason as Error));
      else this.#waiting.add(reject);
    });
  }

  /** Nothing more will come. The first reason counts. */
  end(reason: unknown): void {
    if (this.#ended) return;
    this.#ended = { reason };
    for (const reject of this.#waiting) reject(reason);
    this.#waiting.clear();
  }
}
