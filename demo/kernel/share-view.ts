/** What can be taken away from a run: its figures as JSON, and a link that shows them beside a run elsewhere. */
import { byId } from '../site/dom.ts';

export class ShareView {
  readonly #actions = byId('share');
  readonly #link = byId<HTMLButtonElement>('copy-link');
  readonly #said = byId('copied');
  readonly #field = byId('copy-field');
  readonly #text = byId<HTMLTextAreaElement>('copy-text');
  #offer: { readonly json: () => string; readonly link: string | undefined } | undefined;

  constructor() {
    byId('copy-json').addEventListener('click', () => void this.#copy(this.#offer?.json(), 'Figures copied as JSON.'));
    this.#link.addEventListener('click', () => void this.#copy(this.#offer?.link, 'Link copied.'));
  }

  clear(): void {
    this.#offer = undefined;
    this.#actions.hidden = true;
    this.#forget();
  }

  /** @param link undefined where there are no figures to carry */
  offer(json: () => string, link: string | undefined): void {
    this.#offer = { json, link };
    this.#actions.hidden = false;
    this.#link.hidden = link === undefined;
    this.#forget();
  }

  #forget(): void {
    this.#said.textContent = '';
    this.#field.hidden = true;
  }

  /** Where the clipboard is closed to the page, the text is shown, selected. */
  async #copy(text: string | undefined, done: string): Promise<void> {
    if (text === undefined) return;
    this.#forget();
    try {
      await navigator.clipboard.writeText(text);
      this.#said.textContent = done;
    } catch {
      this.#said.textContent = 'The browser keeps its clipboard closed. Copy the text below.';
      this.#text.value = text;
      this.#field.hidden = false;
      this.#text.select();
    }
  }
}
