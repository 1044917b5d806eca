/**
 * The first page: its pure parts; then the page of the built site, on the software adapter and with no WebGPU at all. The model is
 * demo/model's, or while that has no weights a stand-in of the same architecture.
 */
import { cp, mkdtemp, readFile, rm, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { basename, join } from 'node:path';
import type { Browser, Page } from 'playwright-core';
import { afterAll, beforeAll, describe, expect, it } from 'vitest';
import { Announcer } from '../demo/generate/announcer.ts';
import { Speed } from '../demo/generate/speed.ts';
import { loadTrouble, textTrouble } from '../demo/generate/trouble.ts';
import { Site, count, longTask, text, type Visit } from './site.ts';

describe('its parts', () => {
  it('takes tokens a second from the time in which something is written', () => {
    const speed = new Speed();
    expect(speed.state(0)).toEqual({ now: undefined, mean: undefined, tokens: 0 });
    speed.setWriting(true, 1000);
    for (let at = 1100; at <= 5000; at += 100) speed.token(at);
    expect(speed.state(5000)).toEqual({ now: 10.5, mean: 10, tokens: 40 });
    speed.setWriting(false, 5000);
    expect(speed.state(60_000)).toEqual({ now: undefined, mean: 10, tokens: 40 });
    speed.setWriting(true, 70_000);
    speed.token(70_500);
    expect(speed.state(71_000)).toMatchObject({ now: 1, mean: 8.2 });
  });

  it('reads out a sentence now and then', () => {
    const region = { textContent: '' };
    let now = 0;
    const announcer = new Announcer(region as unknown as HTMLElement, () => now);
    announcer.written('It was');
    expect(region.textContent).toBe('');
    announcer.written(' late. The');
    expect(region.textContent).toBe('It was late.');
    announcer.written(' moon rose. A dog');
    now = 7000;
    announcer.written(' barked. Then');
    expect(region.textContent).toBe('A dog barked.');
    announcer.say('Text 1 has stopped.');
    expect(region.textContent).toBe('Text 1 has stopped.');
  });

  it('has plain words for what goes wrong', () => {
    expect(loadTrouble({ code: 'unsupported-model' }, 'hub').text).toContain('deepseek_v3');
    expect(loadTrouble({ code: 'invalid-file' }, 'folder').text).toContain('config.json');
    expect(loadTrouble({ code: 'limit-exceeded' }, 'hub').title).toContain('Too large');
    expect(textTrouble({ code: 'pool-exhausted' }).title).toBe('The cache is full');
    expect(textTrouble({ code: 'internal' }).title).toContain('defect');
  });
});

describe('the page', () => {
  let site: Site;
  let standIn: string;

  beforeAll(async () => {
    standIn = await mkdtemp(join(tmpdir(), 'flashmla-model-'));
    await cp(join(import.meta.dirname, 'fixtures/models/tiny-v3'), standIn, { recursive: true });
    await cp(join(import.meta.dirname, 'model/tokenizer.json'), join(standIn, 'tokenizer.json'));
    // Its weights are random: it would end a text at any time.
    const { eos_token_id: _, ...config } = JSON.parse(await readFile(join(standIn, 'config.json'), 'utf8')) as Record<string, unknown>;
    await writeFile(join(standIn, 'config.json'), JSON.stringify(config));
    site = await Site.build();
  });
  afterAll(async () => {
    await site?.close();
    await rm(standIn, { recursive: true, force: true });
  });

  const visit = (how: Visit, see: (page: Page, browser: Browser) => Promise<void>): Promise<void> =>
    site.visit(how, async (page, browser) => {
      await page.locator('#generate[aria-disabled=false]').waitFor();
      await see(page, browser);
    });
  const status = (page: Page, words: string): Promise<void> => page.locator('#status', { hasText: words }).waitFor();
  const load = async (page: Page): Promise<void> => {
    await page.click('#load-model');
    await status(page, 'ready');
  };
  const state = (page: Page, id: number, states: string): Promise<void> => page.locator(states.split(' ').map((name) => `[data-text="${id}"][data-state=${name}]`).join(', ')).waitFor();
  const prose = (page: Page, id: number): Promise<string> => text(page, `[data-text="${id}"] .prose`);
  const stats = async (page: Page): Promise<{ taken: number; shared: number }> => {
    const [, taken, shared] = /^(\d+) of \d+ blocks taken, (\d+) shared/.exec(await text(page, '#cache-stats')) ?? [];
    return { taken: Number(taken), shared: Number(shared) };
  };
  const modelRequests = (): number => site.requests.filter((path) => path.startsWith('model/')).length;
  /** More than a block of any tokenizer's tokens. */
  const LONG = 'Once upon a time there was '.repeat(16);

  it('writes several texts at once, forks and ends them, and keeps the page free', async () => {
    await visit({}, async (page, browser) => {
      expect(await text(page, '#load-model')).toMatch(/^Load the model \([\d.]+ MB\)$/);
      await load(page);
      expect(await text(page, '#model-facts')).toContain('deepseek_v3');
      expect(await stats(page)).toEqual({ taken: 0, shared: 0 });

      await browser.startTracing(page, { categories: ['toplevel', 'devtools.timeline', '__metadata'] });
      await page.click('summary');
      await page.check('#greedy');
      expect(await text(page, '#sampling-summary')).toContain('greedy');
      await page.fill('#max-tokens', '300');
      await page.fill('#prompt', LONG);
      await page.click('#generate');
      await page.fill('#prompt', 'Once upon a time');
      await page.keyboard.press('Control+Enter');
      await Promise.all([state(page, 1, 'writing'), state(page, 2, 'writing')]);
      expect((await stats(page)).taken).toBeGreaterThanOrEqual(3);
      expect(await text(page, '#latent-bytes')).not.toBe('0 B');
      expect(await text(page, '#ratio')).toMatch(/^of all heads: [\d.]+ times as much$/);
      await page.waitForFunction(() => Number(document.querySelector('#speed-now')!.textContent) > 0);

      await page.click('[data-key=fork-1]');
      await state(page, 3, 'writing');
      expect((await stats(page)).shared).toBeGreaterThanOrEqual(1);
      await page.hover('#pool', { position: { x: 10, y: 10 } });
      expect(await text(page, '#cache-readout')).toMatch(/^Block 0: text 1, tokens 0 to 63 and text 3, tokens 0 to 63$/);
      await page.click('#stop-all');
      for (const id of [1, 2, 3]) await state(page, id, 'stopped');
      expect(await page.getAttribute('#stop-all', 'aria-disabled')).toBe('true');

      // One that has stopped can be forked as well: it goes on with the same words.
      await page.fill('#max-tokens', '3');
      await page.click('[data-key=fork-2]');
      await state(page, 4, 'done');
      expect((await prose(page, 4)).startsWith(await prose(page, 2))).toBe(true);
      expect(await text(page, '[data-text="4"] .progress-words')).toMatch(/done · \d+ tokens, \d+ of them inherited/);

      for (const id of [1, 3, 2, 4]) await page.click(`[data-key=end-${id}]`);
      await page.locator('#cache-stats', { hasText: /^0 of 64 blocks taken, 0 shared, 64 free$/ }).waitFor();
      expect(await text(page, '#latent-bytes')).toBe('0 B');
      expect(await count(page, '.text')).toBe(0);
      expect(longTask(await browser.stopTracing())).toBeLessThan(50);
    });
  });

  it('shows how far loading is, aborts it, loads again, and needs no network the second time', async () => {
    await visit({}, async (page) => {
      let open = (): void => undefined;
      const opened = new Promise<void>((resolve) => {
        open = resolve;
      });
      site.gate = (path) => (path.endsWith('.safetensors') ? opened : Promise.resolve());
      try {
        await page.click('#load-model');
        await status(page, 'Fetching the model');
        await page.locator('#progress[value]').waitFor();
        expect(await page.evaluate(() => document.activeElement?.id)).toBe('abort-load');
        await page.click('#abort-load');
        await status(page, 'aborted');
        expect(await page.isVisible('#progress')).toBe(false);
      } finally {
        site.gate = undefined;
        open();
      }
      await load(page);
      await page.reload();
      await status(page, 'kept in this browser');
      const before = modelRequests();
      // Without loading first: it is loaded for the text.
      await page.fill('#max-tokens', '4');
      await page.click('#generate');
      await state(page, 1, 'done');
      expect(modelRequests()).toBe(before);
    });
  });

  it('takes a folder, chosen or dropped, and says what is wrong with one', async () => {
    await visit({}, async (page) => {
      await page.setInputFiles('#folder', standIn);
      await status(page, 'ready');
      expect(await text(page, '#model-facts')).toContain(basename(standIn));
      expect(await text(page, '#model-facts')).toContain('320 tokens');
      await page.fill('#max-tokens', '3');
      await page.click('#generate');
      await state(page, 1, 'done');

      await page.setInputFiles('#folder', join(import.meta.dirname, 'fixtures/models/tiny-v2'));
      await page.locator('#banner', { hasText: 'no model to read in that folder' }).waitFor();
      expect(await text(page, '#banner')).toContain('tokenizer.json');
      // The one that was there still is.
      expect(await text(page, '#model-facts')).toContain(basename(standIn));
      await page.click('[data-key=fork-1]');
      await state(page, 2, 'done');

      await drop(page, '#model', standIn);
      await page.locator('[data-text="1"].gone').waitFor();
      await status(page, 'ready');
      expect(await count(page, '#banner *')).toBe(0);
      await page.click('[data-key=load-shipped]');
      await page.locator('#model-facts', { hasText: 'The model of this site' }).waitFor();
    });
  });

  it('takes a model of the hub, and tells what the hub refuses', async () => {
    await visit({}, async (page) => {
      const headers = { 'access-control-allow-origin': '*', 'access-control-allow-headers': 'range' };
      await page.route('https://huggingface.co/**', async (route) => {
        const [, repository, file] = /^https:\/\/huggingface.co\/(.*)\/resolve\/main\/(.*)$/.exec(route.request().url()) ?? [];
        const body = repository === 'some/model' ? await readFile(join(standIn, file!)).catch(() => undefined) : undefined;
        // A page in place of a file is what it has instead of a 404 that the console would report.
        await route.fulfill(body ? { headers, body } : { headers: { ...headers, 'content-type': 'text/html' }, body: 'none' });
      });
      const ask = async (name: string): Promise<void> => {
        await page.fill('#hub', name);
        await page.click('#load-hub');
      };
      await ask('nonsense');
      await page.locator('#banner', { hasText: 'not the name of a model' }).waitFor();
      await ask('no/such');
      await page.locator('#banner', { hasText: 'The hub gave no such model' }).waitFor();
      expect(await text(page, '#banner code')).toBe('invalid-file');
      await ask('some/model');
      await status(page, 'ready');
      expect(await text(page, '#model-facts')).toContain('some/model');
      expect(await count(page, '#banner *')).toBe(0);
    });
  });

  it('survives a lost device', async () => {
    await visit({}, async (page) => {
      await load(page);
      await page.fill('#max-tokens', '300');
      await page.click('#generate');
      await state(page, 1, 'writing');
      await page.click('[data-key=lose]');
      await page.locator('#banner', { hasText: 'The GPU device was lost' }).waitFor();
      const written = await prose(page, 1);
      expect(await page.getAttribute('#generate', 'aria-disabled')).toBe('true');
      expect(await page.evaluate(() => document.activeElement?.getAttribute('data-key'))).toBe('start-again');
      const before = modelRequests();
      await page.keyboard.press('Enter');
      await status(page, 'ready');
      expect(modelRequests()).toBe(before);
      expect(await prose(page, 1)).toBe(written);
      expect(await page.getAttribute('[data-key=fork-1]', 'aria-disabled')).toBe('true');
      await page.fill('#max-tokens', '3');
      await page.click('#generate');
      await state(page, 2, 'done');
      expect(await text(page, '#device-backend')).toBe('webgpu');
    });
  });

  it('writes on the cpu where there is no adapter, and stops in the middle', async () => {
    await visit({ args: ['--no-sandbox'] }, async (page) => {
      expect(await text(page, '#device-backend')).toBe('cpu');
      expect(await text(page, '#device-notice')).toMatch(/WebGPU.*cpu backend/s);
      await page.fill('#max-tokens', '4000');
      await page.click('summary');
      await page.fill('#seed', '7');
      await page.click('#generate');
      await state(page, 1, 'writing done');
      await page.click('#stop-all').catch(() => undefined);
      await state(page, 1, 'stopped done');
    });
  });

  it('fits a phone, the keyboard and a screen reader', async () => {
    await visit({ viewport: { width: 390, height: 800 } }, async (page) => {
      const controls = page.locator('input, select, textarea');
      expect(await controls.evaluateAll((all) => all.filter((control) => (control as HTMLInputElement).labels?.length !== 1).length)).toBe(0);
      await page.fill('#max-tokens', '0');
      expect(await text(page, '#problem')).toBe('Tokens: a whole number from 1 to 4096.');
      await page.click('#generate');
      expect(await page.evaluate(() => document.activeElement?.id)).toBe('max-tokens');
      await page.fill('#max-tokens', '3');
      await page.locator('#load-model').press('Enter');
      await status(page, 'ready');
      for (const id of [1, 2]) {
        await page.locator('#generate').press('Enter');
        await state(page, id, 'done');
      }
      await page.locator('#announcer', { hasText: 'Text 2 has stopped after' }).waitFor({ state: 'attached' });
      expect(await page.evaluate(() => document.documentElement.scrollWidth)).toBe(390);
      await page.locator('[data-key=end-2]').press('Enter');
      expect(await page.evaluate(() => document.activeElement?.getAttribute('data-key'))).toBe('end-1');
      await page.keyboard.press('Enter');
      expect(await page.evaluate(() => document.activeElement?.id)).toBe('generate');
    });
  });
});

/** Drops a folder of this machine, as a user does: the page sees directory entries. */
async function drop(page: Page, selector: string, folder: string): Promise<void> {
  await page.locator(selector).scrollIntoViewIfNeeded();
  const box = (await page.locator(selector).boundingBox())!;
  const client = await page.context().newCDPSession(page);
  for (const type of ['dragEnter', 'dragOver', 'drop'] as const) {
    await client.send('Input.dispatchDragEvent', { type, x: box.x + 20, y: box.y + 20, data: { items: [], files: [folder], dragOperationsMask: 1 } });
  }
}
