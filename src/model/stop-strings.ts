/** Ends a text at the first of some strings, and holds back what may yet become one. Pure but for its own memory. */
export class StopStrings {
  readonly #strings: readonly string[];
  #held = '';

  constructor(strings: readonly string[]) {
    this.#strings = strings.filter((s) => s.length > 0);
  }

  /** The text that can be given out now, and whether it ends here. */
  push(text: string): { text: string; stopped: boolean } {
    const all = this.#held + text;
    const found = this.#strings.map((s) => all.indexOf(s)).filter((at) => at >= 0);
    if (found.length > 0) {
      this.#held = '';
      return { text: all.slice(0, Math.min(...found)), stopped: true };
    }
    // The longest end that a stop string begins with.
    let keep = 0;
    for (const s of this.#strings) {
      for (let n = Math.min(s.length - 1, all.length); n > keep; n--) {
        if (s.startsWith(all.slice(all.length - n))) keep = n;
      }
    }
    this.#held = all.slice(all.length - keep);
    return { text: all.slice(0, all.length - keep), stopped: false };
  }

  /** What was held back: the text ends without it having become a stop string. */
  end(): string {
    const held = this.#held;
    this.#held = '';
    return held;
  }
}
