/** What the pages of the built site share: head and navigation, weight, accessibility, and the service worker that keeps them offline. */
import { readFile, writeFile } from 'node:fs/promises';
import { createRequire } from 'node:module';
import { dirname, join } from 'node:path';
import type { AxeResults } from 'axe-core';
import type { Page } from 'playwright-core';
import { afterAll, beforeAll, describe, expect, it } from 'vitest';
import { MODEL_CACHE } from '../demo/site/cache-names.ts';
import { PAGES } from '../demo/site/pages.ts';
import { sliceOf } from '../demo/site/ranges.ts';
import { manifestOf } from '../demo/site/service-worker.ts';
import { dressPage } from '../demo/site/shell.ts';
import { Site } from './site.ts';

const AXE = createRequire(import.meta.url).resolve('axe-core/axe.min.js');
/** Bytes of script, uncompressed, that a page may load before anyone touches it. */
const BUDGET = 200_000;
const FILES = PAGES.map(({ file }) => file);
/** Without an adapter pages are up soonest. */
const PLAIN = ['--no-sandbox'];

/** What is done on a page before axe looks: results are part of it. */
const DEEDS: Readonly<Record<string, (page: Page) => Promise<void>>> = {
  'index.html': async (page) => {
    await page.click('#load-model');
    await page.locator('#status', { hasText: 'ready' }).waitFor();
    await page.fill('#max-tokens', '4');
    await page.click('#generate');
    await page.locator('[data-text="1"][data-state=done]').waitFor();
  },
  'kernel.html': async (page) => {
    await page.click('#run');
    await page.locator('#status', { hasText: 'Pass' }).waitFor({ state: 'attached' });
  },
};

let site: Site;

beforeAll(async () => { site = await Site.build(); });
afterAll(async () => { await site?.close(); });

describe('the shell', () => {
  it('dresses a bare page, and leaves what a page has itself', () => {
    const bare = dressPage('<head>\n  <title>x</title>\n</head>\n<body>\n  <main></main>\n</body>', 'how.html');
    for (const once of ['<meta charset="utf-8">', 'rel="icon"', 'site/style.css', 'site/offline.ts', 'npm install flashmla-web']) expect(bare.split(once)).toHaveLength(2);
    expect(bare).toMatch(/<body>\n {2}<nav class="site"[\s\S]*<a href="\.\/how\.html" aria-current="page">/);
    expect(bare.match(/aria-current/g)).toHaveLength(1);
    expect(dressPage(bare, 'how.html')).toBe(bare);
  });
});

describe.each(FILES)('%s', (file) => {
  it(`loads less than ${BUDGET / 1000} kB of script`, async () => {
    const html = await readFile(join(site.dir, file), 'utf8');
    const entries = [...html.matchAll(/<(?:script[^>]*\ssrc|link[^>]*rel="modulepreload"[^>]*\shref)="\.\/([^"]+\.js)"/g)].map(([, path]) => path!);
    expect(entries.length).toBeGreaterThan(0);
    const sizes = await staticGraph(entries);
    const total = [...sizes.values()].reduce((sum, bytes) => sum + bytes, 0);
    expect(total, JSON.stringify([...sizes])).toBeLessThan(BUDGET);
  });

  it.each(['light', 'dark'] as const)('has no serious finding of axe, %s', async (colorScheme) => {
    await site.visit({ path: file, colorScheme, args: PLAIN }, async (page) => {
      await settled(page);
      await DEEDS[file]?.(page);
      await page.addScriptTag({ path: AXE });
      const { violations, passes } = await page.evaluate(() => (window as unknown as { axe: { run(): Promise<AxeResults> } }).axe.run());
      expect(passes.length).toBeGreaterThan(5);
      const grave = violations.filter(({ impact }) => impact === 'serious' || impact === 'critical');
      expect(grave.map(({ id, nodes }) => `${id}: ${nodes.map(({ target, failureSummary }) => `${target.join(' ')} ${failureSummary}`).join('; ')}`)).toEqual([]);
    });
  });
});

describe('the service worker', () => {
  it('lists what was built, and changes its version with any byte of it', () => {
    const files = new Map<string, string | Uint8Array>([['b.js', '1'], ['a.html', '2'], ['model/weights.bin', 'w']]);
    const first = manifestOf(files, 'script');
    expect(first.files).toEqual(['a.html', 'b.js']);
    expect(manifestOf(new Map([...files, ['model/weights.bin', 'other']]), 'script')).toEqual(first);
    const versions = [first, manifestOf(files, 'script 2'), manifestOf(new Map([...files, ['b.js', '3']]), 'script'), manifestOf(new Map([...files, ['c.js', '1']]), 'script')];
    expect(new Set(versions.map(({ version }) => version)).size).toBe(4);
  });

  it('answers ranges from whole files', async () => {
    const slice = async (range: string): Promise<[number, string | null, string]> => {
      const response = await sliceOf(new Response('0123456789'), range);
      return [response.status, response.headers.get('content-range'), await response.text()];
    };
    expect(await slice('bytes=2-4')).toEqual([206, 'bytes 2-4/10', '234']);
    expect(await slice('bytes=8-')).toEqual([206, 'bytes 8-9/10', '89']);
    expect(await slice('bytes=8-99')).toEqual([206, 'bytes 8-9/10', '89']);
    expect(await slice('bytes=10-')).toEqual([416, 'bytes */10', '']);
    expect(await slice('bytes=-3')).toEqual([200, null, '0123456789']);
  });

  it('keeps the whole site for when there is no network', async () => {
    await site.visit({ args: PLAIN, expected: /ERR_INTERNET_DISCONNECTED|ERR_EMPTY_RESPONSE|ERR_FAILED|Failed to fetch/ }, async (page) => {
      await inCharge(page);
      await page.evaluate(async ([cache, url]) => (await window.caches.open(cache!)).put(url!, new Response('weights', { headers: { 'content-type': 'text/x' } })), [MODEL_CACHE, site.url('model/weights.bin')]);
      await page.context().setOffline(true);
      site.away = true;
      expect(await get(page, 'not-there.json')).toBe('no answer');
      for (const file of ['', ...FILES, 'kernel.html#run=0']) {
        await page.goto(site.url(file));
        await page.reload();
        await settled(page);
        expect(await page.locator('h1').textContent()).not.toBe('');
        expect(await page.evaluate(() => getComputedStyle(document.querySelector('nav.site')!).display)).toBe('flex');
      }
      await page.locator('#status', { hasText: 'Ready' }).waitFor({ state: 'attached' });
      await page.fill('#lengths', '5');
      await page.click('#run');
      await page.locator('#status', { hasText: 'Pass' }).waitFor({ state: 'attached' });
      expect(await get(page, 'model/weights.bin')).toBe('200 weights');
      expect(await get(page, 'model/weights.bin', 'bytes=1-3')).toBe('206 eig');
      expect(await get(page, 'model/other.bin')).toBe('no answer');
    }).finally(() => { site.away = false; });
  });

  it('hands over to a newer version as a whole, and leaves the model alone', async () => {
    const script = join(site.dir, 'sw.js');
    const page_ = join(site.dir, 'how.html');
    const [oldScript, oldPage] = [await readFile(script, 'utf8'), await readFile(page_, 'utf8')];
    const version = /SITE_VERSION = "(\w+)"/.exec(oldScript)![1]!;
    await site.visit({ path: 'how.html', args: PLAIN }, async (page) => {
      await inCharge(page);
      await page.evaluate(async (cache) => (await window.caches.open(cache)).put('./model/weights.bin', new Response('weights')), MODEL_CACHE);
      await page.evaluate(() => window.caches.open('somebody-else'));
      expect((await caches(page)).sort()).toEqual([MODEL_CACHE, `flashmla-site-${version}`, 'somebody-else'].sort());

      await writeFile(script, oldScript.replace(version, 'newer'));
      await writeFile(page_, oldPage.replace('</h1>', ', newer</h1>'));
      await page.reload();
      // The old version answers until the visitor wants the new one.
      const load = page.locator('[data-key=newer-version]');
      await load.waitFor();
      expect(await page.locator('h1').textContent()).not.toContain('newer');
      await page.reload();
      await load.waitFor();
      expect(await page.locator('h1').textContent()).not.toContain('newer');
      await load.click();
      await page.locator('h1', { hasText: 'newer' }).waitFor();
      expect((await caches(page)).sort()).toEqual([MODEL_CACHE, 'flashmla-site-newer', 'somebody-else'].sort());
      expect(await get(page, 'model/weights.bin')).toBe('200 weights');
    });
    await writeFile(script, oldScript);
    await writeFile(page_, oldPage);
  });

  it('is not missed where the address is not secure', async () => {
    await site.visit({ args: [...PLAIN, '--host-resolver-rules=MAP site.test 127.0.0.1'], host: 'site.test', path: 'how.html' }, async (page) => {
      expect(await page.evaluate(() => [window.isSecureContext, 'serviceWorker' in navigator])).toEqual([false, false]);
      expect(await page.locator('h1').textContent()).not.toBe('');
    });
  });
});

/** Sizes of scripts and all that they import statically. */
async function staticGraph(entries: readonly string[]): Promise<Map<string, number>> {
  const sizes = new Map<string, number>();
  const visit = async (path: string): Promise<void> => {
    if (sizes.has(path)) return;
    const code = await readFile(join(site.dir, path), 'utf8');
    sizes.set(path, Buffer.byteLength(code));
    const imports = code.matchAll(/(?:^|[;}\n])\s*(?:import|export)\s*(?:[\w$\s{},*]+?\s*from\s*)?["'`](\.{1,2}\/[^"'`]+\.js)["'`]/g);
    for (const [, imported] of imports) await visit(join(dirname(path), imported!));
  };
  for (const entry of entries) await visit(entry);
  return sizes;
}

/** The page is up and has nothing under way. */
async function settled(page: Page): Promise<void> {
  await page.waitForLoadState('load');
  if (page.url().includes('kernel.html')) await page.locator('#status', { hasText: 'Ready' }).waitFor({ state: 'attached' });
}

/** A service worker answers for the page. */
async function inCharge(page: Page): Promise<void> {
  await page.waitForFunction(() => navigator.serviceWorker.controller?.state === 'activated');
}

function get(page: Page, path: string, range?: string): Promise<string> {
  return page.evaluate(async ([at, bytes]) => {
    try {
      const response = await fetch(at!, bytes ? { headers: { range: bytes } } : {});
      return `${response.status} ${await response.text()}`;
    } catch {
      return 'no answer';
    }
  }, [site.url(path), range] as const);
}

function caches(page: Page): Promise<string[]> {
  return page.evaluate(() => window.caches.keys());
}
