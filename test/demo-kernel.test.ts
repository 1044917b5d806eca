/**
 * The kernel page: its own float64 reference and its pure parts; then the page of the built site, on the software
 * adapter and with no WebGPU at all.
 */
import type { Browser, Page } from 'playwright-core';
import { afterAll, beforeAll, describe, expect, it } from 'vitest';
import { parseLengths, poolBlocks, presetLengths, refusal, type Preset } from '../demo/kernel/batch.ts';
import { linkHash, parseLink } from '../demo/kernel/link.ts';
import { longEnough } from '../demo/kernel/probe-kernel.ts';
import type { RunRecord } from '../demo/kernel/record.ts';
import { sweepBatches, usualLengths } from '../demo/kernel/sweep.ts';
import { TierBook } from '../demo/kernel/tiers.ts';
import { diagnose, diagnoseFailure, lacksOf } from '../demo/site/diagnosis.ts';
import { D_QK, D_V } from '../demo/kernel/shape.ts';
import { stretchesOf } from '../demo/kernel/stretches.ts';
import { TokenStore } from '../demo/kernel/token-store.ts';
import { decode16, encode16 } from '../src/bf16.ts';
import { getMlaMetadata } from '../src/schedule.ts';
import { referenceDecode } from './reference.ts';
import { Site, count, longTask, text, type Visit } from './site.ts';
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
    expect(diagnose({ ...cpu, reason: 'auto took cpu; no webgpu: no WebGPU here' }, 'auto', { secure: true, webgpu: true })?.title).toContain('workers');
    expect(diagnose({ ...cpu, reason: 'auto took cpu; no webgpu: the adapter gave no device: limits' }, 'auto', { secure: true, webgpu: true })?.title).toContain('no device');
    expect(diagnoseFailure('webgpu', { secure: true, webgpu: true }, 'WebGPU has no adapter here').title).toContain('No GPU');
    expect(diagnoseFailure('auto', { secure: true, webgpu: true }).title).toContain('did not start');
    expect(diagnose({ ...cpu, backend: 'webgpu' }, 'auto', { secure: true, webgpu: true })?.title).toContain('software');
    expect(diagnose({ ...cpu, backend: 'webgpu', software: false }, 'auto', { secure: true, webgpu: true })).toBeUndefined();
  });

  it('says which features and limits are missing', () => {
    const limits = { maxStorageBufferBindingSize: 1 << 30, maxComputeWorkgroupStorageSize: 48 << 10 };
    const all = ['timestamp-query', 'subgroups', 'shader-f16', 'chromium-experimental-subgroup-matrix'];
    const titles = (...[info]: Parameters<typeof lacksOf>): string => lacksOf(info).map(({ title }) => title).join(' ');
    expect(titles({ backend: 'webgpu', features: all, limits })).toBe('');
    expect(titles({ backend: 'cpu', features: [], limits: {} })).toBe('');
    expect(lacksOf({ backend: 'webgpu', features: [], limits })).toHaveLength(4);
    expect(titles({ backend: 'webgpu', features: all, limits: { maxStorageBufferBindingSize: 64 << 20, maxComputeWorkgroupStorageSize: 16 << 10 } })).toBe('Large buffers. Workgroup memory.');
  });

  it('remembers which tiers do not work', () => {
    const book = new TierBook();
    expect(book.worthTrying).toEqual(['base', 'subgroup', 'matrix']);
    book.learn({ tierNotes: ['matrix: no feature shader-f16'] });
    book.learn({});
    expect(book.worthTrying).toEqual(['base', 'subgroup']);
    expect(book.why('matrix')).toBe('no feature shader-f16');
  });

  it('sweeps lengths that the device takes', () => {
    const batch = { lengths: [1, 2, 3], heads: 16, sQ: 1, causal: false };
    expect(sweepBatches('128 64, 64', batch, 'software').map(({ lengths }) => lengths)).toEqual([[64, 64, 64], [128, 128, 128]]);
    expect(usualLengths(batch, 3, 'software')).toEqual([64, 128, 256, 512, 1024]);
    expect(usualLengths(batch, 3, 'gpu').at(-1)).toBe(16_384);
    expect(usualLengths(batch, 64, 'software').at(-1)).toBe(256);
    for (const bad of ['0', 'x', '100000', '1 2 3 4 5 6 7 8 9 10 11 12 13']) expect(() => sweepBatches(bad, batch, 'gpu'), bad).toThrow(/^[“A-Z3].*\.$/);
  });

  it('draws every block of a schedule once', () => {
    const cacheSeqlens = Int32Array.from([1000, 0, 64, 3000]);
    const metadata = getMlaMetadata({ cacheSeqlens, numQTokensPerHeadK: 16, numHeadsK: 1 }, { slots: 7, rowTiles: [16], minTokensPerPart: 64 });
    const drawn = stretchesOf(metadata).flatMap(({ sequence, first, end }) => Array.from({ length: end - first }, (_, i) => `${sequence}:${first + i}`));
    const all = [16, 1, 1, 47].flatMap((blocks, s) => Array.from({ length: blocks }, (_, i) => `${s}:${i}`));
    expect(drawn).toEqual(all);
  });
});

describe('the probe', () => {
  it('grows the work until the clock can tell, and no further', async () => {
    for (const perUnit of [1e-4, 0.05, 3, 200]) {
      const amounts: number[] = [];
      // A clock that goes in steps of 0.1 ms.
      const found = await longEnough(1, async (amount) => {
        amounts.push(amount);
        return Math.round(amount * perUnit * 10) / 10;
      }, () => 'device');
      expect(found.ms / found.amount).toBeCloseTo(perUnit, 5);
      expect(found.ms).toBeGreaterThanOrEqual(10);
      expect(found.ms).toBeLessThanOrEqual(Math.max(perUnit, 200));
      expect(amounts.length).toBeLessThanOrEqual(12);
    }
  });
});

describe('a link', () => {
  const run: RunRecord = {
    device: 'A GPU, “quick” & new', backend: 'webgpu', tier: 'subgroup', software: false, lengths: [4096, 17, 0], heads: 128, sQ: 2, causal: true,
    ms: 0.123456, source: 'device', runs: 15, calls: 20, check: { pass: true, rows: 768, outError: 1e-4, lseError: 1e-7, cosine: 1e-8 },
    ceilings: { reads: 812.34, bytes: 1 << 24, computes: 21.5, clock: 'device' },
  };
  const choice = { backend: 'auto', tier: 'auto' } as const;
  const hash = linkHash(run, choice)!;

  it('carries a run and its figures', () => {
    expect(parseLink(hash)).toEqual({
      batch: { lengths: [4096, 17, 0], heads: 128, sQ: 2, causal: true }, choice, backend: 'webgpu', tier: 'subgroup', device: run.device,
      ms: 0.1235, source: 'device', pass: true, reads: 812.3, computes: 21.5,
    });
    const longest = { ...run, lengths: Array.from({ length: 64 }, (_, i) => 900 + i), heads: 16, device: '\u202e' + 'x'.repeat(500) };
    expect(parseLink(linkHash(longest, choice)!)).toMatchObject({ device: 'x'.repeat(100), batch: { lengths: longest.lengths } });
    expect(linkHash({ ...run, ms: 0 }, choice)).toBeUndefined();
  });

  it('is none where the hash is something else', () => {
    for (const other of ['', '#', '#cache-title', '#runaway=1']) expect(parseLink(other)).toBeUndefined();
  });

  it.each([
    ['run', '2'], ['lengths', ''], ['lengths', '1e9'], ['lengths', '9999999'], ['heads', '0'], ['heads', '129'], ['heads', '1.5'], ['queries', '9'], ['causal', 'yes'],
    ['choice', 'cuda auto'], ['choice', 'auto fast'], ['choice', ''], ['on', 'webgpu'], ['on', 'cpu base'], ['device', ''], ['device', 'x'.repeat(101)], ['device', 'a\u0000b'],
    ['ms', '0'], ['ms', '-1'], ['ms', 'NaN'], ['ms', '1e9'], ['ms', '0x10'], ['clock', 'sun'], ['pass', '2'], ['reads', 'Infinity'], ['computes', ''], ['device', 'x'.repeat(3000)],
  ])('is refused in words when %s is %j', (name, value) => {
    const fields = new URLSearchParams(hash.slice(1));
    fields.set(name, value);
    expect(() => parseLink(`#${fields}`)).toThrow(/^[“A-Z\d].*\.$/);
    fields.delete(name);
    if (name !== 'reads' && name !== 'computes' && name !== 'run') expect(() => parseLink(`#${fields}`)).toThrow(/^[“A-Z].*\.$/);
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
      for (const figure of ['gbps', 'flops']) {
        expect(Number(await text(page, `#figure-${figure}`))).toBeGreaterThan(0);
        expect(await text(page, `#note-${figure}`)).toMatch(/^[\d.]+ % of what this adapter (reads|computes in f32), [\d.]+ (GB\/s|[TG]FLOP\/s)$/);
      }
      expect(await text(page, '#device-reads')).toMatch(/^[\d.]+ GB\/s from a buffer of 1\.05 MB, measured here$/);
      expect(await text(page, '#device-computes')).toMatch(/^[\d.]+ [TG]FLOP\/s in f32, measured here$/);

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
      expect(longTask(await browser.stopTracing())).toBeLessThan(50);
    });
  });

  it('runs on the tier asked for, and compares and sweeps all that work', async () => {
    await visit({}, async (page) => {
      await page.fill('#lengths', '65, 3');
      await page.fill('#heads', '1');
      const facts = page.locator('#device-facts dl');
      for (const tier of ['subgroup', 'base']) {
        await page.selectOption('#tier', tier);
        await status(page, 'Ready');
        expect(await facts.textContent()).toContain(`Kernel tier${tier}`);
      }
      await page.click('#run');
      await status(page, 'Pass');
      expect(await page.locator('#tier option:disabled').allTextContents()).toEqual(['matrix (not here)']);

      const told = page.locator('#tiers-status');
      await page.click('#compare-tiers');
      await told.filter({ hasText: 'ran on 2 of 2 tiers' }).waitFor();
      const rows = await page.locator('#compare-table tbody tr').evaluateAll((all) => all.map((row) => [...row.children].map((cell) => cell.textContent)));
      expect(rows.map(([tier]) => tier)).toEqual(['base', 'subgroup']);
      expect(rows.map((row) => row.at(-1))).toEqual(['pass', 'pass']);
      expect(rows[0]![4]).toBe('1 ×');

      await page.fill('#sweep-at', '0');
      await page.click('#sweep-lengths');
      expect(await told.textContent()).toBe('A sweep begins at one token.');
      await page.fill('#sweep-at', '32 8');
      await page.click('#sweep-lengths');
      await told.filter({ hasText: '4 points ran' }).waitFor();
      expect(await page.locator('#sweep-table tbody th').allTextContents()).toEqual(['8', '32']);
      const cells = await page.locator('#sweep-table tbody td').allTextContents();
      expect(cells).toHaveLength(4);
      for (const cell of cells) expect(Number(cell)).toBeGreaterThan(0);
      await page.selectOption('#sweep-measure', 'ms');
      expect(await page.locator('#sweep-table tbody td').first().textContent()).toMatch(/ ms$/);
      expect(await count(page, '#sweep-chart canvas')).toBe(1);
      const box = (await page.locator('#sweep-chart canvas').boundingBox())!;
      await page.mouse.move(box.x + box.width / 2, box.y + box.height / 2);
      expect(await text(page, '#sweep-readout')).toMatch(/^\d+ tokens a sequence: base [\d.]+ ms, subgroup [\d.]+ ms$/);

      // In one turn: the tiers could be compared before another click arrives.
      await page.evaluate(() => {
        for (const id of ['compare-tiers', 'stop-tiers']) document.getElementById(id)!.click();
      });
      await told.filter({ hasText: 'Stopped.' }).waitFor();
      expect(await page.locator('#run').getAttribute('aria-disabled')).toBe('false');
    });
  }, 400_000);

  it('gives a run away as JSON and as a link, and shows it beside a run elsewhere', async () => {
    let link = '';
    await visit({ permissions: ['clipboard-read', 'clipboard-write'] }, async (page) => {
      expect(await page.locator('#share').isVisible()).toBe(false);
      await page.fill('#lengths', '70, 5');
      await page.fill('#heads', '3');
      await page.selectOption('#tier', 'subgroup');
      await status(page, 'Ready');
      await page.click('#run');
      await status(page, 'Pass');
      const copy = async (button: string): Promise<string> => {
        await page.click(button);
        await page.locator('#copied', { hasText: 'copied' }).waitFor();
        return page.evaluate(() => navigator.clipboard.readText());
      };
      const { run, compared, swept } = JSON.parse(await copy('#copy-json')) as { run: RunRecord; compared: unknown[]; swept: unknown[] };
      expect(run).toMatchObject({ backend: 'webgpu', tier: 'subgroup', software: true, lengths: [70, 5], heads: 3, check: { pass: true, rows: 6 } });
      expect(run.ms).toBeGreaterThan(0);
      expect(run.ceilings!.reads).toBeGreaterThan(0);
      expect([compared, swept]).toEqual([[], []]);
      link = await copy('#copy-link');
      expect(parseLink(new URL(link).hash)).toMatchObject({ batch: { lengths: [70, 5], heads: 3 }, choice: { backend: 'auto', tier: 'subgroup' } });
    });

    // The same from a machine whose tier this one does not have.
    const fields = new URLSearchParams(new URL(link).hash.slice(1));
    for (const [name, value] of [['device', '<b>Other</b> GPU'], ['choice', 'auto matrix'], ['on', 'webgpu matrix'], ['ms', '0.001']] as const) fields.set(name, value);
    await visit({ path: `kernel.html#${fields}` }, async (page) => {
      expect(await page.inputValue('#lengths')).toBe('70, 5');
      expect(await page.inputValue('#heads')).toBe('3');
      expect(await page.inputValue('#tier')).toBe('auto');
      expect(await text(page, '#device-notice')).toMatch(/matrix tier does not work on this device.*subgroup tier runs.*no feature/s);
      const row = (name: string): Promise<string[]> => page.locator('#linked tbody tr').filter({ has: page.locator('th', { hasText: name }) }).locator('td').allTextContents();
      expect(await row('Device')).toEqual(['<b>Other</b> GPU', '–']);
      await page.click('#run');
      await status(page, 'Pass');
      expect(await row('Runs on')).toEqual(['webgpu, matrix tier', 'webgpu, subgroup tier']);
      expect((await row('Time a call'))[1]).toMatch(/ ms \(/);
      expect(await text(page, '#linked')).toMatch(/The other device is [\d,]+ times as fast/);
      await page.evaluate(() => { location.hash = '#run=1&lengths=oops'; });
      await page.locator('#linked .notice', { hasText: 'cannot be read, and are ignored' }).waitFor();
      expect(await page.inputValue('#lengths')).toBe('70, 5');
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
