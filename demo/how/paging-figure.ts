/** The figure of the paged cache: the package's own on the cpu backend, in a worker, changed by buttons. */
import { MlaError } from '../../src/errors.ts';
import type { PagedKvCache, SequenceId } from '../../src/mla.ts';
import { colorStyle, hueOf } from '../site/colors.ts';
import { button, byId, el, keepFocus } from '../site/dom.ts';
import { plural } from '../site/format.ts';
import { holdersOf, type Holder } from '../site/holders.ts';
import { openInstance } from './instance.ts';
import { appendStory, forkStory, freeStory, type SequenceState } from './pool-story.ts';

const NUM_BLOCKS = 24;
const FIRST_LENGTH = 150;
const APPENDS: readonly number[] = [1, 40];

export async function mountPagingFigure(): Promise<void> {
  const mla = await openInstance('cpu');
  const figure = new PagingFigure(await mla.createKvCache({ numBlocks: NUM_BLOCKS }));
  await figure.start();
}

class PagingFigure {
  readonly #cache: PagedKvCache;
  #sequences: SequenceId[] = [];
  #busy = false;
  readonly #new = byId<HTMLButtonElement>('pool-new');

  constructor(cache: PagedKvCache) {
    this.#cache = cache;
    this.#new.addEventListener('click', () => void this.#act(() => {
      const id = this.#cache.createSequence();
      this.#sequences.push(id);
      return `Sequence ${id} is empty: it holds no block.`;
    }));
  }

  start(): Promise<void> {
    return this.#act(async () => {
      const id = this.#cache.createSequence();
      this.#sequences.push(id);
      const story = await this.#append(id, FIRST_LENGTH);
      this.#new.setAttribute('aria-disabled', 'false');
      return story;
    });
  }

  /** One change at a time; a refusal is told. */
  async #act(change: () => string | Promise<string>): Promise<void> {
    if (this.#busy) return;
    this.#busy = true;
    let story: string;
    try {
      story = await change();
    } catch (error) {
      const refusal = error as Error;
      story = refusal instanceof MlaError ? `Refused (${refusal.code}), and nothing changed. ${refusal.message}` : refusal.message;
    }
    this.#busy = false;
    this.#draw(story);
  }

  async #append(id: SequenceId, count: number): Promise<string> {
    const before = this.#state(id);
    const latent = { data: new Float32Array(count * this.#cache.headDim), shape: [count, 1, this.#cache.headDim] };
    await this.#cache.append({ sequences: [id], counts: [count], latent });
    return appendStory(before, this.#state(id));
  }

  #fork(id: SequenceId): string {
    const child = this.#cache.fork(id);
    this.#sequences.push(child);
    return forkStory(this.#state(id), child);
  }

  #free(id: SequenceId): string {
    const state = this.#state(id);
    this.#cache.free(id);
    this.#sequences = this.#sequences.filter((other) => other !== id);
    return freeStory(state, new Set(this.#holders().keys()));
  }

  #state(id: SequenceId): SequenceState {
    return { id, length: this.#cache.length(id), blocks: [...this.#cache.blocks(id)] };
  }

  #holders(): Map<number, Holder<SequenceId>[]> {
    return holdersOf(this.#sequences.map((id) => ({ id, blocks: this.#cache.blocks(id) })));
  }

  /** Slots of a sequence's block that are used. */
  #used({ id, entry }: Holder<SequenceId>): number {
    return Math.min(this.#cache.blockSize, this.#cache.length(id) - entry * this.#cache.blockSize);
  }

  #draw(story: string): void {
    const holders = this.#holders();
    byId('pool').replaceChildren(...Array.from({ length: this.#cache.numBlocks }, (_, block) => this.#cell(block, holders.get(block))));
    const { usedBlocks, numBlocks, sharedBlocks, tokens } = this.#cache.stats();
    byId('pool-stats').textContent = `${usedBlocks} of ${plural(numBlocks, 'block')} in use, ${sharedBlocks} shared. ${plural(this.#sequences.length, 'sequence')} of ${plural(tokens, 'token')} in all.`;
    keepFocus(byId('pool-sequences'), () => {
      byId('pool-sequences').replaceChildren(...this.#sequences.map((id) => this.#row(id, holders)));
    }, this.#new);
    byId('pool-story').textContent = story;
  }

  #cell(block: number, held: readonly Holder<SequenceId>[] | undefined): HTMLElement {
    if (!held) return el('div', { class: 'cell' }, el('b', {}, String(block)));
    const [owner, other] = held.map(({ id }) => id) as [SequenceId, SequenceId | undefined];
    const used = Math.max(...held.map((holder) => this.#used(holder)));
    const full = `--full: ${(100 * used) / this.#cache.blockSize}%`;
    const style = `${colorStyle(owner)}; ${full}${other === undefined ? '' : `; --hue2: ${hueOf(other)}`}`;
    return el('div', { class: `cell held${other === undefined ? '' : ' shared'}${used === this.#cache.blockSize ? ' full' : ''}`, style },
      el('b', {}, String(block)), el('span', {}, `${used}`), other !== undefined && el('span', { class: 'holders' }, `×${held.length}`));
  }

  #row(id: SequenceId, holders: ReadonlyMap<number, readonly Holder<SequenceId>[]>): HTMLElement {
    const { length, blocks } = this.#state(id);
    const act = (name: string, key: string, words: string, change: () => string | Promise<string>): HTMLElement =>
      button(name, `${key}-${id}`, () => void this.#act(change), { 'aria-label': words });
    return el('li', { style: colorStyle(id) },
      el('p', {}, el('i', { class: 'key key-own', 'aria-hidden': 'true' }), el('strong', {}, `Sequence ${id}`), el('span', { class: 'quiet' }, ` ${plural(length, 'token')}`)),
      el('p', { class: 'chips', 'data-sequence': id }, el('span', { class: 'quiet small' }, blocks.length === 0 ? 'no blocks' : 'blocks'),
        ...blocks.map((block) => {
          const other = holders.get(block)!.find((holder) => holder.id !== id)?.id;
          return el('span', { class: `chip${other === undefined ? '' : ' shared'}`, style: other === undefined ? undefined : `--hue2: ${hueOf(other)}`, title: other === undefined ? undefined : `shared with sequence ${other}` }, String(block));
        })),
      el('div', { class: 'actions' },
        ...APPENDS.map((n) => act(`+${n}`, `append-${n}`, `Append ${plural(n, 'token')} to sequence ${id}`, () => this.#append(id, n))),
        act('Fork', 'fork', `Fork sequence ${id}`, () => this.#fork(id)),
        act('Free', 'free', `Free sequence ${id}`, () => this.#free(id))));
  }
}
