/**
 * The kernel page: its own float64 reference and its pure parts; then the page of the built site, on the software
 * adapter and with no WebGPU at all.
 */
import type { Browser, Page } from 'playwright-core';
import { afterAll, beforeAll, describe, expect, it } from 'vitest';
import { parseLengths, poolBlocks, presetLengths, refusal, type Preset } from '../demo/kernel/batch.ts';
import { diagnose } from '../demo/site/diagnosis.ts';
import { D_QK, D_V } from '../demo/kernel/shape.ts';
import { stretchesOf } from '../demo/kernel/stretches.ts';
import { TokenStore } from '../demo/kernel/token-store.ts';
import { decode16, encode16 } from '../src/bf16.ts';
import { getMlaMetadata } from '../src/schedule.ts';
import { referenceDecode } from './reference.ts';
import { Site, count, longestTask, text, type Visit } from './site.ts';
import { chromiumLaunchOptions } from './software-adapter.ts';

describe('the demo’s reference', () => {
  const lengths = [300, 0, 65];
  const [heads, sQ] = [3, 2];

  function decodeByOracle(store: TokenStore, causal: boolean): { out: Uint16Array; lse: Float32Array } {
    const ids = lengths.map((_, i) => i);
    const rows = decode16('bf16', store.append(ids, lengths));
    const q = decode16('bf16', store.query(lengths.length * sQ * heads));
    // One block a sequence: the oracle's pages and the store's runs then hold the same rows in the same order.
    const blockSize = Math.max(...lengths);
    const kvCache = new Float32Array(lengths.length * blockSize * D_QK);
    let from = 0;
    lengths.forEach((length, i) => {
      kvCache.set(rows.subarray(from, (from += length * D_QK)), i * blockSize * D_QK);
    });
    const { out, lse } = referenceDecode({ q, kvCache, blockTable: Int32Array.from(ids), cacheSeqlens: lengths, sQ, hQ: heads, hKv: 1, dQk: D_QK, dV: D_V, blockSize, causal });
    return { out: encode16('bf16', Float32Array.from(out)), lse: Float32Array.from(lse) };
  }

  it.each([false, true])('agrees with the oracle, causal %s', (causal) => {
    const store = new TokenStore();
    store.reset(7);
    const report = store.check({ sequences: [0, 1, 2], heads, sQ, causal, ...decodeByOracle(store, causal) });
    expect(report).toMatchObject({ pass: true, rows: 18, rowsInAll: 18, emptyRows: 6 });
    expect(report.outError).toBeLessThan(2e-4);
    expect(report.lseError).toBeLessThan(1e-6);
  });

  it('fails what is wrong', () => {
    const store = new TokenStore();
    const good = decodeByOracle(store, false);
    const check = (change: (result: typeof good) => void): boolean => {
      const result = { out: good.out.slice(), lse: good.lse.slice() };
      change(result);
      return store.check({ sequences: [0, 1, 2], heads, sQ, causal: false, ...result }).pass;
    };
    expect(check(() => undefined)).toBe(true);
    expect(check(({ out }) => (out[5] = 0x3f80))).toBe(false);
    expect(check(({ out }) => (out[5] = 0x7fc0))).toBe(false);
    expect(check(({ out }) => out.fill(0))).toBe(false);
    expect(check(({ lse }) => (lse[0]! += 0.01))).toBe(false);
    expect(check(({ lse }) => (lse[heads * sQ] = 0))).toBe(false); // sequence 1 is empty
  });
});

describe('the demo’s decisions', () => {
  it('reads lengths and refuses in words', () => {
    expect(parseLengths('1024, 257 64; 2x700')).toEqual([1024, 257, 64, 700, 700]);
    for (const bad of ['', 'x', '12.5', '-3', '1e9', '65x1', '99999999']) expect(() => parseLengths(bad), bad).toThrow(/^[“A-Z].*\.$/);
  });

  it.each(['even', 'ragged', 'long', 'zeros'] as Exclude<Preset, 'custom'>[])('takes its own presets: %s', (preset) => {
    for (const power of ['gpu', 'software'] as const) {
      for (const sequences of [1, 2, 4, 17, 64]) {
        const lengths = presetLengths(preset, sequences, power);
        expect(lengths).toHaveLength(sequences);
        expect(refusal({ heads: 16, sQ: 1, causal: false }, lengths, power), `${power} ${sequences}`).toBeUndefined();
        expect(poolBlocks(lengths)).toBeGreaterThan(0);
      }
    }
  });

  it('keeps sizes to what the device can answer soon', () => {
    expect(refusal({ heads: 128, sQ: 1, causal: false }, [16_000], 'software')).toContain('GFLOP');
    expect(refusal({ heads: 128, sQ: 1, causal: false }, [16_000], 'gpu')).toBeUndefined();
    expect(refusal({ heads: 1, sQ: 1, causal: false }, [70_000], 'gpu')).toContain('65,536');
    expect(refusal({ heads: 128, sQ: 8, causal: false }, Array.from({ length: 64 }, () => 1), 'gpu')).toContain('query rows');
  });

  it('says why there is no WebGPU', () => {
    const cpu = { backend: 'cpu', reason: '', device: '', features: [], limits: {}, software: true, schedule: { slots: 1, rowTiles: [1], minTokensPerPart: 1 } } as const;
    expect(diagnose(cpu, 'auto', { secure: false, webgpu: false })?.title).toContain('not loaded securely');
    expect(diagnose(cpu, 'auto', { secure: true, webgpu: false })?.title).toContain('no WebGPU');
    expect(diagnose(cpu, 'auto', { secure: true, webgpu: true })?.title).toContain('No GPU');
    expect(diagnose(cpu, 'cpu', { secure: true, webgpu: true })).toBeUndefined();
    expect(diagnose({ ...cpu, backend: 'webgpu' }, 'auto', { secure: true, webgpu: true })?.title).toContain('software');
    expect(diagnose({ ...cpu, backend: 'webgpu', software: false }, 'auto', { secure: true, webgpu: true })).toBeUndefined();
  });

  it('draws every block of a schedule once', () => {
    const cacheSeqlens = Int32Array.from([1000, 0, 64, 3000]);
    const metadata = getMlaMetadata({ cacheSeqlens, numQTokensPerHeadK: 16, numHeadsK: 1 }, { slots: 7, rowTiles: [16], minTokensPerPart: 64 });
    const drawn = stretchesOf(metadata).flatMap(({ sequence, first, end }) => Array.from({ length: end - first }, (_, i) => `${sequence}:${first + i}`));
    const all = [16, 1, 1, 47].flatMap((blocks, s) => Array.from({ length: blocks }, (_, i) => `${s}:${i}`));
    expect(drawn).toEqual(all);
  });
});

describe('the kernel page', () => {
  let site: Site;

  beforeAll(async () => { site = await Site.build(); });
  afterAll(async () => { await site?.close(); });

  const visit = (how: Visit, see: (page: Page, browser: Browser) => Promise<void>): Promise<void> =>
    site.visit({ path: 'kernel.html', ...how }, async (page, browser) => {
      await status(page, 'Ready');
      await see(page, browser);
    });
  const status = (page: Page, words: string): Promise<void> => page.locator('#status', { hasText: words }).waitFor({ state: 'attached' });
  const stats = (page: Page): Promise<string> => text(page, '#cache-stats');
  /** Block tables as the page shows them. */
  const tables = (page: Page): Promise<number[][]> =>
    page.locator('#sequence-rows .chips').evaluateAll((rows) => rows.map((row) => [...row.querySelectorAll('.chip')].map((chip) => Number(chip.textContent))));
  /** A corner pixel of each of the first blocks in the picture of the pool. */
  const cellColors = (page: Page, blocks: number): Promise<string[]> =>
    page.locator('#pool').evaluate((canvas, n) => Array.from({ length: n }, (_, i) =>
      (canvas as HTMLCanvasElement).getContext('2d')!.getImageData(2 + 32 * i + 5, 2 + 5, 1, 1).data.join()), blocks);

  it('decodes on webgpu, shows the cache, and lets it be changed', async () => {
    await visit({}, async (page, browser) => {
      expect(await text(page, '#device-backend')).toBe('webgpu');
      expect(await text(page, '#device-name')).not.toBe('');
      await page.selectOption('#preset', 'even');
      await page.fill('#sequences', '3');
      expect(await page.inputValue('#lengths')).toBe('3x256');
      await page.fill('#lengths', '130, 64, 1');
      expect(await page.inputValue('#preset')).toBe('custom');

      await browser.startTracing(page, { categories: ['toplevel', 'devtools.timeline', '__metadata'] });
      await page.click('#run');
      await status(page, 'Pass');
      // 3 + 1 + 1 blocks, and four more to grow into.
      expect(await stats(page)).toMatch(/^5 of 9 blocks in use .* 0 shared, 4 free · 195 tokens$/);
      expect(await tables(page)).toEqual([[0, 3, 4], [1], [2]]);
      const [a, b, c, ...rest] = await cellColors(page, 9);
      expect(new Set([a, b, c]).size).toBe(3);
      expect(rest).toEqual([a, a, rest[2], rest[2], rest[2], rest[2]]);
      expect([a, b, c]).not.toContain(rest[2]);
      expect(await count(page, '#schedule-rows .stretch')).toBeGreaterThanOrEqual(3);
      for (const figure of ['gbps', 'tflops']) expect(Number(await text(page, `#figure-${figure}`))).toBeGreaterThan(0);

      // Sequence 1 fills its block exactly: one token more takes another.
      await page.click('#append');
      await status(page, 'one token longer');
      expect(await stats(page)).toMatch(/^6 of 9 blocks in use .* 0 shared, 3 free · 198 tokens$/);
      await page.click('[data-key=fork-0]');
      await status(page, 'Sequence 3 is a fork of sequence 0');
      expect(await stats(page)).toContain('3 shared');
      expect(await tables(page)).toEqual([[0, 3, 4], [1, 5], [2], [0, 3, 4]]);
      await page.hover('#pool', { position: { x: 10, y: 10 } });
      expect(await text(page, '#cache-readout')).toBe('Block 0: shared by sequence 0, tokens 0 to 63 and sequence 3, tokens 0 to 63');
      expect(await count(page, '#sequence-rows .chip.lit')).toBe(2);
      await page.click('#append');
      await status(page, 'one token longer');
      // The last block was written to by both, so one of them has a copy.
      expect(await tables(page)).toEqual([[0, 3, 6], [1, 5], [2], [0, 3, 4]]);
      expect(await count(page, '#sequence-rows .chip.shared')).toBe(4);
      await page.click('#decode-again');
      await status(page, 'Pass');
      await page.click('[data-key=free-0]');
      await status(page, 'Sequence 0 is freed');
      expect(await tables(page)).toEqual([[1, 5], [2], [0, 3, 4]]);
      expect(await count(page, '#sequence-rows .chip.shared')).toBe(0);
      await page.click('#decode-again');
      await status(page, 'Pass');
      expect(longestTask(await browser.stopTracing())).toBeLessThan(100);
    });
  });

  it('tells a refusal and changes nothing', async () => {
    await visit({}, async (page) => {
      await page.fill('#lengths', '64, oops');
      expect(await text(page, '#problem')).toContain('“oops” is not a length');
      await page.click('#run');
      expect(await page.evaluate(() => document.activeElement?.id)).toBe('lengths');
      await page.fill('#lengths', '7x64');
      await page.selectOption('#backend', 'cpu');
      await status(page, 'Ready');
      await page.click('#append');
      await page.locator('#banner', { hasText: 'pool-exhausted' }).waitFor();
      expect(await stats(page)).toMatch(/^7 of 11 blocks in use .* 4 free/);
    });
  });

  it('survives a lost device', async () => {
    await visit({}, async (page) => {
      await page.click('#run');
      await status(page, 'Compiling');
      await page.click('[data-key=lose]');
      await page.locator('#banner', { hasText: 'The GPU device was lost' }).waitFor();
      expect(await page.locator('#run').getAttribute('aria-disabled')).toBe('true');
      await page.click('[data-key=start-again]');
      await status(page, 'Ready');
      await page.fill('#lengths', '65');
      await page.click('#run');
      await status(page, 'Pass');
      expect(await text(page, '#device-backend')).toBe('webgpu');
    });
  });

  it('falls back to the cpu where there is no adapter', async () => {
    await visit({ args: ['--no-sandbox'] }, async (page) => {
      expect(await text(page, '#device-backend')).toBe('cpu');
      expect(await text(page, '#device-notice')).toMatch(/WebGPU.*cpu backend/s);
      await page.selectOption('#preset', 'zeros');
      await page.fill('#queries', '2');
      await page.check('#causal');
      await page.click('#run');
      await status(page, 'Pass');
      expect(await text(page, '#result')).toContain('nothing to attend to');
      await page.selectOption('#backend', 'webgpu');
      await page.click('[data-key=use-cpu]');
      await status(page, 'Ready');
    });
  });

  it('names an address that hides WebGPU', async () => {
    const { args } = await chromiumLaunchOptions();
    await visit({ args: [...args, '--host-resolver-rules=MAP demo.test 127.0.0.1'], host: 'demo.test' }, async (page) => {
      expect(await text(page, '#device-notice')).toContain('not loaded securely');
      expect(await text(page, '#device-backend')).toBe('cpu');
    });
  });

  it('fits a phone and the keyboard', async () => {
    await visit({ args: ['--no-sandbox'], viewport: { width: 390, height: 800 } }, async (page) => {
      expect(await page.evaluate(() => document.documentElement.scrollWidth)).toBe(390);
      expect(await page.locator('input, select, textarea').evaluateAll((all) => all.filter((control) => (control as HTMLInputElement).labels?.length !== 1).length)).toBe(0);
      await page.locator('#decode-again').focus();
      await page.keyboard.press('Tab');
      await page.keyboard.press('ArrowRight');
      expect(await text(page, '#cache-readout')).toMatch(/^Block 1: sequence \d, tokens/);
      await page.locator('[data-key=fork-1]').press('Enter');
      await status(page, 'is a fork');
      expect(await page.evaluate(() => document.activeElement?.getAttribute('data-key'))).toBe('fork-1');
    });
  });
});
