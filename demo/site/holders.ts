/** Who holds the blocks of a cache. Pure. */

/** A block table, named as its page names it. */
export interface BlockTable<Id> {
  readonly id: Id;
  readonly blocks: Iterable<number>;
}

export interface Holder<Id> {
  readonly id: Id;
  /** Position in its block table. */
  readonly entry: number;
}

/** By block, in the order of the tables. */
export function holdersOf<Id>(tables: Iterable<BlockTable<Id>>): Map<number, Holder<Id>[]> {
  const holders = new Map<number, Holder<Id>[]>();
  for (const { id, blocks } of tables) {
    let entry = 0;
    for (const block of blocks) {
      const held = holders.get(block);
      if (held) held.push({ id, entry });
      else holders.set(block, [{ id, entry }]);
      entry++;
    }
  }
  return holders;
}
