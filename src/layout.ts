/**
 * Where sequences lie and are cut: end to end, into even parts. Pure.
 *
 * Parts are filled in turn up to a capacity: a sequence is split only where a part is full. What a part does costs it its blocks and, for each
 * sequence that it works on, an overhead. In the batch's order the capacity is as small as it can be with as many parts as are wanted; then
 * parts are as few as that allows: sequences of one length are cut alike, and there is less to merge. In another order it is no larger.
 */

/** What a part works on: from a block of its first sequence to a block of its last, both by their places in the layout's order. */
export interface Part {
  readonly first: number;
  readonly block: number;
  last: number;
  /** Past its last block, in the last sequence. */
  end: number;
}

/** Sequences end to end, and where they are cut. */
export interface Layout {
  /** The sequence at each place. */
  readonly order: readonly number[];
  readonly parts: readonly Part[];
}

/** What is to be laid out. */
export interface Work {
  /** Blocks of each sequence. */
  readonly units: readonly number[];
  readonly blockSize: number;
  /** Of each sequence in a part, in tokens. */
  readonly overhead: number;
}

/** Lays out with no more than `capacity` a part, in tokens. */
type Filler = (capacity: number) => Layout;

/** Parts that are filled in turn. */
class Filling {
  readonly order: number[] = [];
  readonly parts: Part[] = [];
  /** Tokens that the last part may still take, overheads included. */
  room = 0;
  readonly #work: Work;
  readonly #capacity: number;

  constructor(work: Work, capacity: number) {
    this.#work = work;
    this.#capacity = capacity;
  }

  /** Blocks of a further sequence that the last part has room for. */
  get blocksLeft(): number {
    return Math.max(0, Math.floor((this.room - this.#work.overhead) / this.#work.blockSize));
  }

  /** Whether the last part has nothing yet. */
  get fresh(): boolean {
    return this.room === this.#capacity;
  }

  /** Gives the next place to a sequence, of which parts take as much as they have room for. */
  place(sequence: number): void {
    const { units, blockSize, overhead } = this.#work;
    const at = this.order.push(sequence) - 1;
    for (let block = 0; block < units[sequence]!; ) {
      if (this.blocksLeft === 0) this.turn(at, block);
      const taken = Math.min(units[sequence]! - block, this.blocksLeft);
      this.room -= overhead + taken * blockSize;
      block += taken;
      const part = this.parts[this.parts.length - 1]!;
      part.last = at;
      part.end = block;
    }
  }

  /** On to the next part. */
  turn(first: number, block: number): void {
    this.parts.push({ first, block, last: first, end: block });
    this.room = this.#capacity;
  }
}

/** In the batch's order. */
function inOrder(work: Work): Filler {
  return (capacity) => {
    const filling = new Filling(work, capacity);
    work.units.forEach((_, sequence) => filling.place(sequence));
    return filling;
  };
}

/**
 * The longest sequence that fits whole comes next. If none fits, the longest of all is split, unless what room there is costs no more
 * than another sequence's overhead: then it is left.
 */
function packed(work: Work): Filler {
  const { units, blockSize, overhead } = work;
  const byLength = units.map((_, sequence) => sequence).sort((a, b) => units[b]! - units[a]! || a - b);
  return (capacity) => {
    const filling = new Filling(work, capacity);
    /** The first that has no place yet from each position in `byLength` on, or a position on the way to it. */
    const next = Array.from({ length: units.length + 1 }, (_, i) => i);
    const firstFrom = (i: number): number => {
      let at = i;
      while (next[at]! !== at) at = next[at] = next[next[at]!]!;
      return at;
    };
    while (filling.order.length < units.length) {
      const fits = firstFrom(longestOf(byLength, units, filling.blocksLeft));
      if (fits === units.length && !filling.fresh && filling.blocksLeft * blockSize <= overhead) {
        filling.turn(filling.order.length, 0);
        continue;
      }
      const at = fits < units.length ? fits : firstFrom(0);
      next[at] = at + 1;
      filling.place(byLength[at]!);
    }
    return filling;
  };
}

/** Position of the first of at most `blocks`, longest first. */
function longestOf(byLength: readonly number[], units: readonly number[], blocks: number): number {
  let [low, high] = [0, byLength.length];
  while (low < high) {
    const middle = (low + high) >> 1;
    if (units[byLength[middle]!]! <= blocks) high = middle;
    else low = middle + 1;
  }
  return low;
}

/** The smallest capacity from `low` to `high` with which a binary search finds no more than `most` parts; with `high` there are no more. */
function smallest(fill: Filler, most: number, low: number, high: number): number {
  while (low < high) {
    const middle = Math.floor((low + high) / 2);
    if (fill(middle).parts.length <= most) high = middle;
    else low = middle + 1;
  }
  return high;
}

/** The least that a part may hold where there are to be no more than `most`. */
function leastCapacity({ units, blockSize, overhead }: Work, most: number): number {
  const cost = units.reduce((sum, blocks) => sum + overhead + blocks * blockSize, 0);
  return Math.max(Math.ceil(cost / most), overhead + blockSize);
}

/** The capacity of the smallest parts in the batch's order. */
function capacityInOrder(work: Work, most: number): number {
  const least = leastCapacity(work, most);
  // Enough: cuts add an overhead each, and a part is full when an overhead and a block do not fit.
  return smallest(inOrder(work), most, least, least + 2 * work.overhead + work.blockSize);
}

function pieces({ parts }: Layout): number {
  return parts.reduce((sum, { first, last }) => sum + last - first + 1, 0);
}

/** Sequences in the batch's order, in no more than `most` parts. */
export function layInOrder(work: Work, most: number): Layout {
  return inOrder(work)(capacityInOrder(work, most));
}

/** Likewise, or in an order in which fewer are split, if no part becomes larger for it. */
export function layInAnyOrder(work: Work, most: number): Layout {
  const capacity = capacityInOrder(work, most);
  const plain = inOrder(work)(capacity);
  const fill = packed(work);
  if (plain.parts.length === 1 || fill(capacity).parts.length > most) return plain;
  const other = fill(smallest(fill, most, leastCapacity(work, most), capacity));
  return pieces(other) < pieces(plain) ? other : plain;
}
