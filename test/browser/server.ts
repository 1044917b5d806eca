/**
 * A static server on 127.0.0.1 (a secure context, so that pages have WebGPU): the built package, the files beside
 * this one, and a store of byte arrays that pages GET and PUT, for inputs and results too large for page.evaluate.
 */
import { existsSync, readdirSync, statSync } from 'node:fs';
import { readFile } from 'node:fs/promises';
import { createServer, type IncomingMessage } from 'node:http';
import type { AddressInfo } from 'node:net';
import { dirname, extname, join, normalize } from 'node:path';
import { fileURLToPath } from 'node:url';

const here = dirname(fileURLToPath(import.meta.url));
const root = join(here, '..', '..');
const types: Readonly<Record<string, string>> = { '.html': 'text/html', '.js': 'text/javascript', '.mjs': 'text/javascript', '.map': 'application/json' };

export interface TestServer {
  readonly origin: string;
  readonly store: Map<string, Uint8Array>;
  close(): Promise<void>;
}

/** @throws Error when there is no build, or one older than its sources: the suite would test something else */
function checkBuilt(): void {
  const built = join(root, 'dist', 'worker.js');
  if (!existsSync(built)) throw new Error('dist/ is not built: run npm run build (npm test does)');
  const newest = (dir: string): number =>
    Math.max(...readdirSync(dir, { withFileTypes: true }).map((e) => (e.isDirectory() ? newest(join(dir, e.name)) : statSync(join(dir, e.name)).mtimeMs)), 0);
  if (Math.max(newest(join(root, 'src')), newest(join(root, 'shaders'))) > statSync(built).mtimeMs) {
    throw new Error('dist/ is older than src/ or shaders/: run npm run build (npm test does)');
  }
}

function body(request: IncomingMessage): Promise<Buffer> {
  return new Promise((resolve, reject) => {
    const chunks: Buffer[] = [];
    request.on('data', (chunk: Buffer) => chunks.push(chunk));
    request.on('end', () => resolve(Buffer.concat(chunks)));
    request.on('error', reject);
  });
}

/** The package leaves `comlink` to the bundler; a page without one needs its address. */
function withAddresses(source: string): string {
  return source.replace(/(from\s*|import\s*\(?\s*)"comlink"/g, '$1"/comlink.mjs"');
}

export async function serveTests(): Promise<TestServer> {
  checkBuilt();
  const store = new Map<string, Uint8Array>();
  const server = createServer((request, response) => {
    void (async () => {
      const path = normalize(decodeURIComponent(new URL(request.url ?? '/', 'http://localhost').pathname));
      if (path.startsWith('/store/')) {
        if (request.method === 'PUT') store.set(path.slice(7), await body(request));
        const bytes = store.get(path.slice(7));
        response.writeHead(bytes ? 200 : 404).end(request.method === 'PUT' ? undefined : bytes);
        return;
      }
      const file =
        path === '/comlink.mjs' ? join(root, 'node_modules/comlink/dist/esm/comlink.mjs')
        : path.startsWith('/dist/') ? join(root, path)
        : join(here, path);
      const type = types[extname(file)];
      if (type === undefined || !existsSync(file)) {
        response.writeHead(404).end();
        return;
      }
      const bytes = await readFile(file);
      response.writeHead(200, { 'content-type': type, 'cache-control': 'no-store' });
      response.end(path.startsWith('/dist/') && type === types['.js'] ? withAddresses(bytes.toString()) : bytes);
    })().catch((error: unknown) => response.writeHead(500).end(String(error)));
  });
  await new Promise<void>((resolve) => server.listen(0, '127.0.0.1', resolve));
  return {
    origin: `http://127.0.0.1:${(server.address() as AddressInfo).port}`,
    store,
    close: () => new Promise((resolve) => server.close(() => resolve())),
  };
}
