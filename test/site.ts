/**
 * The built site, served from a folder below the root as a project page is, and a headless Chromium to look at it with.
 * Outside of tests too: demo/screenshots.ts.
 */
import assert from 'node:assert/strict';
import { execFile } from 'node:child_process';
import { mkdtemp, readFile, rm } from 'node:fs/promises';
import { createServer, type IncomingMessage, type Server, type ServerResponse } from 'node:http';
import type { AddressInfo } from 'node:net';
import { tmpdir } from 'node:os';
import { extname, join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { promisify } from 'node:util';
import { chromium, type Browser, type Page } from 'playwright-core';
import { chromiumLaunchOptions } from './software-adapter.ts';

const root = fileURLToPath(new URL('..', import.meta.url));
const BASE = '/below';
const TYPES: Readonly<Record<string, string>> = {
  '.html': 'text/html', '.js': 'text/javascript', '.css': 'text/css', '.json': 'application/json', '.svg': 'image/svg+xml', '.webmanifest': 'application/manifest+json',
};

export interface Visit {
  /** Below the site's folder; its first page when absent. */
  readonly path?: string;
  /** Chromium's arguments in place of those for the software adapter. */
  readonly args?: readonly string[];
  readonly host?: string;
  readonly viewport?: { readonly width: number; readonly height: number };
  readonly colorScheme?: 'light' | 'dark';
  /** What the page may do unasked. */
  readonly permissions?: readonly string[];
  /** Errors that the console may show. */
  readonly expected?: RegExp;
}

export class Site {
  readonly dir: string;
  /** Paths below the site's folder that were asked for, in order. */
  readonly requests: string[] = [];
  /** Answers wait for it. */
  gate: ((path: string) => Promise<void>) | undefined;
  /** While set, every connection breaks: a browser's own offline mode does not reach all service workers. */
  away = false;
  readonly #server: Server;

  private constructor(dir: string) {
    this.dir = dir;
    this.#server = createServer((request, response) => void this.#answer(request, response));
  }

  /** Builds the site into a folder of its own and serves it. */
  static async build(): Promise<Site> {
    const dir = await mkdtemp(join(tmpdir(), 'flashmla-demo-'));
    const vite = join(root, 'node_modules', 'vite', 'bin', 'vite.js');
    await promisify(execFile)(process.execPath, [vite, 'build', '--mode', 'demo', '--outDir', dir, '--emptyOutDir', '--logLevel', 'error'], {
      cwd: root,
      // Vitest's own NODE_ENV would make it a build for development, which no one is served.
      env: { ...process.env, NODE_ENV: 'production' },
    });
    const site = new Site(dir);
    await new Promise<void>((resolve) => site.#server.listen(0, '127.0.0.1', resolve));
    return site;
  }

  async #answer(request: IncomingMessage, response: ServerResponse): Promise<void> {
    if (this.away) return void request.socket.destroy();
    const path = new URL(request.url ?? '/', 'http://site').pathname.replace(/\/$/, '/index.html');
    const inside = path.startsWith(`${BASE}/`) ? path.slice(BASE.length + 1) : undefined;
    if (inside !== undefined) {
      this.requests.push(inside);
      await this.gate?.(inside);
    }
    const body = inside === undefined ? undefined : await readFile(join(this.dir, inside)).catch(() => undefined);
    response.writeHead(body ? 200 : 404, { 'content-type': TYPES[extname(path)] ?? 'application/octet-stream' }).end(body);
  }

  url(path = '', host = '127.0.0.1'): string {
    return `http://${host}:${(this.#server.address() as AddressInfo).port}${BASE}/${path}`;
  }

  /** Opens a page in a browser of its own; fails on anything that the console calls an error. */
  async visit({ path, args, host, viewport = { width: 1200, height: 900 }, colorScheme = 'light', permissions = [], expected }: Visit, see: (page: Page, browser: Browser) => Promise<void>): Promise<void> {
    const options = await chromiumLaunchOptions();
    const browser = await chromium.launch({ ...options, args: args ? [...args] : options.args });
    try {
      const page = await browser.newPage({ locale: 'en-US', viewport, colorScheme, permissions: [...permissions] });
      page.setDefaultTimeout(250_000);
      const errors: string[] = [];
      page.on('console', (message) => message.type() === 'error' && !expected?.test(message.text()) && errors.push(message.text()));
      page.on('pageerror', (error) => errors.push(String(error)));
      await page.goto(this.url(path, host));
      await see(page, browser);
      assert.deepEqual(errors, []);
    } finally {
      await browser.close();
    }
  }

  async close(): Promise<void> {
    this.#server.close();
    this.#server.closeAllConnections();
    await rm(this.dir, { recursive: true, force: true });
  }
}

export const text = async (page: Page, selector: string): Promise<string> => (await page.locator(selector).textContent()) ?? '';
export const count = (page: Page, selector: string): Promise<number> => page.locator(selector).count();

/**
 * Longest task but one of the page's main thread in a trace: milliseconds of its own processor time, which other programs do not lengthen. But a
 * machine that is paused in the middle of one may count that too, and what keeps a page from its visitor does so more than once.
 */
export function longTask(trace: Buffer): number {
  interface TraceEvent { name: string; pid: number; tid: number; tdur?: number; args?: { name?: string } }
  const { traceEvents } = JSON.parse(trace.toString()) as { traceEvents: TraceEvent[] };
  const main = new Set(traceEvents.filter((e) => e.name === 'thread_name' && e.args?.name === 'CrRendererMain').map((e) => `${e.pid}/${e.tid}`));
  // Events lie within others: those of whole tasks.
  const tasks = traceEvents.filter((e) => main.has(`${e.pid}/${e.tid}`) && e.tdur !== undefined && e.name.endsWith('RunTask')).map((e) => e.tdur! / 1000);
  assert(tasks.length > 100, 'the trace has hardly any tasks of the page');
  return tasks.sort((a, b) => b - a)[1]!;
}
