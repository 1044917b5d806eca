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
  readonly blocks: number[];
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
      for (const layer of this.#layers) layer.destroy();
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
    this.#sequences.set(this.#nextSequence, { length: 0, blocks: [] });
    return this.#nextSequence++;
  }

  fork(sequence: SequenceId): SequenceId {
    const { length, blocks } = this.#sequence(sequence, 'sequence');
    for (const block of blocks) this.#pool.retain(block);
    this.#sequences.set(this.#nextSequence, { length, blocks: [...blocks] });
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
    await copied;
    return plan;
  }

  /** The part of `reserve` that must happen at the call, so that calls take effect in call order. */
  #reserve({ sequences, counts }: AppendArgs): { plan: AppendPlan; copied: Promise<unknown> } {
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

    // Two passes, so that a refusal changes nothing. The last block is copied when others hold it and it will be written to.
    const copiesTail = (entry: Sequence, count: number, released: Map<number, number>): boolean => {
      const tail = entry.blocks[entry.blocks.length - 1];
      if (count === 0 || entry.length % this.blockSize === 0 || tail === undefined) return false;
      const holders = this.#pool.references(tail) - (released.get(tail) ?? 0);
      if (holders > 1) released.set(tail, (released.get(tail) ?? 0) + 1);
      return holders > 1;
    };
    const released = new Map<number, number>();
    let needed = 0;
    const copies = entries.map((entry, i) => {
      needed += Math.ceil((entry.length + counts[i]!) / this.blockSize) - entry.blocks.length;
      const copy = copiesTail(entry, counts[i]!, released);
      if (copy) needed++;
      return copy;
    });
    this.#pool.checkRoom(needed);

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
    const blockElements = this.blockSize * this.numHeadsK * this.headDim;
    const copied = pairs.length === 0 ? [] : this.#layers.map((layer) => this.#device.copyBlocks({ kvCache: layer.id, pairs: Int32Array.from(pairs), blockElements }));
    return { plan: { slots, tokens }, copied: Promise.all(copied) };
  }

  async write(plan: AppendPlan, { latent, rope, layer = 0 }: { latent: TensorInput; rope?: TensorInput; layer?: number }): Promise<void> {
    const pool = this.#layer(layer);
    const { slots, tokens } = plan;
    this.#checkSlots(slots, tokens);
    if (tokens === 0) return;
    const [latentRows, ropeRows] = this.#checkedRows(latent, rope, tokens);
    const rows = this.#device.borrow(latentRows, 'latent');
    const rotary = ropeRows === undefined ? undefined : this.#device.borrow(ropeRows, 'rope');
    try {
      await this.#device.append({
        kvCache: pool.id, latent: rows.tensor.id, rope: rotary?.tensor.id, slots, tokens, dtype: this.dtype,
        hKv: this.numHeadsK, dQk: this.headDim, dV: this.headDimV, blockSize: this.blockSize,
      });
    } finally {
      for (const used of [rows, rotary]) if (used?.temporary) used.tensor.destroy();
    }
  }

  async append({ sequences, counts, latent, rope }: AppendArgs & { latent: TensorInput; rope?: TensorInput }): Promise<void> {
    this.#checkAlive();
    if (this.numLayers !== 1) {
      throw new MlaError('invalid-argument', 'append is for caches of one layer', { argument: 'numLayers', expected: '1', got: String(this.numLayers), fix: 'Call reserve once, then write for every layer' });
    }
    // Data is checked against the counts before any block is taken.
    const tokens = Array.isArray(counts) ? counts.reduce((n: number, c) => n + c, 0) : 0;
    if (tokens > 0) this.#checkedRows(latent, rope, tokens);
    const { plan, copied } = this.#reserve({ sequences, counts });
    await Promise.all([copied, this.write(plan, rope === undefined ? { latent } : { latent, rope })]);
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
    for (const layer of this.#layers) layer.destroy();
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

  #checkSlots(slots: unknown, tokens: number): asserts slots is Int32Array {
    if (!(slots instanceof Int32Array) || slots.length !== tokens) {
      throw new MlaError('invalid-argument', 'not an append plan', { argument: 'plan', expected: 'the result of reserve', got: describe(slots) });
    }
    for (let i = 0; i < slots.length; i++) {
      const block = Math.floor(slots[i]! / this.blockSize);
      if (slots[i]! < 0 || block >= this.numBlocks || this.#pool.references(block) !== 1) {
        throw new MlaError('out-of-range', 'slot not reserved for one sequence', {
          argument: `plan.slots[${i}]`, expected: 'a slot of a block that one sequence holds', got: String(slots[i]), fix: 'Write a plan before its sequences are forked or freed',
        });
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
