/**
 * `npm run screenshots`: builds the site, does something on each page, and saves it light, dark and as wide as a phone into
 * demo/docs/screenshots/. Names of pages as arguments take only those. The adapter is the tests' (see test/software-adapter.ts).
 */
import { mkdir, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import type { Page } from 'playwright-core';
import { Site, type Visit } from '../test/site.ts';
import { toPalette } from './palette-png.ts';
import { PAGES } from './site/pages.ts';

const FOLDER = join(import.meta.dirname, 'docs', 'screenshots');
const MOST_BYTES = 260_000;

const LOOKS: readonly (Pick<Visit, 'viewport' | 'colorScheme'> & { readonly name: string })[] = [
  { name: 'light', colorScheme: 'light', viewport: { width: 1200, height: 900 } },
  { name: 'dark', colorScheme: 'dark', viewport: { width: 1200, height: 900 } },
  { name: 'phone', colorScheme: 'light', viewport: { width: 390, height: 844 } },
];

/** What is done on a page before its picture is taken. Pages that are not here show what they begin with. */
const DEEDS: Readonly<Record<string, (page: Page) => Promise<void>>> = {
  'index.html': async (page) => {
    await page.locator('#generate[aria-disabled=false]').waitFor();
    await page.click('#load-model');
    await page.locator('#status', { hasText: 'ready' }).waitFor({ timeout: 300_000 });
    await page.fill('#max-tokens', '110');
    await page.click('#generate');
    await page.locator('[data-text="1"][data-state=writing]').waitFor();
    await page.waitForTimeout(4000);
    await page.click('[data-key=fork-1]');
    await page.locator('[data-text="2"][data-state=done]').waitFor({ timeout: 300_000 });
    await page.locator('[data-text="1"][data-state=done]').waitFor({ timeout: 300_000 });
    await page.evaluate(() => (document.activeElement as HTMLElement | null)?.blur());
  },
  'how.html': async (page) => {
    await page.locator('#merge-results > *').first().waitFor({ timeout: 300_000 });
    await page.locator('#merge-verdict:not(:empty)').waitFor({ timeout: 300_000 });
  },
  'kernel.html': async (page) => {
    const told = (selector: string, words: string): Promise<void> => page.locator(selector, { hasText: words }).waitFor({ state: 'attached', timeout: 300_000 });
    await told('#status', 'Ready');
    await page.click('#run');
    await told('#status', 'Pass');
    await page.click('#compare-tiers');
    await told('#tiers-status', ' ran on ');
    await page.fill('#sweep-at', '64 128 256 512');
    await page.click('#sweep-lengths');
    await told('#tiers-status', 'points ran');
    await page.evaluate(() => (document.activeElement as HTMLElement | null)?.blur());
  },
};

const asked = process.argv.slice(2);
const files = PAGES.map(({ file }) => file).filter((file) => asked.length === 0 || asked.includes(file.replace('.html', '')));
await mkdir(FOLDER, { recursive: true });
const site = await Site.build();
try {
  for (const file of files) {
    for (const { name, ...look } of LOOKS) {
      const path = join(FOLDER, `${file.replace('.html', '')}-${name}.png`);
      await site.visit({ path: file, ...look }, async (page) => {
        await DEEDS[file]?.(page);
        const png = toPalette(await page.screenshot({ fullPage: true }));
        if (png.length > MOST_BYTES) throw new Error(`${path} would be ${png.length} bytes, over ${MOST_BYTES}`);
        await writeFile(path, png);
        console.log(`${path} ${Math.round(png.length / 1000)} kB`);
      });
    }
  }
} finally {
  await site.close();
}
