/** One text on the page: what it says as it comes, how far it is, and what can be done with it. */
import { MlaError } from '../../src/errors.ts';
import { colorStyle } from '../site/colors.ts';
import { button, el } from '../site/dom.ts';
import { count, plural } from '../site/format.ts';
import type { Begun, Sampling, TextId, TextState, TextUpdate } from './protocol.ts';
import { describeSampling } from './prompt-form.ts';
import { textTrouble } from './trouble.ts';

export interface CardActions {
  readonly stop: (id: TextId) => void;
  readonly fork: (id: TextId) => void;
  readonly end: (id: TextId) => void;
}

const STATES: Readonly<Record<TextState, string>> = {
  reading: 'reading the prompt', writing: 'writing', stopped: 'stopped', done: 'done', full: 'done: the context is full', failed: 'failed',
};

export class TextCard {
  readonly id: TextId;
  readonly prompt: string;
  readonly element: HTMLLIElement;
  readonly #inherited = el('span', { class: 'inherited' });
  readonly #written = document.createTextNode('');
  readonly #state = el('span', { class: 'state' }, STATES.reading);
  readonly #tokens = el('span', { class: 'quiet' });
  readonly #trouble = el('p', { class: 'problem small' });
  readonly #stop: HTMLButtonElement;
  readonly #fork: HTMLButtonElement;
  #inheritedTokens = 0;
  #live = true;
  /** Whether its rows are in the cache. */
  #held = true;

  constructor(id: TextId, prompt: string, parent: TextId | undefined, sampling: Sampling, actions: CardActions) {
    this.id = id;
    this.prompt = prompt;
    const key = (what: string): string => `${what}-${id}`;
    this.#stop = button('Stop', key('stop'), () => actions.stop(id), { 'aria-label': `Stop text ${id}` });
    this.#fork = button('Fork', key('fork'), () => actions.fork(id), { 'aria-label': `Fork text ${id} where it is` });
    const end = button('End', key('end'), () => actions.end(id), { 'aria-label': `End text ${id} and free its blocks` });
    this.element = el('li', { class: 'card text', style: colorStyle(id), 'data-text': id, 'data-state': 'reading' },
      el('div', { class: 'text-head' },
        el('span', { class: 'swatch', 'aria-hidden': 'true' }),
        el('h3', {}, `Text ${id}`, parent !== undefined && el('span', { class: 'quiet' }, `, a fork of text ${parent}`)),
        el('p', { class: 'small progress-words' }, this.#state, ' ', this.#tokens)),
      el('p', { class: 'prose' }, el('span', { class: 'prompt' }, prompt), this.#inherited, this.#written, el('span', { class: 'caret', 'aria-hidden': 'true' })),
      this.#trouble,
      el('div', { class: 'text-foot' },
        el('p', { class: 'quiet small' }, describeSampling(sampling, true)),
        el('div', { class: 'buttons' }, this.#stop, this.#fork, end)));
  }

  get live(): boolean {
    return this.#live;
  }

  begun({ inherited }: Begun): void {
    this.#inherited.textContent = inherited.text;
    this.#inheritedTokens = inherited.tokens;
  }

  update({ delta, tokens, state, error }: TextUpdate): void {
    if (delta !== '') this.#written.appendData(delta);
    const all = this.#inheritedTokens + tokens;
    this.#tokens.textContent = all === 0 ? '' : `· ${plural(all, 'token')}${this.#inheritedTokens > 0 ? `, ${count(this.#inheritedTokens)} of them inherited` : ''}`;
    this.#setState(state);
    if (error && error.code !== 'device-lost') this.#trouble.textContent = textTrouble(MlaError.fromJSON(error)).text;
    if (state === 'failed') this.#leaveCache();
  }

  /** Its rows are gone with the model or the device. */
  gone(): void {
    if (this.#live) this.#setState('stopped');
    this.#leaveCache();
  }

  #setState(state: TextState): void {
    this.#live = state === 'reading' || state === 'writing';
    this.element.dataset['state'] = state;
    this.#state.textContent = STATES[state];
    this.#stop.setAttribute('aria-disabled', String(!this.#live));
  }

  #leaveCache(): void {
    if (!this.#held) return;
    this.#held = false;
    this.element.classList.add('gone');
    this.#fork.setAttribute('aria-disabled', 'true');
    this.#state.textContent += ', no longer in the cache';
  }
}
