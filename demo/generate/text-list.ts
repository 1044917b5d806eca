/** The texts on the page, the newest first. */
import { byId } from '../site/dom.ts';
import type { Announcer } from './announcer.ts';
import type { Sampling, TextId, TextUpdate } from './protocol.ts';
import { TextCard, type CardActions } from './text-card.ts';

export class TextList {
  readonly #list = byId<HTMLOListElement>('texts');
  readonly #none = byId('no-texts');
  readonly #cards = new Map<TextId, TextCard>();
  readonly #actions: CardActions;
  readonly #announcer: Announcer;
  #lastId = 0;

  constructor(actions: CardActions, announcer: Announcer) {
    this.#actions = actions;
    this.#announcer = announcer;
  }

  /** Those that are being written. */
  get live(): TextId[] {
    return [...this.#cards.values()].filter(({ live }) => live).map(({ id }) => id);
  }

  get(id: TextId): TextCard | undefined {
    return this.#cards.get(id);
  }

  /** @param parent the text that it is a fork of */
  add(prompt: string, sampling: Sampling, parent?: TextId): TextCard {
    const card = new TextCard(++this.#lastId, prompt, parent, sampling, this.#actions);
    this.#cards.set(card.id, card);
    this.#list.prepend(card.element);
    this.#none.hidden = true;
    return card;
  }

  update(update: TextUpdate): void {
    const card = this.#cards.get(update.id);
    if (!card) return;
    const wasLive = card.live;
    card.update(update);
    if (update.delta !== '' && this.live.length <= 1) this.#announcer.written(update.delta);
    if (wasLive && !card.live) this.#announcer.say(`Text ${card.id} ${card.element.dataset['state'] === 'failed' ? 'failed' : 'has stopped'} after ${update.tokens} tokens.`);
  }

  /** Takes a card off the page. @returns what the focus goes to, where the card had it */
  remove(id: TextId): HTMLElement | undefined {
    const card = this.#cards.get(id);
    if (!card) return undefined;
    const { element } = card;
    const next = element.nextElementSibling ?? element.previousElementSibling;
    const focused = element.contains(document.activeElement);
    element.remove();
    this.#cards.delete(id);
    this.#none.hidden = this.#cards.size > 0;
    return focused ? (next?.querySelector<HTMLElement>('[data-key^=end-]') ?? byId('generate')) : undefined;
  }

  /** The cache that held them is gone. */
  allGone(): void {
    for (const card of this.#cards.values()) card.gone();
  }
}
