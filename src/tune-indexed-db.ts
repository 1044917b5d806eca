/** Tuning remembered in a browser, on a page or in a worker: one object store of IndexedDB. */
import { STORE_FORMAT, noStore, readRemembered, type Remembered, type TuneStore } from './tune-store.ts';

const DATABASE = 'flashmla-web';
const STORE = 'tune';
/** A database that another page blocks, or a browser that answers never, must not keep anyone waiting. */
const PATIENCE_MS = 1000;
/** Nobody waits for what is written, but who has waited for a measurement. */
const WRITE_PATIENCE = 10;

export function indexedDbStore(factory: IDBFactory | undefined = reachable(), patience: number = PATIENCE_MS): TuneStore {
  if (!factory) return noStore('no IndexedDB here');
  const request = <T>(mode: IDBTransactionMode, make: (store: IDBObjectStore) => IDBRequest<T>): Promise<T> => within(mode === 'readonly' ? patience : patience * WRITE_PATIENCE, run(factory, mode, make));
  const outcome = (work: Promise<unknown>): Promise<string | undefined> => work.then(() => undefined, (error: unknown) => `IndexedDB: ${(error as Error).message}`);
  return {
    place: `IndexedDB ${DATABASE}`,
    load: async () => {
      const entries = new Map<string, Remembered>();
      const found: readonly unknown[] = await request('readonly', (store) => store.getAll()).catch(() => []);
      for (const value of found) {
        const choice = readRemembered(value);
        const key = (value as { key?: unknown } | null | undefined)?.key;
        if (choice && typeof key === 'string') entries.set(key, choice);
      }
      return entries;
    },
    save: (key, choice) => outcome(request('readwrite', (store) => store.put({ ...choice, key }, key))),
    forget: () => outcome(request('readwrite', (store) => store.clear())),
  };
}

/** Some browsers throw at the mere mention, as in a sandboxed frame. */
function reachable(): IDBFactory | undefined {
  try {
    return globalThis.indexedDB ?? undefined;
  } catch {
    return undefined;
  }
}

async function run<T>(factory: IDBFactory, mode: IDBTransactionMode, make: (store: IDBObjectStore) => IDBRequest<T>): Promise<T> {
  const opening = factory.open(DATABASE, STORE_FORMAT);
  opening.onupgradeneeded = () => {
    const { result } = opening;
    if (result.objectStoreNames.contains(STORE)) result.deleteObjectStore(STORE);
    result.createObjectStore(STORE);
  };
  const database = await settled(opening);
  try {
    const transaction = database.transaction(STORE, mode);
    const done = committed(transaction);
    done.catch(() => undefined);
    const result = await settled(make(transaction.objectStore(STORE)));
    // A disk that is full may say so only now.
    await done;
    return result;
  } finally {
    database.close();
  }
}

function settled<T>(request: IDBRequest<T>): Promise<T> {
  return new Promise((resolve, reject) => {
    request.onsuccess = () => resolve(request.result);
    request.onerror = () => reject(request.error ?? new Error('refused'));
  });
}

function committed(transaction: IDBTransaction): Promise<void> {
  return new Promise((resolve, reject) => {
    transaction.oncomplete = () => resolve();
    transaction.onabort = () => reject(transaction.error ?? new Error('aborted'));
  });
}

function within<T>(ms: number, work: Promise<T>): Promise<T> {
  let timer: ReturnType<typeof setTimeout> | undefined;
  const late = new Promise<never>((_, reject) => {
    timer = setTimeout(() => reject(new Error(`no answer within ${ms} ms`)), ms);
  });
  return Promise.race([work, late]).finally(() => clearTimeout(timer));
}
