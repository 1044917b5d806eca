/**
 * What a PagedKvCache should hold, kept the plain way: every sequence is a list of token rows, a list a layer. Drives
 * a real cache along and says what decode over it must give.
 */
import { decode16, encode16 } from '../src/bf16.ts';
import type { HostTensor, PagedKvCache, SequenceId } from '../src/mla.ts';
import { Random } from './random.ts';
import { referenceDecode, type ReferenceResult } from './reference.ts';

/** [h_kv, d_qk] bits. */
type Row = Uint16Array;

export class LogicalCache {
  readonly cache: PagedKvCache;
  readonly random: Random;
  /** Token rows by sequence, then layer. */
  readonly sequences = new Map<SequenceId, Row[][]>();

  constructor(cache: PagedKvCache, seed = 1) {
    this.cache = cache;
    this.random = new Random(seed);
  }

  get #rowLength(): number {
    return this.cache.numHeadsK * this.cache.headDim;
  }

  create(): SequenceId {
    const id = this.cache.createSequence();
    this.sequences.set(id, Array.from({ length: this.cache.numLayers }, () => []));
    return id;
  }

  fork(parent: SequenceId): SequenceId {
    const id = this.cache.fork(parent);
    this.sequences.set(id, this.sequences.get(parent)!.map((rows) => [...rows]));
    return id;
  }

  free(...ids: SequenceId[]): void {
    this.cache.free(...ids);
    for (const id of ids) this.sequences.delete(id);
  }

  truncate(id: SequenceId, length: number): void {
    this.cache.truncate(id, length);
    for (const rows of this.sequences.get(id)!) rows.length = length;
  }

  /** `counts[i]` random tokens to `ids[i]`, in every layer; latent and RoPE part apart unless `whole`. */
  async append(ids: readonly SequenceId[], counts: readonly number[], whole = false): Promise<void> {
    const tokens = counts.reduce((n, c) => n + c, 0);
    const layers = Array.from({ length: this.cache.numLayers }, () =>
      encode16(this.cache.dtype, this.random.normals(tokens * this.#rowLength, 0.1)),
    );
    if (this.cache.numLayers === 1) {
      await this.cache.append({ sequences: ids, counts, ...this.#data(layers[0]!, tokens, whole) });
    } else {
      const plan = await this.cache.reserve({ sequences: ids, counts });
      for (const [layer, bits] of layers.entries()) await this.cache.write(plan, { ...this.#data(bits, tokens, whole), layer });
    }
    // Only what the cache took is noted.
    layers.forEach((bits, layer) => {
      let next = 0;
      ids.forEach((id, i) => {
        for (let k = 0; k < counts[i]!; k++, next++) {
          this.sequences.get(id)![layer]!.push(bits.subarray(next * this.#rowLength, (next + 1) * this.#rowLength));
        }
      });
    });
  }

  #data(bits: Uint16Array, tokens: number, whole: boolean): { latent: HostTensor; rope?: HostTensor } {
    const { numHeadsK, headDim, headDimV, dtype } = this.cache;
    if (whole) return { latent: { data: bits, shape: [tokens, numHeadsK, headDim], dtype } };
    const columns = (from: number, to: number): HostTensor => {
      const data = new Uint16Array(tokens * numHeadsK * (to - from));
      for (let row = 0; row < tokens * numHeadsK; row++) {
        data.set(bits.subarray(row * headDim + from, row * headDim + to), row * (to - from));
      }
      return { data, shape: [tokens, numHeadsK, to - from], dtype };
    };
    return { latent: columns(0, headDimV), rope: columns(headDimV, headDim) };
  }

  /** [length, h_kv, d_qk] bits of one sequence and layer. */
  rows(id: SequenceId, layer = 0): Uint16Array {
    const rows = this.sequences.get(id)![layer]!;
    const all = new Uint16Array(rows.length * this.#rowLength);
    rows.forEach((row, t) => all.set(row, t * this.#rowLength));
    return all;
  }

  /** The same from the pool's bits, through the cache's own block list. */
  rowsInPool(id: SequenceId, pool: Uint16Array): Uint16Array {
    const { blockSize } = this.cache;
    const length = this.cache.length(id);
    const blocks = this.cache.blocks(id);
    const all = new Uint16Array(length * this.#rowLength);
    for (let t = 0; t < length; t++) {
      const slot = blocks[Math.floor(t / blockSize)]! * blockSize + (t % blockSize);
      all.set(pool.subarray(slot * this.#rowLength, (slot + 1) * this.#rowLength), t * this.#rowLength);
    }
    return all;
  }

  /** The oracle over the logical contents: one block as long as the longest sequence, a sequence each. */
  reference(q: { bits: Uint16Array; sQ: number; hQ: number }, ids: readonly SequenceId[], layer: number, causal: boolean): ReferenceResult {
    const { dtype, numHeadsK, headDim, headDimV } = this.cache;
    const lengths = ids.map((id) => this.sequences.get(id)![layer]!.length);
    const blockSize = Math.max(1, ...lengths);
    const bits = new Uint16Array(ids.length * blockSize * this.#rowLength);
    ids.forEach((id, i) => bits.set(this.rows(id, layer), i * blockSize * this.#rowLength));
    return referenceDecode({
      q: decode16(dtype, q.bits), kvCache: decode16(dtype, bits), blockTable: ids.map((_, i) => i), cacheSeqlens: lengths,
      sQ: q.sQ, hQ: q.hQ, hKv: numHeadsK, dQk: headDim, dV: headDimV, blockSize, causal,
    });
  }
}
