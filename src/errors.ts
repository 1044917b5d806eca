/**
 * The one error type of this package.
 *
 * Every error carries a machine-readable `code`, the name of the offending argument, what was expected and
 * what came, and a message that names the fix. Errors about arguments are thrown before anything is enqueued
 * or allocated; errors of the device arrive on the promise that waits for its work.
 */
export type MlaErrorCode =
  /** A value has the wrong JavaScript type, is NaN, or is outside its domain. */
  | 'invalid-argument'
  /** A tensor's element type is not one this argument takes. */
  | 'invalid-dtype'
  /** A tensor's rank or a dimension is wrong, or disagrees with another argument. */
  | 'invalid-shape'
  /** An index (block id, sequence id, length) points outside what exists. */
  | 'out-of-range'
  /** Metadata made for other lengths or another shape than this call's. */
  | 'metadata-mismatch'
  /** The KV cache has too few free blocks. Nothing was taken. */
  | 'pool-exhausted'
  /** The device cannot bind, allocate or dispatch something of this size. */
  | 'limit-exceeded'
  /** The device reported that its memory is used up. */
  | 'out-of-memory'
  /** The device went away (driver reset, tab discarded, `device.destroy()`). */
  | 'device-lost'
  /** The object was destroyed before this call. */
  | 'destroyed'
  /** No backend of the requested kind can run here. */
  | 'backend-unavailable'
  /** An optional peer package (`webgpu`, `koffi`) is not installed. */
  | 'missing-dependency'
  /** A file could not be read or does not hold what it should. */
  | 'invalid-file'
  /** A model whose architecture or settings this package does not run. */
  | 'unsupported-model'
  /** The caller's AbortSignal fired. */
  | 'aborted'
  /** A defect of this package: a kernel was refused or an invariant broke. */
  | 'internal';

export interface MlaErrorDetails {
  /** Name of the offending argument, as the caller wrote it (`blockTable`, `kvCache.shape[2]`). */
  argument?: string;
  /** What would have been right. */
  expected?: string;
  /** What came. */
  got?: string;
  /** What to do about it; appended to the message. */
  fix?: string;
  cause?: unknown;
}

export class MlaError extends Error {
  readonly code: MlaErrorCode;
  readonly argument: string | undefined;
  readonly expected: string | undefined;
  readonly got: string | undefined;
  readonly fix: string | undefined;

  constructor(code: MlaErrorCode, summary: string, details: MlaErrorDetails = {}) {
    const { argument, expected, got, fix, cause } = details;
    let message = argument === undefined ? summary : `${argument}: ${summary}`;
    if (expected !== undefined) message += `; expected ${expected}`;
    if (got !== undefined) message += `${expected === undefined ? ';' : ','} got ${got}`;
    // What a driver said may end in a full stop of its own.
    if (fix !== undefined) message = `${message.replace(/\.$/, '')}. ${fix}`;
    super(message, cause === undefined ? undefined : { cause });
    this.name = 'MlaError';
    this.code = code;
    this.argument = argument;
    this.expected = expected;
    this.got = got;
    this.fix = fix;
  }

  /** The fields as plain data, so that an error survives `postMessage` and JSON. */
  toJSON(): MlaErrorData {
    const { code, message, argument, expected, got, fix } = this;
    return { name: 'MlaError', code, message, argument, expected, got, fix };
  }

  /** The error again, from what `toJSON` wrote in another thread. */
  static fromJSON(data: MlaErrorData): MlaError {
    const error = new MlaError(data.code, data.message);
    return Object.assign(error, { argument: data.argument, expected: data.expected, got: data.got, fix: data.fix });
  }
}

export interface MlaErrorData {
  name: 'MlaError';
  code: MlaErrorCode;
  message: string;
  argument: string | undefined;
  expected: string | undefined;
  got: string | undefined;
  fix: string | undefined;
}

/** A short, safe description of any value, for `got`. */
export function describe(value: unknown): string {
  if (value === null) return 'null';
  if (typeof value === 'string') return JSON.stringify(value.length > 60 ? `${value.slice(0, 57)}...` : value);
  if (typeof value === 'number' || typeof value === 'boolean' || typeof value === 'undefined') return String(value);
  if (typeof value === 'bigint') return `${value}n`;
  if (typeof value === 'function') return 'a function';
  if (Array.isArray(value)) {
    // One level deep: what came may be nested without end.
    return value.length > 8 ? `an array of ${value.length}` : `[${value.map((v) => (Array.isArray(v) ? `an array of ${v.length}` : describe(v))).join(', ')}]`;
  }
  if (ArrayBuffer.isView(value)) return `${value.constructor.name} of ${(value as Uint8Array).length ?? value.byteLength}`;
  return `an object (${(value as object).constructor?.name ?? 'no prototype'})`;
}

/** `[2, 1, 128, 576]` */
export function shapeText(shape: readonly number[]): string {
  return `[${shape.join(', ')}]`;
}

/** Of what a device says of a kernel the first line, cut short: compilers list all that they would have taken. */
export function firstLine(message: string): string {
  const line = message.split('\n', 1)[0]!;
  return line.length > 200 ? `${line.slice(0, 197)}...` : line;
}
