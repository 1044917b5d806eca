/**
 * The model that this site ships: fetched file by file and kept in the Cache API, so that a second visit needs no network.
 * Where there is no such store (insecure addresses, private windows, a full disk) the files are fetched each time.
 */
import { MlaError } from '../../src/errors.ts';
import { filesSource, type ModelFile } from '../../src/model/files-source.ts';
import type { ModelSource } from '../../src/model/source.ts';
import { MODEL_CACHE, MODEL_FOLDER } from '../site/cache-names.ts';

export interface ShippedFile {
  readonly name: string;
  readonly bytes: number;
  readonly hash: string;
}

/** Put in by the build; none where it had no weights. */
declare const MODEL_FILES: readonly ShippedFile[];

export const SHIPPED: readonly ShippedFile[] = MODEL_FILES;
export const SHIPPED_BYTES: number = SHIPPED.reduce((sum, { bytes }) => sum + bytes, 0);

export interface FetchOptions {
  /** Bytes so far, of SHIPPED_BYTES. */
  readonly onProgress: (loaded: number) => void;
  readonly signal: AbortSignal;
}

/** @param base the site's URL @throws MlaError invalid-file, aborted */
export async function shippedSource(base: string, { onProgress, signal }: FetchOptions): Promise<ModelSource> {
  const store = await openStore();
  const files: ModelFile[] = [];
  let before = 0;
  for (const file of SHIPPED) {
    const url = urlOf(file, base);
    const kept = await store?.match(url);
    const blob = kept ? await kept.blob() : await fetchWhole(file, url, { signal, onProgress: (loaded) => onProgress(before + loaded) });
    // A store that is full keeps what it has: the next visit fetches the rest again.
    if (!kept) await store?.put(url, new Response(blob)).catch(() => undefined);
    files.push([file.name, blob]);
    before += file.bytes;
    onProgress(before);
  }
  if (store) await dropFormer(store, base);
  return filesSource(files);
}

/** Whether all of it is kept in this browser. */
export async function isKept(base: string): Promise<boolean> {
  const store = await openStore();
  if (!store || SHIPPED.length === 0) return false;
  const found = await Promise.all(SHIPPED.map((file) => store.match(urlOf(file, base))));
  return found.every((response) => response !== undefined);
}

async function openStore(): Promise<Cache | undefined> {
  try {
    return await caches.open(MODEL_CACHE);
  } catch {
    return undefined;
  }
}

/** The hash is in the address: files of another build are other files. */
function urlOf({ name, hash }: ShippedFile, base: string): string {
  return new URL(`${MODEL_FOLDER}${name}?${hash}`, base).href;
}

async function fetchWhole({ name, bytes }: ShippedFile, url: string, { signal, onProgress }: FetchOptions): Promise<Blob> {
  try {
    const response = await fetch(url, { signal });
    if (!response.ok) throw new MlaError('invalid-file', `the server refused it: ${response.status} ${response.statusText}`.trimEnd(), { argument: name });
    let loaded = 0;
    const counter = new TransformStream<Uint8Array<ArrayBuffer>, Uint8Array<ArrayBuffer>>({
      transform(chunk, controller) {
        onProgress(loaded += chunk.length);
        controller.enqueue(chunk);
      },
    });
    const blob = await new Response(response.body!.pipeThrough(counter)).blob();
    if (blob.size !== bytes) throw new MlaError('invalid-file', 'is not the file of this site', { argument: name, expected: `${bytes} bytes`, got: String(blob.size) });
    return blob;
  } catch (cause) {
    if (signal.aborted) throw new MlaError('aborted', 'was stopped', { argument: name, cause });
    if (cause instanceof MlaError) throw cause;
    throw new MlaError('invalid-file', `could not be fetched: ${(cause as Error).message}`, { argument: name, cause });
  }
}

/** Files of this site's earlier models. */
async function dropFormer(store: Cache, base: string): Promise<void> {
  const present = new Set(SHIPPED.map((file) => urlOf(file, base)));
  const folder = new URL(MODEL_FOLDER, base).href;
  for (const { url } of await store.keys()) if (url.startsWith(folder) && !present.has(url)) await store.delete(url);
}
