/** Tokens a second: lately, and over all the time in which something was written. */
import type { SpeedState } from './protocol.ts';

/** Milliseconds that count as now. */
const NOW = 2000;

export class Speed {
  readonly #recent: number[] = [];
  #tokens = 0;
  /** Of the stretches that are over. */
  #writing = 0;
  /** When the present stretch began. */
  #since: number | undefined;

  /** Something is written from here on, or nothing. */
  setWriting(writing: boolean, at: number): void {
    if (writing) this.#since ??= at;
    else if (this.#since !== undefined) {
      this.#writing += at - this.#since;
      this.#since = undefined;
      this.#recent.length = 0;
    }
  }

  token(at: number): void {
    this.#tokens++;
    this.#recent.push(at);
  }

  state(at: number): SpeedState {
    while (this.#recent.length > 0 && this.#recent[0]! < at - NOW) this.#recent.shift();
    const since = this.#since;
    const lately = since === undefined ? 0 : Math.min(NOW, at - since);
    const all = this.#writing + (since === undefined ? 0 : at - since);
    return {
      now: lately > 0 ? (1000 * this.#recent.length) / lately : undefined,
      mean: all > 0 && this.#tokens > 0 ? (1000 * this.#tokens) / all : undefined,
      tokens: this.#tokens,
    };
  }
}
