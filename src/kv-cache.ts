/**
 * PagedKvCache, host side: sequences, their block tables, and the appends and copies that keep the device's pools
 * in step. Block accounting is in block-pool.ts; kernels are the backend's.
 */
import type { AppendOp, CopyBlocksOp } from './backend.ts';
import { elementBytes } from './backend.ts';
import { BlockPool } from './block-pool.ts';
import { MlaError, describe, shapeText } from './errors.ts';
import type {
  AppendArgs, AppendPlan, DType, HostTensor, KvCacheOptions, KvCacheStats, KvDType, MlaTensor, PagedKvCache, SequenceId, TensorInput,
} from './mla.ts';
import { checkPositiveInteger } from './schedule.ts';
import type { DeviceTensor } from './tensor.ts';
import { checkBlockSize, checkHeadDims, inspect } from './validate.ts';

/** What a cache needs of the instance that made it. */
export interface CacheDevice {
  create(dtype: DType, shape: readonly number[]): DeviceTensor;
  borrow(input: TensorInput, argument: string): { tensor: DeviceTensor; temporary: boolean };
  append(op: AppendOp): void | Promise<void>;
  copyBlocks(op: CopyBlocksOp): void | Promise<void>;
  onDestroy(self: PagedCache): void;
}

interface Sequence {
  length: number;
  blocks: number[];
  /** How often tokens went because an append was refused later than at the call. */
  cuts: number;
}

/** What a plan was made for: it is good while these sequences still hold its tokens. */
interface Reservation {
  readonly id: SequenceId;
  readonly entry: Sequence;
  readonly from: number;
  readonly count: number;
  readonly cuts: number;
}

export class PagedCache implements PagedKvCache {
  readonly numBlocks: number;
  readonly blockSize: number;
  readonly numHeadsK: number;
  readonly headDim: number;
  readonly headDimV: number;
  readonly dtype: KvDType;
  readonly numLayers: number;
  readonly #device: CacheDevice;
  readonly #pool: BlockPool;
  readonly #layers: DeviceTensor[] = [];
  readonly #sequences = new Map<SequenceId, Sequence>();
  readonly #reservations = new WeakMap<AppendPlan, readonly Reservation[]>();
  #nextSequence: SequenceId = 0;
  #destroyed = false;

  /** @throws MlaError invalid-argument, invalid-shape, invalid-dtype, limit-exceeded, out-of-memory */
  constructor(options: KvCacheOptions, device: CacheDevice) {
    if (typeof options !== 'object' || options === null) {
      throw new MlaError('invalid-argument', 'no options', { argument: 'options', expected: 'an object with numBlocks', got: describe(options) });
    }
    const { numBlocks, blockSize = 64, numHeadsK = 1, headDim = 576, headDimV = 512, dtype = 'bf16', numLayers = 1 } = options;
    checkPositiveInteger(numBlocks, 'numBlocks');
    checkPositiveInteger(numHeadsK, 'numHeadsK');
    checkPositiveInteger(headDim, 'headDim');
    checkPositiveInteger(numLayers, 'numLayers');
    checkBlockSize(blockSize, 'blockSize');
    checkHeadDims(headDim, headDimV, 'headDimV');
    if (dtype !== 'bf16' && dtype !== 'f16') {
      throw new MlaError('invalid-dtype', 'not a 16-bit type', { argument: 'dtype', expected: 'bf16 or f16', got: describe(dtype) });
    }
    if (numBlocks * blockSize > 0x7fffffff) {
      throw new MlaError('limit-exceeded', 'slots are i32', { argument: 'numBlocks', expected: `at most ${Math.floor(0x7fffffff / blockSize)}`, got: String(numBlocks) });
    }
    this.numBlocks = numBlocks;
    this.blockSize = blockSize;
    this.numHeadsK = numHeadsK;
    this.headDim = headDim;
    this.headDimV = headDimV;
    this.dtype = dtype;
    this.numLayers = numLayers;
    this.#device = device;
    this.#pool = new BlockPool(numBlocks);
    try {
      for (let i = 0; i < numLayers; i++) this.#layers.push(device.create(dtype, [numBlocks, blockSize, numHeadsK, headDim]));
    } catch (error) {
      for (const layer of this.#layers) layer.discard();
      throw error;
    }
  }

  /** Settles when the device has granted the pools' memory. @throws MlaError out-of-memory, device-lost */
  async ready(): Promise<void> {
    await Promise.all(this.#layers.map((layer) => layer.ready));
  }

  tensor(layer = 0): MlaTensor {
    return this.#layer(layer);
  }

  createSequence(): SequenceId {
    this.#checkAlive();
    this.#sequences.set(this.#nextSequence, { length: 0, blocks: [], cuts: 0 });
    return this.#nextSequence++;
  }

  fork(sequence: SequenceId): SequenceId {
    const { length, blocks } = this.#sequence(sequence, 'sequence');
    for (const block of blocks) this.#pool.retain(block);
    this.#sequences.set(this.#nextSequence, { length, blocks: [...blocks], cuts: 0 });
    return this.#nextSequence++;
  }

  free(...sequences: SequenceId[]): void {
    this.#checkAlive();
    this.#distinct(sequences);
    for (const id of sequences) {
      for (const block of this.#sequences.get(id)!.blocks) this.#pool.release(block);
      this.#sequences.delete(id);
    }
  }

  truncate(sequence: SequenceId, length: number): void {
    const entry = this.#sequence(sequence, 'sequence');
    if (!Number.isSafeInteger(length) || length < 0 || length > entry.length) {
      throw new MlaError('out-of-range', 'not a shorter length', { argument: 'length', expected: `0 .. ${entry.length}`, got: describe(length) });
    }
    const keep = Math.ceil(length / this.blockSize);
    for (const block of entry.blocks.splice(keep)) this.#pool.release(block);
    entry.length = length;
  }

  length(sequence: SequenceId): number {
    return this.#sequence(sequence, 'sequence').length;
  }

  blocks(sequence: SequenceId): Int32Array {
    return Int32Array.from(this.#sequence(sequence, 'sequence').blocks);
  }

  async reserve(args: AppendArgs): Promise<AppendPlan> {
    const { plan, copied } = this.#reserve(args);
    await this.#settled(plan, copied);
    return plan;
  }

  /** @throws MlaError unless there is one count >= 0 a sequence */
  #checkedCounts({ sequences, counts }: AppendArgs): Sequence[] {
    this.#checkAlive();
    const entries = this.#distinct(sequences);
    if (!Array.isArray(counts) || counts.length !== sequences.length) {
      throw new MlaError('invalid-shape', 'one count a sequence', { argument: 'counts', expected: `${sequences.length} numbers`, got: describe(counts) });
    }
    counts.forEach((count, i) => {
      if (!Number.isSafeInteger(count) || count < 0) {
        throw new MlaError('invalid-argument', 'not a count', { argument: `counts[${i}]`, expected: 'an integer >= 0', got: describe(count) });
      }
    });

    return entries;
  }

  /** Blocks that the tokens need, and which sequences must copy their last block: others hold it and it will be written to. */
  #demand(entries: readonly Sequence[], counts: readonly number[]): { blocks: number; copies: boolean[] } {
    const released = new Map<number, number>(); // holds on a block that copies before this one give up
    let blocks = 0;
    const copies = entries.map(({ length, blocks: held }, i) => {
      blocks += Math.ceil((length + counts[i]!) / this.blockSize) - held.length;
      const tail = held[held.length - 1];
      if (counts[i] === 0 || length % this.blockSize === 0 || tail === undefined) return false;
      const given = released.get(tail) ?? 0;
      if (this.#pool.references(tail) - given < 2) return false;
      released.set(tail, given + 1);
      blocks++;
      return true;
    });
    return { blocks, copies };
  }

  /**
   * The part of `reserve` that must happen at the call, so that calls take effect in call order. `then` runs once blocks
   * are taken and copied; when it throws, or the device refuses the copies, everything is as before.
   */
  #reserve(args: AppendArgs, then?: (plan: AppendPlan) => void): { plan: AppendPlan; copied: Promise<unknown> } {
    const entries = this.#checkedCounts(args);
    const { sequences, counts } = args;

    // Counted first, so that a refusal changes nothing.
    const { blocks: needed, copies } = this.#demand(entries, counts);
    this.#pool.checkRoom(needed);

    const before = entries.map(({ length, blocks }) => ({ length, blocks: [...blocks] }));
    const tokens = counts.reduce((n, c) => n + c, 0);
    const slots = new Int32Array(tokens);
    const pairs: number[] = [];
    let next = 0;
    entries.forEach((entry, i) => {
      if (copies[i]) {
        const last = entry.blocks.length - 1;
        const from = entry.blocks[last]!;
        const to = this.#pool.take();
        this.#pool.release(from);
        entry.blocks[last] = to;
        pairs.push(from, to);
      }
      for (let k = 0; k < counts[i]!; k++) {
        const at = entry.length + k;
        if (at % this.blockSize === 0) entry.blocks.push(this.#pool.take());
        slots[next++] = entry.blocks[Math.floor(at / this.blockSize)]! * this.blockSize + (at % this.blockSize);
      }
      entry.length += counts[i]!;
    });
    const plan: AppendPlan = { slots, tokens };
    this.#reservations.set(plan, entries.map((entry, i) => ({ id: sequences[i]!, entry, from: before[i]!.length, count: counts[i]!, cuts: entry.cuts })));
    try {
      const blockElements = this.blockSize * this.numHeadsK * this.headDim;
      const copied = pairs.length === 0 ? [] : this.#layers.map((layer) => this.#device.copyBlocks({ kvCache: layer.id, pairs: Int32Array.from(pairs), blockElements }));
      then?.(plan);
      const asked = copied.some((answer) => answer !== undefined);
      return { plan, copied: asked ? this.#copied(Promise.all(copied), sequences.filter((_, i) => copies[i]), pairs) : Promise.resolve() };
    } catch (error) {
      entries.forEach((entry, i) => this.#restore(entry, before[i]!));
      throw error;
    }
  }

  /** Copies of last blocks that may be refused later than at the call: until it is known they are held, and what is refused is as before. */
  async #copied(answer: Promise<unknown>, ids: readonly SequenceId[], pairs: readonly number[]): Promise<void> {
    const copies = ids.map((id, i) => ({ id, from: pairs[2 * i]!, to: pairs[2 * i + 1]! }));
    for (const { from } of copies) this.#pool.retain(from);
    try {
      await answer;
    } catch (error) {
      for (const { id, from, to } of copies) {
        const blocks = this.#sequences.get(id)?.blocks;
        const at = blocks?.indexOf(to) ?? -1;
        if (at < 0) continue;
        blocks![at] = from;
        this.#pool.retain(from);
        this.#pool.release(to);
      }
      throw error;
    } finally {
      for (const { from } of copies) this.#pool.release(from);
    }
  }

  /** Takes a sequence back to what it was before a reservation. */
  #restore(entry: Sequence, before: Pick<Sequence, 'length' | 'blocks'>): void {
    for (const block of before.blocks) this.#pool.retain(block);
    for (const block of entry.blocks) this.#pool.release(block);
    entry.length = before.length;
    entry.blocks = before.blocks;
  }

  async write(plan: AppendPlan, { latent, rope, layer = 0 }: { latent: TensorInput; rope?: TensorInput; layer?: number }): Promise<void> {
    const pool = this.#layer(layer);
    this.#checkPlan(plan);
    if (plan.tokens === 0) return;
    await this.#borrowed(latent, rope, plan.tokens, (rows, rotary, granted) => Promise.all([granted, this.#write(plan, pool, rows, rotary)]));
  }

  async append({ sequences, counts, latent, rope }: AppendArgs & { latent: TensorInput; rope?: TensorInput }): Promise<void> {
    this.#checkAlive();
    if (this.numLayers !== 1) {
      throw new MlaError('invalid-argument', 'append is for caches of one layer', { argument: 'numLayers', expected: '1', got: String(this.numLayers), fix: 'Call reserve once, then write for every layer' });
    }
    const entries = this.#checkedCounts({ sequences, counts });
    this.#pool.checkRoom(this.#demand(entries, counts).blocks);
    const tokens = counts.reduce((n, c) => n + c, 0);
    if (tokens === 0) return;
    // Everything that can be refused comes before blocks are taken, or takes them back.
    await this.#borrowed(latent, rope, tokens, (rows, rotary, granted) => {
      let written: void | Promise<void> = undefined;
      const { plan, copied } = this.#reserve({ sequences, counts }, (made) => {
        written = this.#write(made, this.#layers[0]!, rows, rotary);
      });
      return this.#settled(plan, Promise.all([granted, copied, written]));
    });
  }

  /** Once all of a reservation is done, or refused: then it goes. @throws MlaError as `done` rejects, or when its tokens went with those of another */
  async #settled(plan: AppendPlan, done: Promise<unknown>): Promise<void> {
    try {
      await done;
    } catch (error) {
      this.#takeBack(plan);
      throw error;
    }
    this.#checkKept(plan);
  }

  /** What was refused later than at the call: the plan's tokens go, and with them those that came behind. */
  #takeBack(plan: AppendPlan): void {
    for (const { id, entry, from, count } of this.#reservations.get(plan)!) {
      if (this.#sequences.get(id) !== entry || entry.length < from + count) continue;
      this.truncate(id, from);
      entry.cuts++;
    }
  }

  /** @throws MlaError unless no tokens of the plan went with others that were refused */
  #checkKept(plan: AppendPlan): void {
    for (const { id, entry, cuts } of this.#reservations.get(plan)!) {
      if (entry.cuts === cuts) continue;
      throw new MlaError('out-of-range', `an append before this one was refused, and with it went what came behind in sequence ${id}`, { argument: 'sequences', fix: 'Append again' });
    }
  }

  #write({ slots, tokens }: AppendPlan, pool: DeviceTensor, rows: DeviceTensor, rotary: DeviceTensor | undefined): void | Promise<void> {
    return this.#device.append({
      kvCache: pool.id, latent: rows.id, rope: rotary?.id, slots, tokens, dtype: this.dtype,
      hKv: this.numHeadsK, dQk: this.headDim, dV: this.headDimV, blockSize: this.blockSize,
    });
  }

  /** Runs `use` on the rows as device tensors, and gives back those that were made for it. A device may refuse them later than at the call: `granted` tells. */
  async #borrowed(latent: TensorInput, rope: TensorInput | undefined, tokens: number, use: (rows: DeviceTensor, rotary: DeviceTensor | undefined, granted: Promise<unknown>) => Promise<unknown>): Promise<void> {
    const [latentRows, ropeRows] = this.#checkedRows(latent, rope, tokens);
    const held: { tensor: DeviceTensor; temporary: boolean }[] = [];
    const borrow = (input: TensorInput, name: string): DeviceTensor => {
      const one = this.#device.borrow(input, name);
      held.push(one);
      return one.tensor;
    };
    try {
      const rows = borrow(latentRows, 'latent');
      const rotary = ropeRows === undefined ? undefined : borrow(ropeRows, 'rope');
      const granted = Promise.all(held.map(({ tensor, temporary }) => (temporary ? tensor.ready : undefined)));
      granted.catch(() => undefined); // `use` may throw before it waits
      await use(rows, rotary, granted);
    } finally {
      for (const { tensor, temporary } of held) if (temporary) tensor.destroy();
    }
  }

  blockTable(sequences: readonly SequenceId[]): HostTensor & { readonly data: Int32Array } {
    const entries = sequences.map((id, i) => this.#sequence(id, `sequences[${i}]`));
    const width = Math.max(1, ...entries.map((entry) => entry.blocks.length));
    const data = new Int32Array(entries.length * width);
    entries.forEach((entry, i) => data.set(entry.blocks, i * width));
    return { data, shape: [entries.length, width], dtype: 'i32' };
  }

  cacheSeqlens(sequences: readonly SequenceId[]): Int32Array {
    return Int32Array.from(sequences, (id, i) => this.#sequence(id, `sequences[${i}]`).length);
  }

  stats(): KvCacheStats {
    this.#checkAlive();
    const blockBytes = this.blockSize * this.numHeadsK * this.headDim * elementBytes(this.dtype) * this.numLayers;
    const usedBlocks = this.numBlocks - this.#pool.free;
    let tokens = 0;
    for (const { length } of this.#sequences.values()) tokens += length;
    return {
      numBlocks: this.numBlocks, freeBlocks: this.#pool.free, usedBlocks, sharedBlocks: this.#pool.shared,
      sequences: this.#sequences.size, tokens, bytes: this.numBlocks * blockBytes, usedBytes: usedBlocks * blockBytes,
    };
  }

  destroy(): void {
    if (this.#destroyed) return;
    this.#destroyed = true;
    this.#sequences.clear();
    for (const layer of this.#layers) layer.discard();
    this.#device.onDestroy(this);
  }

  #checkAlive(): void {
    if (this.#destroyed) throw new MlaError('destroyed', 'this cache was destroyed', { argument: 'kvCache' });
  }

  #layer(layer: number): DeviceTensor {
    this.#checkAlive();
    const tensor = this.#layers[layer];
    if (!tensor) throw new MlaError('out-of-range', 'no such layer', { argument: 'layer', expected: `0 .. ${this.numLayers - 1}`, got: describe(layer) });
    return tensor;
  }

  #sequence(id: SequenceId, argument: string): Sequence {
    this.#checkAlive();
    const entry = this.#sequences.get(id);
    if (!entry) throw new MlaError('out-of-range', 'no such sequence', { argument, expected: 'a sequence of this cache, not freed', got: describe(id) });
    return entry;
  }

  #distinct(sequences: readonly SequenceId[]): Sequence[] {
    if (!Array.isArray(sequences)) {
      throw new MlaError('invalid-argument', 'not an array', { argument: 'sequences', expected: 'an array of sequence ids', got: describe(sequences) });
    }
    const entries = sequences.map((id, i) => this.#sequence(id, `sequences[${i}]`));
    if (new Set(sequences).size !== sequences.length) {
      throw new MlaError('invalid-argument', 'a sequence named twice', { argument: 'sequences', expected: 'distinct ids', got: describe(sequences) });
    }
    return entries;
  }

  /** @throws MlaError unless `plan` came from `reserve` and its sequences still hold its tokens, alone */
  #checkPlan(plan: AppendPlan): void {
    const reservations = typeof plan === 'object' && plan !== null ? this.#reservations.get(plan) : undefined;
    if (!reservations) {
      throw new MlaError('invalid-argument', 'not an append plan of this cache', { argument: 'plan', expected: 'the result of reserve', got: describe(plan) });
    }
    let next = 0;
    for (const { id, entry, from, count } of reservations) {
      for (let at = from; at < from + count; at++, next++) {
        const block = entry.blocks[Math.floor(at / this.blockSize)];
        const held = this.#sequences.get(id) === entry && at < entry.length && block !== undefined && this.#pool.references(block) === 1;
        if (!held || plan.slots[next] !== block * this.blockSize + (at % this.blockSize)) {
          throw new MlaError('out-of-range', 'the plan’s tokens are gone', {
            argument: 'plan', expected: `token ${at} of sequence ${id}, held by it alone`, got: 'freed, truncated, forked or copied since', fix: 'Write a plan before its sequences change',
          });
        }
      }
    }
  }

  /** The rows to append, a Float32Array without a dtype taken as the cache's. @throws MlaError invalid-dtype, invalid-shape */
  #checkedRows(latent: TensorInput, rope: TensorInput | undefined, tokens: number): [TensorInput, TensorInput | undefined] {
    const check = (input: TensorInput, argument: string, width: number): TensorInput => {
      const host = input as HostTensor | null | undefined;
      const typed = host?.data instanceof Float32Array && host.dtype === undefined ? { ...host, dtype: this.dtype } : input;
      const { dtype, shape } = inspect(typed, argument);
      if (dtype !== this.dtype) throw new MlaError('invalid-dtype', 'not the cache’s element type', { argument, expected: this.dtype, got: dtype });
      const want = [tokens, this.numHeadsK, width];
      const flat = this.numHeadsK === 1 && shape.length === 2 && shape[0] === tokens && shape[1] === width;
      if (!flat && (shape.length !== 3 || want.some((d, i) => d !== shape[i]))) {
        throw new MlaError('invalid-shape', 'wrong shape', { argument, expected: shapeText(want), got: shapeText(shape) });
      }
      return typed;
    };
    if (rope === undefined) return [check(latent, 'latent', this.headDim), undefined];
    return [check(latent, 'latent', this.headDimV), check(rope, 'rope', this.headDim - this.headDimV)];
  }
}
