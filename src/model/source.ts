/**
 * Where a model's files live: a folder, a web server, the Hugging Face hub, or files that a user dropped on a page. Everything that
 * loads a model reads through this.
 */
import { MlaError } from '../errors.ts';

export interface FileRange {
  /** Bytes from the start of the file. */
  readonly offset: number;
  readonly length: number;
  readonly signal?: AbortSignal | undefined;
}

export interface ModelSource {
  /** For people: a path, a URL, `owner/name`. */
  readonly name: string;
  /** Bytes of a file; undefined where there is none of that name. @throws MlaError invalid-file, aborted */
  size(file: string, signal?: AbortSignal): Promise<number | undefined>;
  /** Exactly that range, in a buffer of its own. @throws MlaError invalid-file, aborted */
  read(file: string, range: FileRange): Promise<Uint8Array<ArrayBuffer>>;
}

/** A small file as text; undefined where there is none. @throws MlaError invalid-file, aborted */
export async function readText(source: ModelSource, file: string, signal?: AbortSignal): Promise<string | undefined> {
  const length = await source.size(file, signal);
  if (length === undefined) return undefined;
  const bytes = await source.read(file, { offset: 0, length, signal });
  try {
    return new TextDecoder('utf-8', { fatal: true }).decode(bytes);
  } catch (cause) {
    throw new MlaError('invalid-file', 'is not UTF-8', { argument: file, cause });
  }
}

/** A small file as JSON; undefined where there is none. @throws MlaError invalid-file, aborted */
export async function readJson(source: ModelSource, file: string, signal?: AbortSignal): Promise<unknown> {
  const text = await readText(source, file, signal);
  if (text === undefined) return undefined;
  try {
    return JSON.parse(text);
  } catch (cause) {
    throw new MlaError('invalid-file', 'is not JSON', { argument: file, got: (cause as Error).message, cause });
  }
}

/** @throws MlaError aborted, once `signal` fired */
export function checkAborted(signal: AbortSignal | undefined, what: string): void {
  if (signal?.aborted) throw new MlaError('aborted', 'was stopped by its AbortSignal', { argument: what, cause: signal.reason });
}

export function missingFile(source: ModelSource, file: string): MlaError {
  return new MlaError('invalid-file', `there is no such file in ${source.name}`, { argument: file });
}

export function endedEarly(file: string, expected: number, got: number): MlaError {
  return new MlaError('invalid-file', 'ended while it was read', { argument: file, expected: `${expected} bytes`, got: `${got}` });
}
