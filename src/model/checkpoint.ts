/**
 * The tensors of a checkpoint, read when they are asked for, whole or by rows, and converted on the way. Headers are read first, so
 * that a checkpoint that does not fit the model is refused before any weight is.
 *
 * Tensors are read a few MiB at a time: memory holds what is asked for and one such piece.
 */
import { MlaError, shapeText } from '../errors.ts';
import { applyScales, arrayFor, f32ToBf16, isWeightDType, toBf16Bits, toF32, WEIGHT_DTYPES, type BlockScales, type ReadArrays, type ReadAs } from './convert.ts';
import { readEntries, type CheckpointEntry } from './shards.ts';
import { checkAborted, type ModelSource } from './source.ts';
import type { Stack, TensorSpec } from './weights.ts';

export interface LoadProgress {
  /** Of the files, not of memory. */
  readonly loadedBytes: number;
  /** Of the tensors that `expect` was given, else of the whole checkpoint. */
  readonly totalBytes: number;
  /** The one being read. */
  readonly tensor: string;
}

export interface CheckpointOptions {
  /** Stops whatever is under way with an MlaError `aborted`. */
  readonly signal?: AbortSignal | undefined;
  /** Called after each piece. */
  readonly onProgress?: ((progress: LoadProgress) => void) | undefined;
  /** FP8: numbers a scale covers, [rows, columns]; [128, 128] when absent. */
  readonly fp8Block?: readonly [number, number] | undefined;
}

/** Rows `row` and on of a stack: rows `tensorRow` and on of one tensor. */
export interface Piece<A extends ReadAs> {
  readonly row: number;
  readonly tensor: string;
  readonly tensorRow: number;
  readonly rows: number;
  readonly values: ReadArrays[A];
}

export interface PieceOptions {
  /** Rows of the stack: from `from` to `to` (exclusive); all when absent. */
  readonly from?: number;
  readonly to?: number;
  readonly elements?: number;
  readonly signal?: AbortSignal;
}

/** Elements read at a time; a row at least. */
const READ_ELEMENTS = 4 << 20;

export class Checkpoint {
  readonly source: ModelSource;
  readonly tensors: ReadonlyMap<string, CheckpointEntry>;
  readonly #options: CheckpointOptions;
  readonly #block: readonly [number, number];
  #totalBytes: number;
  #loadedBytes = 0;
  /** The last FP8 tensor's, since rows are asked for one range after the other. */
  #scales: { readonly name: string; readonly scales: BlockScales } | undefined;

  private constructor(source: ModelSource, tensors: ReadonlyMap<string, CheckpointEntry>, options: CheckpointOptions) {
    this.source = source;
    this.tensors = tensors;
    this.#options = options;
    this.#block = options.fp8Block ?? [128, 128];
    this.#totalBytes = [...tensors.values()].reduce((sum, { byteLength }) => sum + byteLength, 0);
  }

  /** Reads the headers. @throws MlaError invalid-file, aborted */
  static async open(source: ModelSource, options: CheckpointOptions = {}): Promise<Checkpoint> {
    return new Checkpoint(source, await readEntries(source, options.signal), options);
  }

  has(name: string): boolean {
    return this.tensors.has(name);
  }

  /** Bytes that progress counts up to. */
  get totalBytes(): number {
    return this.#totalBytes;
  }

  /**
   * Checks that these tensors are there, of these shapes and readable; progress counts them from now on.
   * @throws MlaError invalid-file (missing), invalid-shape, invalid-dtype, naming the tensor
   */
  expect(specs: readonly TensorSpec[]): void {
    const missing = specs.filter(({ name }) => !this.tensors.has(name));
    if (missing.length > 0) {
      const more = missing.length > 1 ? ` and ${missing.length - 1} more tensors are` : ' is';
      throw new MlaError('invalid-file', `${quote(missing[0]!.name)}${more} missing`, { argument: this.source.name, fix: 'The checkpoint does not belong to this configuration, or is incomplete' });
    }
    let bytes = 0;
    for (const { name, shape } of specs) {
      const entry = this.#entry(name);
      if (shapeText(entry.shape) !== shapeText(shape)) {
        throw new MlaError('invalid-shape', `has the wrong shape in ${entry.file}`, { argument: name, expected: shapeText(shape), got: shapeText(entry.shape) });
      }
      bytes += entry.byteLength + (entry.dtype === 'F8_E4M3' ? this.#scaleEntry(entry).byteLength : 0);
    }
    this.#totalBytes = bytes;
    this.#loadedBytes = 0;
  }

  /** Rows of a tensor: the last dimension is a row, all others count them. */
  rowCount(name: string): number {
    return this.#entry(name).shape.slice(0, -1).reduce((rows, n) => rows * n, 1);
  }

  /** A whole tensor. FP8 is multiplied by its blocks' scales. @throws MlaError invalid-file, invalid-dtype, aborted */
  readTensor<A extends ReadAs>(name: string, as: A, signal?: AbortSignal): Promise<ReadArrays[A]> {
    return this.rows(name, 0, this.rowCount(name), as, signal);
  }

  /** Rows `from` to `to` (exclusive). @throws MlaError out-of-range, invalid-file, invalid-dtype, aborted */
  async rows<A extends ReadAs>(name: string, from: number, to: number, as: A, signal?: AbortSignal): Promise<ReadArrays[A]> {
    const entry = this.#entry(name);
    const count = this.rowCount(name);
    if (!(from >= 0 && from <= to && to <= count)) {
      throw new MlaError('out-of-range', `has no such rows`, { argument: name, expected: `rows within 0 .. ${count}`, got: `${from} .. ${to}` });
    }
    const columns = entry.shape.at(-1) ?? 1;
    const step = Math.max(1, Math.floor(READ_ELEMENTS / Math.max(1, columns)));
    // One piece needs no array to be put together in.
    if (to - from <= step) return this.#readRows(entry, from, to, as, signal);
    const all = arrayFor(as, (to - from) * columns);
    for (let row = from; row < to; row += step) {
      all.set(await this.#readRows(entry, row, Math.min(row + step, to), as, signal), (row - from) * columns);
    }
    return all;
  }

  /** Rows of a stack, in order, at most `elements` numbers (a row at least) at a time. @throws as `rows` */
  async *pieces<A extends ReadAs>({ parts }: Stack, as: A, { from = 0, to = Infinity, elements = READ_ELEMENTS, signal }: PieceOptions = {}): AsyncGenerator<Piece<A>, void, void> {
    // Of the tensor at hand, in the stack.
    let first = 0;
    for (const { name, shape } of parts) {
      const count = this.rowCount(name);
      const step = Math.max(1, Math.floor(elements / Math.max(1, shape.at(-1) ?? 1)));
      const end = Math.min(count, to - first);
      for (let tensorRow = Math.max(0, from - first); tensorRow < end; tensorRow += step) {
        const rows = Math.min(step, end - tensorRow);
        yield { row: first + tensorRow, tensor: name, tensorRow, rows, values: await this.rows(name, tensorRow, tensorRow + rows, as, signal) };
      }
      first += count;
    }
  }

  async #readRows<A extends ReadAs>(entry: CheckpointEntry, from: number, to: number, as: A, signal?: AbortSignal): Promise<ReadArrays[A]> {
    const { name, dtype } = entry;
    if (!isWeightDType(dtype)) throw this.#unreadable(entry);
    const scales = dtype === 'F8_E4M3' ? await this.#scalesOf(entry, signal) : undefined;
    const rowBytes = entry.byteLength / Math.max(1, this.rowCount(name));
    const bytes = await this.#read(entry, from * rowBytes, (to - from) * rowBytes, signal);
    this.#progress(name, bytes.length);
    if (scales === undefined) return (as === 'bf16' ? toBf16Bits(dtype, bytes) : toF32(dtype, bytes)) as ReadArrays[A];
    const values = toF32(dtype, bytes);
    applyScales(values, from, scales);
    return (as === 'bf16' ? f32ToBf16(values) : values) as ReadArrays[A];
  }

  async #scalesOf(entry: CheckpointEntry, signal?: AbortSignal): Promise<BlockScales> {
    if (this.#scales?.name === entry.name) return this.#scales.scales;
    const stored = this.#scaleEntry(entry);
    if (!isWeightDType(stored.dtype)) throw this.#unreadable(stored);
    const bytes = await this.#read(stored, 0, stored.byteLength, signal);
    const [matrixRows, columns] = entry.shape.slice(-2) as [number, number];
    const scales: BlockScales = { values: toF32(stored.dtype, bytes), matrixRows, columns, block: this.#block };
    this.#scales = { name: entry.name, scales };
    this.#progress(stored.name, bytes.length);
    return scales;
  }

  async #read({ name, file, offset }: CheckpointEntry, from: number, length: number, given: AbortSignal | undefined): Promise<Uint8Array<ArrayBuffer>> {
    const { signal: always } = this.#options;
    const signal = given && always ? AbortSignal.any([given, always]) : given ?? always;
    checkAborted(signal, name);
    const bytes = await this.source.read(file, { offset: offset + from, length, signal });
    // A source may not have noticed.
    checkAborted(signal, name);
    return bytes;
  }

  #progress(tensor: string, bytes: number): void {
    this.#loadedBytes += bytes;
    this.#options.onProgress?.({ loadedBytes: Math.min(this.#loadedBytes, this.#totalBytes), totalBytes: this.#totalBytes, tensor });
  }

  #entry(name: string): CheckpointEntry {
    const entry = this.tensors.get(name);
    if (entry === undefined) throw new MlaError('invalid-file', `${quote(name)} is missing`, { argument: this.source.name });
    if (!isWeightDType(entry.dtype)) throw this.#unreadable(entry);
    return entry;
  }

  /** The scales of an FP8 tensor: a block each, of the last two dimensions. */
  #scaleEntry({ name, shape, file }: CheckpointEntry): CheckpointEntry {
    const scales = this.tensors.get(`${name}_scale_inv`);
    const [n, k] = shape.slice(-2);
    if (scales === undefined || n === undefined || k === undefined) {
      throw new MlaError('invalid-file', `is FP8 in ${file} and has no scales`, { argument: name, expected: `a matrix and a tensor ${quote(`${name}_scale_inv`)}` });
    }
    const expected = shapeText([...shape.slice(0, -2), Math.ceil(n / this.#block[0]), Math.ceil(k / this.#block[1])]);
    if (shapeText(scales.shape) !== expected) {
      throw new MlaError('invalid-shape', `has the wrong shape in ${scales.file}`, { argument: scales.name, expected, got: shapeText(scales.shape) });
    }
    return scales;
  }

  #unreadable({ name, dtype, file }: CheckpointEntry): MlaError {
    return new MlaError('invalid-dtype', `weights of this type are not read (in ${file})`, { argument: name, expected: WEIGHT_DTYPES.join(', '), got: dtype });
  }
}

function quote(name: string): string {
  return JSON.stringify(name);
}
