/**
 * A model on a web server, read by ranges (`Range: bytes=...`), and on the Hugging Face hub, which is one.
 *
 * A server without ranges sends whole files; each is fetched once and kept as a Blob, which browsers put on disk when it is large.
 */
import { MlaError } from '../errors.ts';
import { readBlob } from './files-source.ts';
import { checkAborted, endedEarly, missingFile, type FileRange, type ModelSource } from './source.ts';

export interface UrlSourceOptions {
  /** Sent with every request, such as `authorization`. */
  readonly headers?: Readonly<Record<string, string>>;
  /** In place of the global one. */
  readonly fetch?: typeof fetch;
  /** Milliseconds to wait before each new try after the network or the server (429, 5xx) failed; [500, 2000] when absent. */
  readonly retryDelays?: readonly number[];
}

export interface HubSourceOptions extends UrlSourceOptions {
  /** https://huggingface.co when absent. */
  readonly base?: string;
}

/** @param base the folder's URL, from which files are named */
export function urlSource(base: string | URL, options: UrlSourceOptions = {}): ModelSource {
  return new UrlSource(String(base), String(base), options);
}

/**
 * A model on the Hugging Face hub.
 * @param repository `owner/name`, or `owner/name@revision`; `main` when there is none
 * @throws MlaError invalid-argument
 */
export function hubSource(repository: string, { base = 'https://huggingface.co', ...options }: HubSourceOptions = {}): ModelSource {
  const [, name, revision = 'main'] = /^(\w[\w.-]*\/\w[\w.-]*)(?:@(.+))?$/.exec(repository) ?? [];
  if (name === undefined) throw new MlaError('invalid-argument', 'is not the name of a model', { argument: 'repository', expected: 'owner/name or owner/name@revision', got: JSON.stringify(repository) });
  return new UrlSource(repository, `${base.replace(/\/$/, '')}/${name}/resolve/${encodeURIComponent(revision)}`, options);
}

/** What is known of a file: that it is absent, its size, or all of it. */
type Known = { readonly size: number; readonly whole?: Blob } | 'absent';

class UrlSource implements ModelSource {
  readonly name: string;
  readonly #base: string;
  readonly #headers: Readonly<Record<string, string>>;
  readonly #fetch: typeof fetch;
  readonly #retryDelays: readonly number[];
  readonly #known = new Map<string, Known>();

  constructor(name: string, base: string, { headers = {}, fetch: given, retryDelays = [500, 2000] }: UrlSourceOptions) {
    this.name = name;
    this.#base = base.endsWith('/') ? base : `${base}/`;
    this.#headers = headers;
    // Not stored bare: the global one must be called without an object.
    this.#fetch = given ?? ((input, init) => fetch(input, init));
    this.#retryDelays = retryDelays;
  }

  async size(file: string, signal?: AbortSignal): Promise<number | undefined> {
    const known = await this.#know(file, signal);
    return known === 'absent' ? undefined : known.size;
  }

  async read(file: string, { offset, length, signal }: FileRange): Promise<Uint8Array<ArrayBuffer>> {
    const known = await this.#know(file, signal);
    if (known === 'absent') throw missingFile(this, file);
    if (offset + length > known.size) throw endedEarly(file, offset + length, known.size);
    if (known.whole !== undefined) return readBlob(known.whole, file, offset, length);
    if (length === 0) return new Uint8Array(0);
    return this.#request(file, `bytes=${offset}-${offset + length - 1}`, signal, async (response) => {
      if (response.status !== 206) throw refused(file, response);
      const bytes = new Uint8Array(await response.arrayBuffer());
      if (bytes.length !== length) throw endedEarly(file, offset + length, offset + bytes.length);
      return bytes;
    });
  }

  /** Asks for the first byte: the answer says the size, or is the whole file. */
  async #know(file: string, signal: AbortSignal | undefined): Promise<Known> {
    const before = this.#known.get(file);
    if (before !== undefined) {
      checkAborted(signal, file);
      return before;
    }
    const known = await this.#request(file, 'bytes=0-0', signal, async (response): Promise<Known | undefined> => {
      // Development servers answer with a page for what they do not have.
      if (response.status === 404 || (response.ok && /^text\/html\b/.test(response.headers.get('content-type') ?? ''))) {
        await response.body?.cancel();
        return 'absent';
      }
      if (response.status === 200) return wholeOf(await response.blob());
      if (response.status !== 206 && response.status !== 416) throw refused(file, response);
      await response.body?.cancel();
      const size = /\/(\d+)$/.exec(response.headers.get('content-range') ?? '')?.[1];
      return size === undefined ? undefined : { size: Number(size) };
    }) ?? await this.#request(file, undefined, signal, async (response): Promise<Known> => {
      // The size is not told (or not across origins): all of it then.
      if (!response.ok) throw refused(file, response);
      return wholeOf(await response.blob());
    });
    this.#known.set(file, known);
    return known;
  }

  async #request<T>(file: string, range: string | undefined, signal: AbortSignal | undefined, take: (response: Response) => Promise<T>): Promise<T> {
    const url = this.#base + file.split('/').map(encodeURIComponent).join('/');
    const init: RequestInit = { headers: { ...this.#headers, ...(range !== undefined && { range }) }, ...(signal !== undefined && { signal }) };
    for (let tries = 0; ; tries++) {
      checkAborted(signal, file);
      const delay = this.#retryDelays[tries];
      try {
        const response = await this.#fetch(url, init);
        if (delay === undefined || !(response.status === 429 || response.status >= 500)) return await take(response);
        await response.body?.cancel();
      } catch (cause) {
        checkAborted(signal, file);
        if (cause instanceof MlaError) throw cause;
        if (delay === undefined) {
          throw new MlaError('invalid-file', `could not be fetched: ${(cause as Error).message}`, { argument: url, fix: 'Check the connection, and that the server allows this page (CORS)', cause });
        }
      }
      await pause(delay, signal);
    }
  }
}

function wholeOf(whole: Blob): Known {
  return { size: whole.size, whole };
}

function refused(file: string, response: Response): MlaError {
  const { status, statusText } = response;
  void response.body?.cancel();
  return new MlaError('invalid-file', `the server refused it: ${status} ${statusText}`.trimEnd(), {
    argument: file, ...((status === 401 || status === 403) && { fix: 'The model does not exist, or needs access: pass headers with an authorization' }),
  });
}

/** Ends early when `signal` fires; whoever waits checks it. */
function pause(milliseconds: number, signal: AbortSignal | undefined): Promise<void> {
  return new Promise((resolve) => {
    const end = (): void => {
      clearTimeout(timer);
      signal?.removeEventListener('abort', end);
      resolve();
    };
    const timer = setTimeout(end, milliseconds);
    signal?.addEventListener('abort', end);
  });
}
