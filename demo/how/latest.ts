/** Runs `work` one at a time and only for the newest value: what a slider asks for while work is under way. */
export function latest<T>(work: (value: T) => Promise<void>): (value: T) => void {
  let next: { readonly value: T } | undefined;
  let running = false;
  return (value) => {
    next = { value };
    if (running) return;
    running = true;
    void (async () => {
      while (next) {
        const { value: newest } = next;
        next = undefined;
        await work(newest);
      }
      running = false;
    })();
  };
}
