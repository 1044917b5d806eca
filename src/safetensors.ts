/**
 * The safetensors format, in any environment: 8 bytes of header length (u64, little endian), a JSON header padded
 * with spaces, then the tensors' bytes back to back.
 *
 * Parsing a header touches no tensor data: give `parseSafetensorsHeader` the first bytes of a file (as many as
 * `safetensorsHeaderBytes` says) and the file's size, and read tensors from wherever the file lives by the byte
 * ranges that come back. `readSafetensors` and `writeSafetensors` do both for files that fit in memory.
 *
 * A header is trusted in nothing: every tensor's range must agree with its dtype and shape, and together the ranges
 * must cover the file exactly, with neither overlap nor hole, as the format demands.
 */
import { MlaError } from './errors.ts';

/** Element types of the format and their sizes in bytes. */
export const SAFETENSORS_DTYPE_BYTES: {
  readonly BOOL: 1; readonly U8: 1; readonly I8: 1; readonly F8_E5M2: 1; readonly F8_E4M3: 1;
  readonly I16: 2; readonly U16: 2; readonly F16: 2; readonly BF16: 2;
  readonly I32: 4; readonly U32: 4; readonly F32: 4; readonly F64: 8; readonly I64: 8; readonly U64: 8;
} = {
  BOOL: 1, U8: 1, I8: 1, F8_E5M2: 1, F8_E4M3: 1,
  I16: 2, U16: 2, F16: 2, BF16: 2,
  I32: 4, U32: 4, F32: 4, F64: 8, I64: 8, U64: 8,
};

export type SafetensorsDType = keyof typeof SAFETENSORS_DTYPE_BYTES;

/** Where one tensor lives in a file. */
export interface SafetensorsEntry {
  readonly name: string;
  readonly dtype: SafetensorsDType;
  readonly shape: readonly number[];
  /** Bytes from the start of the file. Not necessarily aligned to the element size. */
  readonly offset: number;
  readonly byteLength: number;
}

export interface SafetensorsHeader {
  /** By name. */
  readonly tensors: ReadonlyMap<string, SafetensorsEntry>;
  /** The `__metadata__` strings; empty when there are none. */
  readonly metadata: ReadonlyMap<string, string>;
  /** Bytes from the start of the file to the first tensor. */
  readonly dataOffset: number;
}

/** A tensor and its bytes, little endian and row-major. */
export interface SafetensorsTensor {
  readonly dtype: SafetensorsDType;
  readonly shape: readonly number[];
  readonly data: Uint8Array;
}

/** Longest header that is read, in bytes: the reference implementation's cap. */
export const SAFETENSORS_MAX_HEADER = 100_000_000;

const LENGTH_BYTES = 8;
const METADATA = '__metadata__';

/**
 * Bytes to read from the start of a file to have its whole header.
 * @param prefix the first 8 bytes of the file, or more
 * @param fileSize bytes of the whole file
 * @param file its name, for errors
 * @throws MlaError invalid-file: truncated, or a header that is too long for the file or the format
 */
export function safetensorsHeaderBytes(prefix: Uint8Array, fileSize: number, file = 'file'): number {
  if (fileSize < LENGTH_BYTES || prefix.length < LENGTH_BYTES) {
    throw invalid(file, 'is too short to be a safetensors file', 'at least 8 bytes', `${Math.min(fileSize, prefix.length)}`);
  }
  const view = new DataView(prefix.buffer, prefix.byteOffset, LENGTH_BYTES);
  const length = view.getBigUint64(0, true);
  if (length > BigInt(SAFETENSORS_MAX_HEADER)) {
    throw invalid(file, 'header length is beyond the limit (not a safetensors file?)', `at most ${SAFETENSORS_MAX_HEADER} bytes`, `${length}`);
  }
  const end = LENGTH_BYTES + Number(length);
  if (end > fileSize) {
    throw invalid(file, 'is truncated: its header does not fit', `at least ${end} bytes`, `${fileSize}`);
  }
  return end;
}

/**
 * Parses and checks a header.
 * @param bytes the start of the file: `safetensorsHeaderBytes` bytes of it, or more
 * @param fileSize bytes of the whole file
 * @param file its name, for errors
 * @throws MlaError invalid-file, naming the tensor at fault
 */
export function parseSafetensorsHeader(bytes: Uint8Array, fileSize: number, file = 'file'): SafetensorsHeader {
  const dataOffset = safetensorsHeaderBytes(bytes, fileSize, file);
  if (bytes.length < dataOffset) {
    throw invalid(file, 'header is incomplete', `${dataOffset} bytes`, `${bytes.length}`);
  }
  const json = parseJson(bytes.subarray(LENGTH_BYTES, dataOffset), file);
  const metadata = new Map<string, string>();
  const entries: SafetensorsEntry[] = [];
  for (const [name, value] of Object.entries(json)) {
    if (name === METADATA) readMetadata(value, metadata, file);
    else entries.push(readEntry(name, value, dataOffset, fileSize, file));
  }
  checkCover(entries, dataOffset, fileSize, file);
  return { tensors: new Map(entries.map((entry) => [entry.name, entry])), metadata, dataOffset };
}

/**
 * All tensors of a file in memory. Their `data` are views of `bytes`, not copies.
 * @throws MlaError invalid-file
 */
export function readSafetensors(bytes: Uint8Array, file = 'file'): { tensors: Map<string, SafetensorsTensor>; metadata: ReadonlyMap<string, string> } {
  const header = parseSafetensorsHeader(bytes, bytes.length, file);
  const tensors = new Map<string, SafetensorsTensor>();
  for (const { name, dtype, shape, offset, byteLength } of header.tensors.values()) {
    // Not subarray: of a Node Buffer that is a Buffer, whose slice() does not copy.
    tensors.set(name, { dtype, shape, data: new Uint8Array(bytes.buffer, bytes.byteOffset + offset, byteLength) });
  }
  return { tensors, metadata: header.metadata };
}

/**
 * Lays out a file: its first bytes (length and header, padded so that data starts at a multiple of 8) and where each
 * tensor's bytes go. Tensors with larger elements come first, so that every tensor is aligned to its element size;
 * `entries` are in file order.
 * @throws MlaError invalid-argument, invalid-dtype, invalid-shape
 */
export function layoutSafetensors(
  tensors: Iterable<readonly [string, { readonly dtype: SafetensorsDType; readonly shape: readonly number[] }]>,
  metadata?: Iterable<readonly [string, string]>,
): { header: Uint8Array<ArrayBuffer>; entries: SafetensorsEntry[]; fileSize: number } {
  const list = [...tensors].map(([name, { dtype, shape }]) => {
    if (name === METADATA) throw new MlaError('invalid-argument', 'is reserved by the format', { argument: METADATA });
    if (!isDType(dtype)) throw new MlaError('invalid-dtype', 'is not a safetensors dtype', { argument: quote(name), got: quote(dtype) });
    const byteLength = bytesOf(shape, dtype);
    if (byteLength === undefined) throw new MlaError('invalid-shape', 'has a bad shape', { argument: quote(name), got: text(shape) });
    return { name, dtype, shape: [...shape], byteLength };
  });
  const names = new Set<string>();
  for (const { name } of list) {
    if (names.has(name)) throw new MlaError('invalid-argument', 'is given twice', { argument: quote(name) });
    names.add(name);
  }
  list.sort((x, y) => SAFETENSORS_DTYPE_BYTES[y.dtype] - SAFETENSORS_DTYPE_BYTES[x.dtype]);

  let end = 0;
  const members: [string, unknown][] = metadata === undefined ? [] : [[METADATA, Object.fromEntries(metadata)]];
  for (const { name, dtype, shape, byteLength } of list) {
    members.push([name, { dtype, shape, data_offsets: [end, end += byteLength] }]);
  }
  const json = new TextEncoder().encode(JSON.stringify(Object.fromEntries(members)));
  const length = Math.ceil(json.length / 8) * 8;
  if (length > SAFETENSORS_MAX_HEADER) {
    throw new MlaError('invalid-argument', 'header would be too long', { argument: 'tensors', expected: `at most ${SAFETENSORS_MAX_HEADER} bytes`, got: `${length}` });
  }
  const header = new Uint8Array(LENGTH_BYTES + length).fill(0x20);
  new DataView(header.buffer).setBigUint64(0, BigInt(length), true);
  header.set(json, LENGTH_BYTES);

  let offset = header.length;
  const entries = list.map((tensor) => {
    const entry = { ...tensor, offset };
    offset += tensor.byteLength;
    return entry;
  });
  return { header, entries, fileSize: offset };
}

/**
 * A whole file in memory.
 * @throws MlaError invalid-argument, invalid-dtype, invalid-shape
 */
export function writeSafetensors(
  tensors: ReadonlyMap<string, SafetensorsTensor>,
  metadata?: Iterable<readonly [string, string]>,
): Uint8Array<ArrayBuffer> {
  const { header, entries, fileSize } = layoutSafetensors(tensors, metadata);
  for (const { name, byteLength } of entries) {
    const got = tensors.get(name)!.data.byteLength;
    if (got !== byteLength) {
      throw new MlaError('invalid-argument', 'data disagrees with shape and dtype', { argument: quote(name), expected: `${byteLength} bytes`, got: `${got}` });
    }
  }
  const file = new Uint8Array(fileSize);
  file.set(header);
  for (const { name, offset } of entries) file.set(tensors.get(name)!.data, offset);
  return file;
}

function parseJson(bytes: Uint8Array, file: string): object {
  let source: string;
  try {
    source = new TextDecoder('utf-8', { fatal: true, ignoreBOM: true }).decode(bytes);
  } catch (cause) {
    throw invalid(file, 'header is not UTF-8', 'JSON', undefined, cause);
  }
  if (!source.startsWith('{')) throw invalid(file, 'header does not start with {', 'a JSON object', quote(source.slice(0, 20)));
  let json: unknown;
  try {
    json = JSON.parse(source);
  } catch (cause) {
    throw invalid(file, 'header is not JSON', undefined, (cause as Error).message, cause);
  }
  const twice = duplicateKey(source);
  if (twice !== undefined) throw invalid(file, 'header has a key twice', 'unique names', quote(twice));
  return json as object;
}

/** The first key that an object in `source`, which is valid JSON, has twice. JSON.parse keeps the last one silently. */
function duplicateKey(source: string): string | undefined {
  const open: Set<string>[] = [];
  let key = '';
  for (let i = 0; i < source.length; i++) {
    const c = source[i];
    if (c === '"') {
      const start = i;
      while (source[++i] !== '"') if (source[i] === '\\') i++;
      // In valid JSON a string is a key exactly when a colon follows it.
      key = source.slice(start, i + 1);
    } else if (c === '{') {
      open.push(new Set());
    } else if (c === '}') {
      open.pop();
    } else if (c === ':') {
      const name = key.includes('\\') ? (JSON.parse(key) as string) : key.slice(1, -1);
      const names = open.at(-1)!;
      if (names.has(name)) return name;
      names.add(name);
    }
  }
  return undefined;
}

function readMetadata(value: unknown, metadata: Map<string, string>, file: string): void {
  if (!isObject(value)) throw invalid(file, `${METADATA} is not an object`, 'an object of strings', text(value));
  for (const [key, item] of Object.entries(value)) {
    if (typeof item !== 'string') throw invalid(file, `${METADATA} ${quote(key)} is not a string`, 'a string', text(item));
    metadata.set(key, item);
  }
}

function readEntry(name: string, value: unknown, dataOffset: number, fileSize: number, file: string): SafetensorsEntry {
  const tensor = `tensor ${quote(name)}`;
  if (!isObject(value)) throw invalid(file, `${tensor} is not described by an object`, '{dtype, shape, data_offsets}', text(value));
  const { dtype, shape, data_offsets: offsets } = value;
  if (!isDType(dtype)) {
    throw invalid(file, `${tensor} has an unknown dtype`, `one of ${Object.keys(SAFETENSORS_DTYPE_BYTES).join(', ')}`, text(dtype));
  }
  if (!isCounts(shape)) throw invalid(file, `${tensor} has a bad shape`, 'an array of integers >= 0', text(shape));
  const byteLength = bytesOf(shape, dtype);
  if (byteLength === undefined) throw invalid(file, `${tensor} has a shape too large to count`, undefined, text(shape));
  if (!isCounts(offsets) || offsets.length !== 2) {
    throw invalid(file, `${tensor} has bad data_offsets`, 'two integers >= 0', text(offsets));
  }
  const [begin, end] = offsets as [number, number];
  if (begin > end) throw invalid(file, `${tensor} has data_offsets that run backwards`, 'begin <= end', text(offsets));
  if (end > fileSize - dataOffset) {
    throw invalid(file, `${tensor} reaches past the end of the file (truncated?)`, `data_offsets within ${fileSize - dataOffset} bytes of data`, text(offsets));
  }
  if (end - begin !== byteLength) {
    throw invalid(file, `${tensor} has data_offsets that disagree with its shape ${text(shape)} of ${dtype}`, `${byteLength} bytes`, `${end - begin}`);
  }
  return { name, dtype, shape, offset: dataOffset + begin, byteLength };
}

/** The ranges must follow one another from the header to the end of the file. */
function checkCover(entries: readonly SafetensorsEntry[], dataOffset: number, fileSize: number, file: string): void {
  const sorted = [...entries].sort((x, y) => x.offset - y.offset || x.byteLength - y.byteLength);
  let end = dataOffset;
  let previous = 'the header';
  for (const { name, offset, byteLength } of sorted) {
    const tensor = `tensor ${quote(name)}`;
    const begins = `data_offsets from ${end - dataOffset}`;
    if (offset < end) throw invalid(file, `${tensor} overlaps ${previous}`, begins, `${offset - dataOffset}`);
    if (offset > end) throw invalid(file, `${tensor} leaves a hole after ${previous}`, begins, `${offset - dataOffset}`);
    end = offset + byteLength;
    previous = tensor;
  }
  if (end !== fileSize) throw invalid(file, `has bytes that no tensor owns after ${previous}`, `${end} bytes`, `${fileSize}`);
}

/** Bytes of a tensor, or undefined when the shape is bad or the count is not exact in a double. */
function bytesOf(shape: readonly number[], dtype: SafetensorsDType): number | undefined {
  if (!isCounts(shape)) return undefined;
  let bytes: number = SAFETENSORS_DTYPE_BYTES[dtype];
  for (const n of shape) {
    bytes *= n;
    if (bytes > Number.MAX_SAFE_INTEGER) return undefined;
  }
  return bytes;
}

function isDType(value: unknown): value is SafetensorsDType {
  return typeof value === 'string' && Object.hasOwn(SAFETENSORS_DTYPE_BYTES, value);
}

function isCounts(value: unknown): value is number[] {
  return Array.isArray(value) && value.every((n) => Number.isSafeInteger(n) && n >= 0 && !Object.is(n, -0));
}

function isObject(value: unknown): value is Record<string, unknown> {
  return typeof value === 'object' && value !== null && !Array.isArray(value);
}

function invalid(file: string, summary: string, expected?: string, got?: string, cause?: unknown): MlaError {
  return new MlaError('invalid-file', summary, {
    argument: file,
    ...(expected !== undefined && { expected }),
    ...(got !== undefined && { got }),
    ...(cause !== undefined && { cause }),
  });
}

function quote(name: unknown): string {
  return JSON.stringify(typeof name === 'string' && name.length > 100 ? `${name.slice(0, 97)}...` : name) ?? String(name);
}

/** A value of a header in a few words, however large or deep it is. */
function text(value: unknown): string {
  if (Array.isArray(value)) {
    if (value.length > 8) return `an array of ${value.length}`;
    return `[${value.map((item) => (Array.isArray(item) ? '[...]' : text(item))).join(', ')}]`;
  }
  return isObject(value) ? 'an object' : value === undefined ? 'nothing' : quote(value);
}
