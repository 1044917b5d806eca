/**
 * Accounting and reuse of a backend's memory blocks, whatever a block is there.
 *
 * Blocks given back are kept by size class, up to a bound, so that a decode loop allocates nothing after its first
 * steps. Reuse needs no waiting where the backend's work is ordered: the new use is enqueued behind the old one.
 */
import type { MemoryStats } from './mla.ts';

export class Pool<Block> {
  readonly #live = new Map<Block, { readonly key: string; readonly size: number }>();
  readonly #free = new Map<string, Block[]>();
  readonly #mostKept: number;
  readonly #drop: (block: Block) => void;
  #bytes = 0;
  #kept = 0;
  #allocated = 0;

  /** @param drop frees a block for good; @param mostKept bytes of blocks that may lie idle */
  constructor(drop: (block: Block) => void, mostKept: number) {
    this.#drop = drop;
    this.#mostKept = mostKept;
  }

  /** A block of at least `bytes`, an idle one of that kind or what `make` makes of the class's size. @throws what `make` throws */
  take(bytes: number, kind: string, make: (size: number) => Block): Block {
    const size = sizeClass(bytes);
    const key = `${kind}/${size}`;
    const idle = this.#free.get(key)?.pop();
    if (idle !== undefined) {
      this.#kept -= size;
      return idle;
    }
    const block = make(size);
    this.#live.set(block, { key, size });
    this.#bytes += size;
    this.#allocated++;
    return block;
  }

  /** Gives a block back for reuse. */
  release(block: Block): void {
    const entry = this.#live.get(block);
    if (entry === undefined) return;
    if (this.#kept + entry.size > this.#mostKept) {
      this.discard(block);
      return;
    }
    const list = this.#free.get(entry.key);
    if (list) list.push(block);
    else this.#free.set(entry.key, [block]);
    this.#kept += entry.size;
  }

  /** Frees a block that is in use. */
  discard(block: Block): void {
    const entry = this.#live.get(block);
    if (entry === undefined) return;
    this.#live.delete(block);
    this.#bytes -= entry.size;
    this.#drop(block);
  }

  /** Frees a block if it lies idle: it must not be handed out again. */
  withdraw(block: Block): void {
    const entry = this.#live.get(block);
    const list = entry && this.#free.get(entry.key);
    const at = list?.indexOf(block) ?? -1;
    if (at < 0) return;
    list!.splice(at, 1);
    this.#kept -= entry!.size;
    this.discard(block);
  }

  /** Frees all idle blocks. */
  trim(): void {
    for (const list of this.#free.values()) for (const block of list.splice(0)) this.discard(block);
    this.#free.clear();
    this.#kept = 0;
  }

  stats(): Pick<MemoryStats, 'bytes' | 'allocations' | 'allocated'> {
    return { bytes: this.#bytes, allocations: this.#live.size, allocated: this.#allocated };
  }

  /** Frees everything, in use or not. */
  destroy(): void {
    for (const block of this.#live.keys()) this.#drop(block);
    this.#live.clear();
    this.#free.clear();
    this.#bytes = this.#kept = 0;
  }
}

/** Multiples of 256 B up to 64 KiB, of 64 KiB above: reuse finds equals without wasting much. */
export function sizeClass(bytes: number): number {
  const step = bytes <= 65536 ? 256 : 65536;
  return Math.max(step, Math.ceil(bytes / step) * step);
}

/** What to ask for where the same thing grows from step to step (a plan, as its block table does): it moves a few times in all. */
export function roomToGrow(bytes: number): number {
  return bytes <= 1 << 20 ? Math.max(4096, 2 ** Math.ceil(Math.log2(bytes))) : bytes;
}
