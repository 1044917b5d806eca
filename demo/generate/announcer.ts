/** Tells listeners what is written, without flooding them: a whole sentence now and then, the rest stands on the page. */
const PAUSE = 6000;

export class Announcer {
  readonly #region: HTMLElement;
  readonly #now: () => number;
  #pending = '';
  #spoke = -Infinity;

  /** @param region an aria-live region */
  constructor(region: HTMLElement, now: () => number = () => performance.now()) {
    this.#region = region;
    this.#now = now;
  }

  /** Said at once. */
  say(words: string): void {
    this.#region.textContent = words;
    this.#pending = '';
    this.#spoke = this.#now();
  }

  /** More of a text: its first sentence that is whole is said, if it is time for one. */
  written(piece: string): void {
    this.#pending += piece;
    if (this.#now() - this.#spoke < PAUSE) {
      // What was written meanwhile is skipped up to where the last sentence began.
      const ended = this.#pending.search(/[^.!?]*$/);
      this.#pending = this.#pending.slice(ended);
      return;
    }
    const sentence = /^[^.!?]*[.!?]/.exec(this.#pending)?.[0];
    if (sentence !== undefined) this.say(sentence.trim());
  }
}
