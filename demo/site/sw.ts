/**
 * The service worker: keeps the files of one build, and answers from them alone.
 *
 * Each build has a cache of its own, filled before the worker is installed and removed when a newer one takes over. The
 * model's files are none of the build's: the page that fetches them keeps them in MODEL_CACHE, which outlives updates.
 */
import { MODEL_CACHE, MODEL_FOLDER, SITE_CACHES } from './cache-names.ts';
import { sliceOf } from './ranges.ts';
import { TAKE_OVER } from './take-over.ts';

/** Put before this script by the build: files relative to it, and a hash of their contents. */
declare const SITE_FILES: readonly string[];
declare const SITE_VERSION: string;

const worker = self as unknown as ServiceWorkerGlobalScope;
const CACHE = `${SITE_CACHES}${SITE_VERSION}`;

worker.addEventListener('install', (event) => event.waitUntil(keepFiles()));
worker.addEventListener('activate', (event) => event.waitUntil(takeCharge()));
worker.addEventListener('message', ({ data }) => {
  if (data === TAKE_OVER) void worker.skipWaiting();
});
worker.addEventListener('fetch', (event) => {
  const { request } = event;
  const { scope } = worker.registration;
  if (request.method !== 'GET' || !request.url.startsWith(scope)) return;
  const path = new URL(request.url).pathname.slice(new URL(scope).pathname.length);
  event.respondWith(path.startsWith(MODEL_FOLDER) ? modelFile(request) : siteFile(request, path));
});

/** Past HTTP's cache, where files of an older build may be. */
async function keepFiles(): Promise<void> {
  const cache = await caches.open(CACHE);
  await cache.addAll(SITE_FILES.map((file) => new Request(file, { cache: 'reload' })));
}

async function takeCharge(): Promise<void> {
  const names = await caches.keys();
  await Promise.all(names.filter((name) => name.startsWith(SITE_CACHES) && name !== CACHE).map((name) => caches.delete(name)));
  await worker.clients.claim();
}

async function siteFile(request: Request, path: string): Promise<Response> {
  const cache = await caches.open(CACHE);
  return (await cache.match(path === '' ? 'index.html' : path)) ?? fetch(request);
}

async function modelFile(request: Request): Promise<Response> {
  const cache = await caches.open(MODEL_CACHE);
  const kept = await cache.match(request.url);
  if (!kept) return fetch(request);
  const range = request.headers.get('range');
  return range === null ? kept : sliceOf(kept, range);
}
