/** The little that this page needs of a DOM library. */
type Child = Node | string | undefined | false;
type Attributes = Readonly<Record<string, string | number | boolean | undefined>>;

/** An element of index.html. @throws Error when the page lacks it */
export function byId<T extends Element = HTMLElement>(id: string): T {
  const found = document.getElementById(id);
  if (!found) throw new Error(`index.html lacks #${id}`);
  return found as unknown as T;
}

export function el<K extends keyof HTMLElementTagNameMap>(tag: K, attributes: Attributes = {}, ...children: Child[]): HTMLElementTagNameMap[K] {
  return dress(document.createElement(tag), attributes, children);
}

export function svg<K extends keyof SVGElementTagNameMap>(tag: K, attributes: Attributes = {}, ...children: Child[]): SVGElementTagNameMap[K] {
  return dress(document.createElementNS('http://www.w3.org/2000/svg', tag), attributes, children);
}

function dress<T extends Element>(element: T, attributes: Attributes, children: Child[]): T {
  for (const [name, value] of Object.entries(attributes)) {
    if (value !== undefined && value !== false) element.setAttribute(name, value === true ? '' : String(value));
  }
  element.append(...children.filter((child) => child !== undefined && child !== false));
  return element;
}

/** A button that does `action`; `key` lets focus find it again after a redraw. */
export function button(text: string, key: string, action: () => void, attributes: Attributes = {}): HTMLButtonElement {
  const made = el('button', { type: 'button', 'data-key': key, ...attributes }, text);
  made.addEventListener('click', () => {
    if (made.getAttribute('aria-disabled') !== 'true') action();
  });
  return made;
}

/** Resolves after the browser has painted, or soon where it does not paint. Long drawings pause here. */
export function painted(): Promise<void> {
  return new Promise((resolve) => {
    const timer = setTimeout(resolve, 100);
    requestAnimationFrame(() => {
      clearTimeout(timer);
      setTimeout(resolve);
    });
  });
}

/** Redraws `within`, and puts the focus back on the element of the same key, or on `fallback`. */
export function keepFocus(within: Element, redraw: () => void, fallback?: HTMLElement): void {
  const active = document.activeElement;
  const held = active instanceof Element && within.contains(active) ? active.getAttribute('data-key') : null;
  redraw();
  if (held === null) return;
  const again = within.querySelector<HTMLElement>(`[data-key="${CSS.escape(held)}"]`) ?? fallback;
  again?.focus();
}
