/** The model: loading it, how far that is, what it is, and the ways to another one. */
import { factList } from '../site/device-facts.ts';
import { button, byId, el } from '../site/dom.ts';
import { bytes, count } from '../site/format.ts';
import { chosenFiles, droppedFiles, type PathFile } from './dropped-folder.ts';
import { SHIPPED_BYTES } from './model-cache.ts';
import type { LoadStep, ModelFacts, Origin } from './protocol.ts';

export interface ModelActions {
  readonly loadShipped: () => void;
  readonly load: (origin: Origin) => void;
  readonly abort: () => void;
}

const PHASES: Readonly<Record<LoadStep['phase'], string>> = { fetching: 'Fetching the model', placing: 'Placing the weights on the device' };

export class ModelView {
  readonly #load = byId<HTMLButtonElement>('load-model');
  readonly #abort = byId<HTMLButtonElement>('abort-load');
  readonly #status = byId('status');
  readonly #bar = byId<HTMLProgressElement>('progress');
  readonly #facts = byId('model-facts');
  readonly #card = byId('model');
  readonly #folder = byId<HTMLInputElement>('folder');
  readonly #hub = byId<HTMLInputElement>('hub');
  readonly #loadHub = byId<HTMLButtonElement>('load-hub');
  readonly #actions: ModelActions;
  #ready = false;

  constructor(actions: ModelActions) {
    this.#actions = actions;
    this.#load.addEventListener('click', actions.loadShipped);
    this.#abort.addEventListener('click', actions.abort);
    this.#folder.addEventListener('change', () => {
      const files = chosenFiles(this.#folder.files!);
      this.#folder.value = '';
      this.#take(files);
    });
    byId<HTMLFormElement>('hub-form').addEventListener('submit', (event) => {
      event.preventDefault();
      if (this.#ready) actions.load({ kind: 'hub', name: this.#hub.value.trim() });
    });
    this.#acceptDrops();
  }

  /** Nothing is loaded; `kept`: the shipped model is in this browser. Without one, none is offered. */
  offer(kept: boolean): void {
    this.idle(SHIPPED_BYTES === 0 ? 'This copy of the site has no model of its own. Choose a folder, or name one on the hub.'
      : kept ? 'The model is kept in this browser: loading it needs no network.' : 'It is fetched once, and kept in this browser.');
    this.#load.hidden = SHIPPED_BYTES === 0;
    this.#load.textContent = `Load the model (${bytes(SHIPPED_BYTES)})`;
    this.#facts.replaceChildren(el('p', { class: 'quiet small' }, 'None is loaded.'));
  }

  /** Whether models can be loaded. */
  setReady(ready: boolean): void {
    this.#ready = ready;
    this.#folder.disabled = !ready;
    this.#loadHub.setAttribute('aria-disabled', String(!ready));
    this.#load.setAttribute('aria-disabled', String(!ready));
  }

  /** Loading has begun. */
  begin(): void {
    const focused = document.activeElement === this.#load;
    this.#load.hidden = true;
    this.#abort.hidden = false;
    this.#bar.hidden = false;
    this.#bar.removeAttribute('value');
    this.#status.textContent = 'Looking at the model…';
    this.#status.scrollIntoView({ block: 'nearest' });
    if (focused) this.#abort.focus();
  }

  /** The live region is told once a phase; how far it is, the bar says. */
  progress({ phase, loaded, total }: LoadStep): void {
    this.#bar.value = loaded / total;
    const words = `${PHASES[phase]}, ${bytes(total)}…`;
    if (this.#status.textContent !== words) this.#status.textContent = words;
  }

  /** No loading is under way; `words` say what came of it. */
  idle(words: string): void {
    const focused = document.activeElement === this.#abort;
    this.#abort.hidden = true;
    this.#bar.hidden = true;
    this.#status.textContent = words;
    if (focused) byId('generate').focus();
  }

  show({ name, type, layers, heads, experts, vocabSize, context }: ModelFacts, shipped: boolean): void {
    this.#load.hidden = true;
    this.idle('The model is ready.');
    this.#facts.replaceChildren(factList([
      ['Name', name], ['Architecture', type], ['Layers', `${layers}, ${heads} heads${experts > 0 ? `, ${experts} experts` : ''}`],
      ['Vocabulary', `${count(vocabSize)} tokens`], ['Context', `${count(context)} tokens`],
    ]));
    if (!shipped && SHIPPED_BYTES > 0) this.#facts.append(el('p', { class: 'small' }, button('Back to the model of this site', 'load-shipped', this.#actions.loadShipped, { class: 'link' })));
  }

  #take(files: readonly PathFile[]): void {
    if (this.#ready) this.#actions.load({ kind: 'folder', files });
  }

  /** The whole page takes a folder; its card shows that it would. */
  #acceptDrops(): void {
    const isFiles = (event: DragEvent): boolean => event.dataTransfer?.types.includes('Files') === true;
    document.addEventListener('dragover', (event) => {
      if (!isFiles(event)) return;
      event.preventDefault();
      this.#card.classList.add('receiving');
    });
    document.addEventListener('dragleave', (event) => {
      if (event.relatedTarget === null) this.#card.classList.remove('receiving');
    });
    document.addEventListener('drop', (event) => {
      if (!isFiles(event)) return;
      event.preventDefault();
      this.#card.classList.remove('receiving');
      void droppedFiles(event.dataTransfer!).then((files) => this.#take(files));
    });
  }
}
