/**
 * Makes a picture's parts tell about themselves: by pointer, by touch, and by keyboard (one stop for Tab, arrows
 * within). Parts carry their words in aria-label.
 */
export interface ExploreOptions {
  /** Where the words of the part go. */
  readonly readout: HTMLElement;
  /** Called with the part that is looked at, and with undefined when none is. */
  readonly onPoint?: (part: Element | undefined) => void;
}

/**
 * Once a container; its parts, the elements with `data-part`, may come and go: call what it returns after a redraw.
 * The container is no svg: Chromium makes one that listens for focus a Tab stop.
 */
export function explore(container: HTMLElement, { readout, onPoint }: ExploreOptions): () => void {
  const idle = readout.textContent ?? '';
  const parts = (): SVGElement[] => [...container.querySelectorAll<SVGElement>('[data-part]')];
  const partOf = (target: EventTarget | null): SVGElement | null => (target instanceof Element ? target.closest<SVGElement>('[data-part]') : null);
  const point = (part: Element | null): void => {
    readout.textContent = part?.getAttribute('aria-label') ?? idle;
    onPoint?.(part ?? undefined);
  };

  container.addEventListener('pointerover', (event) => point(partOf(event.target)));
  container.addEventListener('pointerleave', () => point(partOf(document.activeElement)));
  container.addEventListener('focusin', (event) => {
    const part = partOf(event.target);
    if (!part) return;
    for (const other of parts()) other.setAttribute('tabindex', other === part ? '0' : '-1');
    point(part);
  });
  container.addEventListener('focusout', () => point(null));
  container.addEventListener('keydown', (event) => {
    const all = parts();
    const at = all.indexOf(partOf(event.target) as SVGElement);
    if (at < 0) return;
    const to = { ArrowRight: at + 1, ArrowLeft: at - 1, ArrowDown: at + 1, ArrowUp: at - 1, Home: 0, End: all.length - 1 }[event.key];
    if (to === undefined) return;
    event.preventDefault();
    all[Math.max(0, Math.min(all.length - 1, to))]!.focus();
  });
  return () => parts()[0]?.setAttribute('tabindex', '0');
}

export function partAttributes(label: string): Record<string, string | number> {
  return { 'data-part': '', role: 'img', 'aria-label': label, tabindex: -1 };
}
