/** The cache as a picture: the pool, each block in the colour of its sequence, and every sequence's block table. */
import type { PagedKvCache, SequenceId } from '../../src/mla.ts';
import { colorStyle, hueOf } from '../site/colors.ts';
import { button, byId, el, keepFocus, painted } from '../site/dom.ts';
import { explore, partAttributes } from './explore.ts';
import { bytes, count, plural } from '../site/format.ts';
import { holdersOf, type BlockTable, type Holder } from '../site/holders.ts';
import { PoolPicture, type PoolCell } from '../site/pool-picture.ts';

export interface CacheActions {
  readonly append: () => void;
  readonly decode: () => void;
  readonly fork: (sequence: SequenceId) => void;
  readonly free: (sequence: SequenceId) => void;
}

/** Chips drawn of a block table before "… more", and of all tables together. */
const MOST_CHIPS = 48;
const CHIPS_IN_ALL = 400;

export class CacheView {
  readonly #section = byId('cache');
  readonly #pool: PoolPicture;
  readonly #rows = byId('sequence-rows');
  readonly #stats = byId('cache-stats');
  readonly #picture = byId('cache-picture');
  readonly #append = byId<HTMLButtonElement>('append');
  readonly #decode = byId<HTMLButtonElement>('decode-again');
  readonly #actions: CacheActions;
  readonly #expanded = new Set<SequenceId>();
  readonly #enterRows: () => void;
  #shown: { cache: PagedKvCache; sequences: readonly SequenceId[] } | undefined;
  #cells: readonly PoolCell[] = [];
  #busy = false;

  constructor(actions: CacheActions) {
    this.#actions = actions;
    for (const [made, action] of [[this.#append, actions.append], [this.#decode, actions.decode]] as const) {
      made.addEventListener('click', () => made.getAttribute('aria-disabled') !== 'true' && action());
    }
    const readout = byId('cache-readout');
    const idle = readout.textContent;
    this.#pool = new PoolPicture(byId<HTMLCanvasElement>('pool'), {
      onPoint: (block) => {
        readout.textContent = block === undefined ? idle : this.#cells[block]!.label;
        this.#light(block);
      },
    });
    this.#enterRows = explore(this.#rows, { readout, onPoint: (part) => this.#light(part && Number(part.getAttribute('data-block'))) });
  }

  setBusy(busy: boolean): void {
    this.#busy = busy;
    const idle = this.#shown && this.#shown.sequences.length > 0;
    for (const made of [this.#append, this.#decode]) made.setAttribute('aria-disabled', String(busy || !idle));
    for (const made of this.#rows.querySelectorAll('button:not(.more)')) made.setAttribute('aria-disabled', String(busy));
  }

  clear(): void {
    this.#shown = undefined;
    this.#picture.hidden = true;
    this.#drawPool();
    this.#drawRows();
  }

  async show(cache: PagedKvCache, sequences: readonly SequenceId[]): Promise<void> {
    this.#shown = { cache, sequences: [...sequences] };
    this.#picture.hidden = false;
    this.#drawPool();
    await painted();
    this.#drawRows();
  }

  #drawRows(): void {
    keepFocus(this.#section, () => {
      const { cache, sequences } = this.#shown ?? {};
      const holders = holdersOf(cache ? tablesOf(cache, sequences!) : []);
      this.#rows.replaceChildren(...(cache ? sequences!.map((id) => this.#row(cache, id, holders)) : []));
      this.#enterRows();
      if (cache && sequences!.length === 0) this.#rows.append(el('li', { class: 'quiet' }, 'Every sequence was freed, and every block with them. Run fills the cache anew.'));
      this.#stats.textContent = cache ? describeStats(cache) : 'No cache yet.';
    }, this.#append);
    this.setBusy(this.#busy);
  }

  #row(cache: PagedKvCache, id: SequenceId, holders: ReadonlyMap<number, readonly Holder<SequenceId>[]>): HTMLElement {
    const blocks = [...cache.blocks(id)];
    const most = Math.max(4, Math.min(MOST_CHIPS, Math.floor(CHIPS_IN_ALL / this.#shown!.sequences.length)));
    const drawn = this.#expanded.has(id) ? blocks : blocks.slice(0, most);
    const name = `Sequence ${id}`;
    const more = blocks.length > drawn.length && button(`${count(blocks.length - drawn.length)} more`, `more-${id}`, () => {
      this.#expanded.add(id);
      this.#drawRows();
    }, { class: 'link more', 'aria-label': `Show all ${blocks.length} blocks of sequence ${id}` });
    return el('li', { class: 'sequence', style: colorStyle(id) },
      el('div', { class: 'sequence-head' },
        el('span', { class: 'swatch', 'aria-hidden': 'true' }),
        el('span', { class: 'sequence-name' }, el('strong', {}, name), el('span', { class: 'quiet' }, ` ${plural(cache.length(id), 'token')}, ${plural(blocks.length, 'block')}`)),
        button('Fork', `fork-${id}`, () => this.#actions.fork(id), { 'aria-label': `Fork sequence ${id}` }),
        button('Free', `free-${id}`, () => this.#actions.free(id), { 'aria-label': `Free sequence ${id}` })),
      el('div', { class: 'chips', role: 'group', 'aria-label': `Block table of sequence ${id}` },
        ...drawn.map((block, i) => {
          const others = holders.get(block)!.filter((holder) => holder.id !== id).map((holder) => holder.id);
          const shared = others.length > 0;
          const label = `Entry ${i} of sequence ${id}: block ${block}, ${tokensOf(cache, id, i)}${shared ? `, shared with ${others.map((o) => `sequence ${o}`).join(', ')}` : ''}`;
          return el('span', { class: `chip${shared ? ' shared' : ''}`, 'data-block': block, style: shared ? `--hue2: ${hueOf(others[0]!)}` : undefined, ...partAttributes(label) }, String(block));
        }),
        blocks.length === 0 && el('span', { class: 'quiet small' }, 'no blocks'),
        more));
  }

  #drawPool(): void {
    const { cache, sequences } = this.#shown ?? {};
    const holders = holdersOf(cache ? tablesOf(cache, sequences!) : []);
    this.#cells = Array.from({ length: cache?.numBlocks ?? 0 }, (_, block) => {
      const held = holders.get(block) ?? [];
      const who = held.map(({ id, entry }) => `sequence ${id}, ${tokensOf(cache!, id, entry)}`).join(' and ');
      return { holders: held.map(({ id }) => id), label: `Block ${block}: ${held.length === 0 ? 'free' : held.length === 1 ? who : `shared by ${who}`}` };
    });
    this.#pool.show(this.#cells);
  }

  /** Shows where else a block is. */
  #light(block: number | undefined): void {
    this.#pool.light(block);
    for (const lit of this.#rows.querySelectorAll('.lit')) lit.classList.remove('lit');
    if (block === undefined) return;
    for (const same of this.#rows.querySelectorAll(`[data-block="${block}"]`)) same.classList.add('lit');
  }
}

function tablesOf(cache: PagedKvCache, sequences: readonly SequenceId[]): BlockTable<SequenceId>[] {
  return sequences.map((id) => ({ id, blocks: cache.blocks(id) }));
}

function tokensOf(cache: PagedKvCache, id: SequenceId, entry: number): string {
  const first = entry * cache.blockSize;
  const last = Math.min(cache.length(id), first + cache.blockSize) - 1;
  return first === last ? `token ${first}` : `tokens ${first} to ${last}`;
}

function describeStats(cache: PagedKvCache): string {
  const { numBlocks, usedBlocks, freeBlocks, sharedBlocks, usedBytes, tokens } = cache.stats();
  return `${count(usedBlocks)} of ${plural(numBlocks, 'block')} in use (${bytes(usedBytes)}), ${count(sharedBlocks)} shared, ${count(freeBlocks)} free · ${plural(tokens, 'token')}`;
}
