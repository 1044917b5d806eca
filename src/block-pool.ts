/**
 * Block accounting of a paged cache: a free list and reference counts. Pure, host side.
 *
 * Every block is either on the free list (count 0) or held by `count` sequences.
 */
import { MlaError } from './errors.ts';

export class BlockPool {
  readonly size: number;
  readonly #free: Int32Array;
  #freeCount: number;
  readonly #references: Int32Array;
  #shared = 0;

  constructor(size: number) {
    this.size = size;
    // A stack, lowest id on top, so that a fresh pool hands out 0, 1, 2, ...
    this.#free = Int32Array.from({ length: size }, (_, i) => size - 1 - i);
    this.#freeCount = size;
    this.#references = new Int32Array(size);
  }

  get free(): number {
    return this.#freeCount;
  }

  /** Blocks with more than one holder. */
  get shared(): number {
    return this.#shared;
  }

  references(block: number): number {
    return this.#references[block]!;
  }

  /** @throws MlaError pool-exhausted, with nothing taken */
  checkRoom(blocks: number): void {
    if (blocks > this.#freeCount) {
      throw new MlaError('pool-exhausted', 'too few free blocks', {
        argument: 'kvCache', expected: `${blocks} free blocks`, got: `${this.#freeCount} of ${this.size}`,
        fix: 'Free or truncate sequences, or make the cache with a larger numBlocks',
      });
    }
  }

  /** Takes one block, held once. Call `checkRoom` first. */
  take(): number {
    this.checkRoom(1);
    const block = this.#free[--this.#freeCount]!;
    this.#references[block] = 1;
    return block;
  }

  retain(block: number): void {
    if (++this.#references[block]! === 2) this.#shared++;
  }

  release(block: number): void {
    const left = --this.#references[block]!;
    if (left === 1) this.#shared--;
    if (left === 0) this.#free[this.#freeCount++] = block;
  }
}
