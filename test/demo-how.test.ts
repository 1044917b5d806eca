/** The page How it works: its arithmetic against the oracle, then each figure of the built site against values from src/. */
import { readFile, stat } from 'node:fs/promises';
import { join } from 'node:path';
import type { Page } from 'playwright-core';
import { afterAll, beforeAll, describe, expect, test } from 'vitest';
import { SMALL, absorbed, largestDifference, perHead, randomProblem } from '../demo/how/absorption.ts';
import { parseNumber, rounded } from '../demo/how/bits.ts';
import { mergeByLse } from '../demo/how/merge.ts';
import { randomQuery, splitOf, TOKENS } from '../demo/how/one-query.ts';
import { scheduleOf } from '../demo/how/split-figure.ts';
import { tokenCost } from '../demo/how/token-cost.ts';
import { stretchesOf } from '../demo/kernel/stretches.ts';
import { decode16, encode16, fromBf16, toBf16 } from '../src/bf16.ts';
import { createMla } from '../src/index.ts';
import { PART_STRIDE } from '../src/schedule.ts';
import { referenceDecode } from './reference.ts';
import { Site, count, text, type Visit } from './site.ts';

const BLOCK = 64;
const [D_QK, D_V] = [576, 512];
const NO_WEBGPU: Visit = { args: ['--no-sandbox'] };

describe('absorbed attention', () => {
  test('is attention over the latents, as the oracle computes it', () => {
    const { sizes: { heads, tokens, latent, nope, rope, value }, latents, ropeKeys, query, ropeQuery, uk, uv } = randomProblem(3);
    const width = latent + rope;
    const kvCache = Float64Array.from({ length: tokens * width }, (_, i) => {
      const [t, d] = [Math.floor(i / width), i % width];
      return d < latent ? latents[t * latent + d]! : ropeKeys[t * rope + d - latent]!;
    });
    const q = Float64Array.from({ length: heads * width }, (_, i) => {
      const [h, d] = [Math.floor(i / width), i % width];
      if (d >= latent) return ropeQuery[h * rope + d - latent]!;
      return Array.from({ length: nope }, (_, n) => query[h * nope + n]! * uk[(h * nope + n) * latent + d]!).reduce((a, b) => a + b);
    });
    const { out } = referenceDecode({ q, kvCache, blockTable: [0], cacheSeqlens: [tokens], sQ: 1, hQ: heads, hKv: 1, dQk: width, dV: latent, blockSize: tokens, softmaxScale: (nope + rope) ** -0.5 });
    const want = Array.from({ length: heads * value }, (_, i) => {
      const h = Math.floor(i / value);
      return Array.from({ length: latent }, (_, d) => out[h * latent + d]! * uv[i * latent + d]!).reduce((a, b) => a + b);
    });
    expect(largestDifference(absorbed(randomProblem(3)), want)).toBeLessThan(1e-13);
  });

  test.each([1, 2, 3])('equals attention per head, seed %i', (seed) => {
    const problem = randomProblem(seed);
    expect(largestDifference(perHead(problem), absorbed(problem))).toBeLessThan(1e-14);
    expect(Math.max(...perHead(problem).map(Math.abs))).toBeGreaterThan(0.1);
  });
});

/** The page's query over some of its tokens, in float64. */
function oracle(seed: number, first: number, end: number): { out: Float64Array; lse: number } {
  const { q, kv } = randomQuery(seed);
  const round = (values: Float32Array): Float32Array => decode16('bf16', encode16('bf16', values));
  const { out, lse } = referenceDecode({
    q: round(q), kvCache: round(kv.subarray(first * BLOCK * D_QK, end * BLOCK * D_QK)), blockTable: Array.from({ length: end - first }, (_, i) => i),
    cacheSeqlens: [(end - first) * BLOCK], sQ: 1, hQ: 1, hKv: 1, dQk: D_QK, dV: D_V, blockSize: BLOCK,
  });
  return { out, lse: lse[0]! };
}

describe('merging by LSE', () => {
  test.each([1, 2, 3, 5, 8])('%i parts give the whole', (slots) => {
    const merged = mergeByLse(stretchesOf(splitOf(slots)).map(({ first, end }) => oracle(1, first, end)));
    const whole = oracle(1, 0, TOKENS / BLOCK);
    expect(merged.lse).toBeCloseTo(whole.lse, 10);
    expect(largestDifference(merged.out, whole.out)).toBeLessThan(1e-12);
    expect(merged.weights.reduce((a, b) => a + b)).toBeCloseTo(1, 12);
  });
});

describe('typed numbers', () => {
  test('are read, or refused in words', () => {
    expect(['0.1', ' -3e-5 ', '1e40', '−2', '0x10'].map(parseNumber)).toEqual([0.1, -3e-5, 1e40, -2, 16]);
    expect(['nan', '-infinity', 'Inf'].map(parseNumber)).toEqual([NaN, -Infinity, Infinity]);
    for (const bad of ['', 'x', '1,5', '--1']) expect(() => parseNumber(bad), bad).toThrow(/^“.*\.$/);
  });

  test('are rounded as the package rounds', () => {
    expect(rounded(1 + 2 ** -8)).toMatchObject({ bits: 0x3f80, rounded: 1, error: -(2 ** -8) });
    expect(rounded(1 + 3 * 2 ** -8)).toMatchObject({ bits: 0x3f82, rounded: 1 + 2 ** -6 });
    expect(rounded(NaN)).toMatchObject({ bits: 0x7fc0, error: 0 });
    expect(rounded(Infinity)).toMatchObject({ bits: 0x7f80, error: 0 });
    expect(rounded(-0)).toMatchObject({ bits: 0x8000, error: 0 });
  });
});

describe('the page', () => {
  let site: Site;
  beforeAll(async () => { site = await Site.build(); });
  afterAll(async () => { await site?.close(); });

  /** Once every figure is there. */
  const visit = (how: Visit, see: (page: Page) => Promise<void>): Promise<void> =>
    site.visit({ path: 'how.html', ...how }, async (page) => {
      await page.locator('#pool-sequences li').waitFor();
      await page.locator('#merge-verdict', { hasText: 'rounding' }).waitFor();
      await page.locator('#bf16-gpu', { hasNotText: 'Looking' }).waitFor();
      await see(page);
    });
  const slide = (page: Page, id: string, value: number): Promise<void> =>
    page.locator(id).evaluate((input, to) => {
      (input as HTMLInputElement).value = String(to);
      input.dispatchEvent(new Event('input'));
    }, value);
  const cells = (page: Page, table: string): Promise<string[][]> =>
    page.locator(`${table} tbody tr`).evaluateAll((rows) => rows.map((row) => [...row.children].map((cell) => cell.textContent ?? '')));
  const tables = (page: Page): Promise<number[][]> =>
    page.locator('#pool-sequences .chips').evaluateAll((all) => all.map((one) => [...one.querySelectorAll('.chip')].map((chip) => Number(chip.textContent))));
  const told = (page: Page, words: string): Promise<void> => page.locator('#pool-story', { hasText: words }).waitFor();

  test('brings less than 100 kB of script to its first paint', async () => {
    const html = await readFile(join(site.dir, 'how.html'), 'utf8');
    const scripts = [...html.matchAll(/(?:src|href)="(\.\/[^"]+\.js)"/g)].map(([, path]) => path!);
    expect(scripts.length).toBeGreaterThan(0);
    const sizes = await Promise.all(scripts.map(async (path) => (await stat(join(site.dir, path))).size));
    expect(sizes.reduce((a, b) => a + b)).toBeLessThan(100_000);
  });

  test('latent: bytes follow the heads, and both ways give one output', async () => {
    await visit({}, async (page) => {
      expect([await text(page, '#latent-all'), await text(page, '#latent-one'), await text(page, '#latent-ratio')]).toEqual(['81,920 B', '1,152 B', '71.1 times']);
      expect(await text(page, '#latent-context')).toContain('9.21 GB instead of 655 GB');
      for (const heads of [1, 16, 77]) {
        await slide(page, '#latent-heads', heads);
        const { bytes, ratio } = tokenCost(heads);
        expect(await text(page, '#latent-all')).toBe(`${bytes.toLocaleString('en-US')} B`);
        expect(Number.parseFloat(await text(page, '#latent-ratio'))).toBeCloseTo(Math.max(ratio, 1 / ratio), 1);
        expect(await count(page, '#latent-picture rect')).toBe(2 + 3 * heads);
      }
      expect(await cells(page, '#latent-table')).toHaveLength(3);

      const strips = (): Promise<(string | null)[]> => page.locator('.strip').evaluateAll((all) => all.map((one) => one.getAttribute('aria-label')));
      const before = await strips();
      expect(before).toHaveLength(2 * SMALL.heads);
      for (let h = 0; h < SMALL.heads; h++) expect(before[2 * h]!.replace('Per head', '')).toBe(before[2 * h + 1]!.replace('Absorbed', ''));
      await page.click('#absorption-again');
      expect(await strips()).not.toEqual(before);
      const [, difference] = /difference: ([^,]+), of/.exec(await text(page, '#absorption-verdict'))!;
      expect(Number(difference!.replace('−', '-'))).toBeLessThan(1e-14);
    });
  });

  test('paging: block tables are the package’s own, and a refusal changes nothing', async () => {
    const mla = await createMla({ backend: 'cpu' });
    const cache = await mla.createKvCache({ numBlocks: 24 });
    const reserve = (id: number, n: number): Promise<unknown> => cache.reserve({ sequences: [id], counts: [n] });
    const expected = (...ids: number[]): number[][] => ids.map((id) => [...cache.blocks(id)]);
    cache.createSequence();
    await reserve(0, 150);

    await visit({}, async (page) => {
      expect(await tables(page)).toEqual(expected(0));
      await page.click('[data-key=fork-0]');
      await told(page, 'Both hold blocks 0, 1 and 2; nothing was copied.');
      cache.fork(0);
      expect(await tables(page)).toEqual(expected(0, 1));
      expect(await count(page, '#pool .shared')).toBe(3);
      await page.click('[data-key=append-1-0]');
      await told(page, 'Block 2 was shared, so it was copied to block 3 before the write.');
      await reserve(0, 1);
      expect(await tables(page)).toEqual(expected(0, 1));
      await page.click('[data-key=append-40-1]');
      await told(page, '40 tokens more');
      await reserve(1, 40);
      expect(await tables(page)).toEqual(expected(0, 1));
      await page.click('[data-key=free-0]');
      await told(page, 'Blocks 0 and 1 stay, since another sequence holds them.');
      cache.free(0);
      expect(await tables(page)).toEqual(expected(1));

      await page.click('#pool-new');
      await told(page, 'Sequence 2 is empty');
      cache.createSequence();
      let refused = false;
      while (!refused) {
        const before = await tables(page);
        const story = await text(page, '#pool-story');
        await page.click('[data-key=append-40-2]');
        refused = await reserve(2, 40).then(() => false, () => true);
        await page.waitForFunction((old) => document.querySelector('#pool-story')!.textContent !== old || document.querySelectorAll('#pool .cell:not(.held)').length < 2, story);
        if (refused) {
          await told(page, 'Refused (pool-exhausted), and nothing changed.');
          expect(await tables(page)).toEqual(before);
        } else await page.waitForFunction((n) => document.querySelector('#pool-sequences li:last-child')!.textContent!.includes(`${n} token`), cache.length(2).toLocaleString('en-US'));
        expect(await tables(page)).toEqual(expected(1, 2));
      }
      const { usedBlocks } = cache.stats();
      expect(await text(page, '#pool-stats')).toContain(`${usedBlocks} of 24 blocks in use`);
      expect(await count(page, '#pool .held')).toBe(usedBlocks);
    });
    await mla.destroy();
  });

  test('split-KV: draws what getMlaMetadata makes of the lengths', async () => {
    await visit({}, async (page) => {
      for (const [lengths, slots] of [['2000, 700, 64, 257', 8], ['5000 0 12', 20], ['3x640', 4]] as const) {
        await page.fill('#split-lengths', lengths);
        await slide(page, '#split-slots', slots);
        const { parts, tileSchedulerMetadata } = scheduleOf(lengths, slots);
        const want = Array.from({ length: parts }, (_, p) => [p, ...tileSchedulerMetadata.subarray(p * PART_STRIDE, p * PART_STRIDE + 4)].map(String));
        expect(await cells(page, '#split-table')).toEqual(want);
        expect(await count(page, '#split-parts li')).toBe(parts);
        expect(await count(page, '#split-sequences .bar span')).toBe(stretchesOf(scheduleOf(lengths, slots)).length);
        expect(await text(page, '#split-words')).toContain(`${parts} part`);
      }
      await page.fill('#split-lengths', '100, x');
      expect(await text(page, '#split-problem')).toContain('“x” is not a length');
      expect(await page.getAttribute('#split-lengths', 'aria-invalid')).toBe('true');
      await page.fill('#split-lengths', '100');
      expect(await text(page, '#split-problem')).toBe('');
    });
  });

  const merge = async (page: Page): Promise<void> => {
    for (const slots of [4, 1, 5, 8]) {
      await slide(page, '#merge-slots', slots);
      const stretches = stretchesOf(splitOf(slots));
      await page.waitForFunction((n) => document.querySelectorAll('#merge-table tbody tr').length === n, stretches.length);
      const partials = stretches.map(({ first, end }) => oracle(1, first, end));
      const { lse, weights } = mergeByLse(partials);
      const rows = await cells(page, '#merge-table');
      rows.forEach(([, , partLse, weight], i) => {
        expect(Number(partLse)).toBeCloseTo(partials[i]!.lse, 3);
        expect(Number.parseFloat(weight!)).toBeCloseTo(100 * weights[i]!, 0);
      });
      for (const result of ['#merge-whole', '#merge-hand']) expect(Number(/lse (\S+?),?(?= |$)/.exec(await text(page, result))![1])).toBeCloseTo(lse, 3);
      expect(await text(page, '#merge-verdict')).toMatch(/^Equal but for rounding/);
    }
    await page.click('#merge-again');
    const want = oracle(2, 0, TOKENS / BLOCK).lse.toFixed(3);
    await page.waitForFunction((lse) => document.querySelector('#merge-whole')!.textContent!.startsWith(`lse ${lse.slice(0, -1)}`), want);
    expect(await text(page, '#merge-verdict')).toMatch(/^Equal but for rounding/);
  };

  test('merging: partial LSEs, weights and the whole are the oracle’s; on webgpu the package merges too', async () => {
    await visit({}, async (page) => {
      expect(await text(page, '#merge-device')).toContain('webgpu backend');
      expect(await text(page, '#merge-package')).toMatch(/^lse .* out off by /);
      await merge(page);
    });
  });

  test('bf16: bits, values and errors are the package’s, and the GPU’s', async () => {
    await visit({}, async (page) => {
      for (const [low, high] of [[3.14159, -0.001], [0.1, 65504], [1e-40, 3.4e38], [NaN, -Infinity]] as const) {
        await page.fill('#bf16-low', String(low));
        await page.fill('#bf16-high', String(high));
        for (const [id, value] of [['low', low], ['high', high]] as const) {
          const facts = await text(page, `#bf16-${id}-facts`);
          expect(facts).toContain(`0x${toBf16(value).toString(16).padStart(4, '0')}`);
          expect(facts).toContain(`Its value${fromBf16(toBf16(value))}`);
        }
        const word = `0x${(((toBf16(high) << 16) | toBf16(low)) >>> 0).toString(16).padStart(8, '0')}`;
        expect(await text(page, '#bf16-word')).toBe(word);
        await page.locator('#bf16-gpu', { hasText: `packed again ${word}. The same bits as above.` }).waitFor();
      }
      await page.fill('#bf16-low', 'pi');
      expect(await text(page, '#bf16-problem')).toContain('“pi” is not a number');
      expect(await count(page, '.bits i')).toBe(64);
      expect(await text(page, '#bf16-code')).toContain('fn unpack_low');
    });
  });

  test('works without WebGPU, and says so', async () => {
    await visit(NO_WEBGPU, async (page) => {
      expect(await text(page, '#merge-device')).toContain('no WebGPU here');
      expect(await text(page, '#merge-package')).toContain('does not split');
      expect(await text(page, '#bf16-gpu')).toContain('There is no WebGPU here');
      await merge(page);
    });
  });

  test('fits a phone, by keyboard, with words for every picture', async () => {
    await visit({ ...NO_WEBGPU, viewport: { width: 390, height: 800 } }, async (page) => {
      expect(await page.evaluate(() => document.documentElement.scrollWidth)).toBe(390);
      expect(await page.locator('input').evaluateAll((all) => all.filter((input) => (input as HTMLInputElement).labels?.length !== 1).length)).toBe(0);
      expect(await page.locator('[role=img]').evaluateAll((all) => all.filter((one) => !one.getAttribute('aria-label') && !one.getAttribute('aria-labelledby')).length)).toBe(0);
      await page.locator('#latent-heads').press('Home');
      expect(await text(page, '#latent-heads-value')).toBe('1');
      await page.locator('[data-key=fork-0]').press('Enter');
      await told(page, 'is a fork');
      expect(await page.evaluate(() => document.activeElement?.getAttribute('data-key'))).toBe('fork-0');
      await page.locator('summary').press('Enter');
      expect(await page.locator('#split-table').isVisible()).toBe(true);
      expect(await page.evaluate(() => document.documentElement.scrollWidth)).toBe(390);
    });
  });
});
