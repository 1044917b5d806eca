/** Token ids of one request as they come: values from the engine's side to an async iterator on its user's. */
import type { SequenceId } from '../mla.ts';

/** Leaving the iterator, or `return` from anywhere, ends the request. */
export class TokenStream implements AsyncIterableIterator<number> {
  /** Where its rows are in the cache, until it is freed. */
  readonly sequence: SequenceId;
  /** The prompt's and those that came. */
  readonly tokens: readonly number[];
  readonly #values: number[] = [];
  readonly #waiting: { resolve: (result: IteratorResult<number>) => void; reject: (error: Error) => void }[] = [];
  readonly #onReturn: (stream: TokenStream) => void;
  #done = false;
  #error: Error | undefined;

  constructor(sequence: SequenceId, tokens: readonly number[], onReturn: (stream: TokenStream) => void) {
    this.sequence = sequence;
    this.tokens = tokens;
    this.#onReturn = onReturn;
  }

  push(value: number): void {
    if (this.#done) return;
    const waiting = this.#waiting.shift();
    if (waiting) waiting.resolve({ value, done: false });
    else this.#values.push(value);
  }

  /** No more values: the end, or an error once those that came are taken. */
  finish(error?: Error): void {
    if (this.#done) return;
    this.#done = true;
    this.#error = error;
    for (const { resolve, reject } of this.#waiting.splice(0)) {
      if (error) reject(error);
      else resolve({ value: undefined, done: true });
      this.#error = undefined;
    }
  }

  next(): Promise<IteratorResult<number>> {
    if (this.#values.length > 0) return Promise.resolve({ value: this.#values.shift()!, done: false });
    if (this.#done) {
      const error = this.#error;
      this.#error = undefined;
      return error ? Promise.reject(error) : Promise.resolve({ value: undefined, done: true });
    }
    return new Promise((resolve, reject) => this.#waiting.push({ resolve, reject }));
  }

  return(): Promise<IteratorResult<number>> {
    this.#values.length = 0;
    this.finish();
    this.#onReturn(this);
    return Promise.resolve({ value: undefined, done: true });
  }

  [Symbol.asyncIterator](): this {
    return this;
  }
}
