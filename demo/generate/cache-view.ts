/** The paged cache as it is now: the pool of blocks as a picture, and what it takes beside keys and values of all heads. */
import { byId } from '../site/dom.ts';
import { bytes, count, digits, plural } from '../site/format.ts';
import { holdersOf } from '../site/holders.ts';
import { PoolPicture, type PoolCell } from '../site/pool-picture.ts';
import type { CacheState } from './protocol.ts';

export class CacheView {
  readonly #pool: PoolPicture;
  readonly #picture = byId('cache-picture');
  readonly #stats = byId('cache-stats');
  readonly #latent = byId('latent-bytes');
  readonly #perHead = byId('per-head-bytes');
  readonly #ratio = byId('ratio');
  readonly #readout = byId('cache-readout');
  readonly #idle = this.#readout.textContent;
  readonly #empty = this.#stats.textContent;
  #cells: readonly PoolCell[] = [];
  #pointed: number | undefined;

  constructor() {
    this.#pool = new PoolPicture(byId<HTMLCanvasElement>('pool'), { onPoint: (block) => this.#point(block) });
  }

  show(cache: CacheState): void {
    const { numBlocks, usedBlocks, sharedBlocks, usedBytes, timesPerHead } = cache;
    this.#latent.textContent = bytes(usedBytes);
    this.#perHead.textContent = bytes(usedBytes * timesPerHead);
    this.#ratio.textContent = `of all heads: ${digits(timesPerHead)} times as much`;
    this.#stats.textContent = `${count(usedBlocks)} of ${plural(numBlocks, 'block')} taken, ${count(sharedBlocks)} shared, ${count(numBlocks - usedBlocks)} free`;
    this.#cells = cellsOf(cache);
    this.#picture.hidden = false;
    this.#pool.show(this.#cells);
    this.#point(this.#pointed);
  }

  clear(): void {
    this.#picture.hidden = true;
    this.#cells = [];
    this.#pointed = undefined;
    for (const figure of [this.#latent, this.#perHead]) figure.textContent = '–';
    this.#ratio.textContent = '';
    this.#stats.textContent = this.#empty;
  }

  #point(block: number | undefined): void {
    this.#pointed = block;
    this.#pool.light(block);
    const words = block === undefined ? this.#idle : this.#cells[block]?.label ?? this.#idle;
    // A live region: told again only when it says something else.
    if (this.#readout.textContent !== words) this.#readout.textContent = words;
  }
}

function cellsOf({ numBlocks, blockSize, tables }: CacheState): PoolCell[] {
  const lengths = new Map(tables.map(({ id, length }) => [id, length]));
  const holders = holdersOf(tables);
  return Array.from({ length: numBlocks }, (_, block) => {
    const held = holders.get(block) ?? [];
    const who = held.map(({ id, entry }) => `text ${id}, tokens ${entry * blockSize} to ${Math.min(lengths.get(id)!, (entry + 1) * blockSize) - 1}`).join(' and ');
    return { holders: held.map(({ id }) => id), label: `Block ${block}: ${held.length === 0 ? 'free' : who}` };
  });
}
