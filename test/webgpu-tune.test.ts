/** Tuning on a device: measured once, remembered, bypassed; in the background, and ended with its instance. */
import { mkdtemp, readFile, rm, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { MessageChannel } from 'node:worker_threads';
import { afterEach, beforeAll, beforeEach, describe, expect, test, vi } from 'vitest';
import type { DecodeArgs, Mla, MlaMetadata, TuneArgs, TuneReport } from '../src/mla.ts';
import { createBackend, createMla, type NodeCreateOptions } from '../src/node.ts';
import { LOADS, LOAD_TOKENS, partsTarget } from '../src/schedule.ts';
import { connect, serve } from '../src/worker/index.ts';
import { decodeArgs, makeCase, type DecodeCase } from './cases.ts';
import { expectRefusal, expectRight, run } from './check.ts';
import { softwareDevice, softwareGpu } from './software-adapter.ts';

// The narrowest heads and fewest rows: two small configurations.
const TINY: TuneArgs = { numQTokensPerHeadK: 4, headDim: 48, headDimV: 32, load: 'short' };
const c = makeCase({ b: 2, sQ: 1, sK: 300, hQ: 4, ragged: true, dV: 32, rope: 16 });

let directory: string;
let outer: string | undefined;
const open: Mla[] = [];
const file = (): string => join(directory, 'tune.json');

beforeEach(async () => {
  directory = await mkdtemp(join(tmpdir(), 'flashmla-tune-'));
  outer = process.env['FLASHMLA_CACHE_DIR'];
  process.env['FLASHMLA_CACHE_DIR'] = directory;
});
afterEach(async () => {
  await Promise.all(open.splice(0).map((mla) => mla.destroy()));
  process.env['FLASHMLA_CACHE_DIR'] = outer;
  await rm(directory, { recursive: true, force: true });
});

async function make(options: NodeCreateOptions = {}): Promise<Mla> {
  const mla = await createMla({ backend: 'webgpu', gpu: await softwareGpu(), tune: 'stored', ...options });
  open.push(mla);
  return mla;
}

/** Waits for the background: `done` of the instance, a minute at most. */
async function eventually(done: () => boolean): Promise<void> {
  for (const start = performance.now(); !done(); await new Promise((resolve) => setTimeout(resolve, 20))) {
    if (performance.now() - start > 60_000) throw new Error('it did not come to pass');
  }
}

/** Tunes for the one load that `args` name. */
async function tuneOne(mla: Mla, args: TuneArgs): Promise<TuneReport> {
  const [report, ...others] = await mla.tune(args);
  expect(others).toEqual([]);
  return report!;
}

function expectMeasured(report: TuneReport, load = 'short'): void {
  expect(report).toMatchObject({ shapeClass: `bf16 48/32, 4 rows, 1 KV head, ${load} load`, load, source: 'measured' });
  const keys = new Set(report.trials.map(({ config }) => config));
  expect(keys.size).toBeGreaterThanOrEqual(2);
  for (const { ms, refused } of report.trials) expect(refused ?? ms).toBeTruthy();
  expect(report.trials).toContainEqual(report.chosen);
  expect(report.flops).toBeGreaterThan(0);
}

describe('tune', () => {
  test('measures, uses and remembers; the next instance measures nothing', async () => {
    const mla = await make();
    const before = await run(mla, c);
    const held = (await mla.memory()).bytes;
    const report = await tuneOne(mla, TINY);
    expectMeasured(report);
    expect(report.note).toContain(file());
    expect((await mla.memory()).bytes).toBeLessThan(held + 4096);
    const { chosen } = report;
    const [rowTile, tokens] = / (\d+)x(\d+)/.exec(chosen!.config)!.slice(1).map(Number);
    expect(mla.info.schedule.tuned).toEqual([{ rows: 4, numHeadsK: 1, load: 'short', slots: chosen!.slots, rowTile, tokens }]);
    expect(partsTarget(mla.info.schedule, { rows: 3, numHeadsK: 1, blockSize: 64, load: 'short' })).toBe(chosen!.slots);
    // Metadata made before and after serve alike.
    expectRight(c, before);
    expectRight(c, await run(mla, c));

    expect(await mla.tune(TINY)).toMatchObject([{ load: 'short', source: 'remembered', trials: [], chosen }]);
    const next = await make();
    expect(next.info.schedule.tuned).toEqual(mla.info.schedule.tuned);
    const { allocated } = await next.memory();
    expect(await next.tune(TINY)).toMatchObject([{ source: 'remembered', trials: [], chosen, note: `remembered in ${file()}` }]);
    expect(await next.memory()).toMatchObject({ allocated, pipelines: 0 });
    expectMeasured(await tuneOne(next, { ...TINY, again: true }));
  });

  test('for all loads where none is named, each by itself', async () => {
    const { load: _, ...all } = TINY;
    const mla = await make();
    await tuneOne(mla, { ...all, load: 'long' });
    const [short, medium, long] = await mla.tune(all);
    expectMeasured(short!);
    expectMeasured(medium!, 'medium');
    expect(long).toMatchObject({ load: 'long', source: 'remembered' });
    expect((await make()).info.schedule.tuned).toMatchObject([long, short, medium].map((report) => ({ load: report!.load, slots: report!.chosen!.slots })));
  });

  test('what an older version of the store holds counts as not remembered', async () => {
    await (await make()).tune(TINY);
    const { format, choices } = JSON.parse(await readFile(file(), 'utf8')) as { format: number; choices: Record<string, object> };
    const [key, choice] = Object.entries(choices)[0]!;
    for (const older of [{ format: format - 1, choices }, { choices: { [key.replace(', short load', '')]: { ...choice, longMs: 1, shortMs: 1 } } }]) {
      await writeFile(file(), JSON.stringify(older));
      const mla = await make();
      expect(mla.info.schedule.tuned).toBeUndefined();
      expectRight(c, await run(mla, c));
    }
  });

  test("'off' neither reads nor writes what is remembered", async () => {
    await (await make()).tune(TINY);
    const written = await readFile(file(), 'utf8');
    const mla = await make({ tune: 'off' });
    expect(mla.info.schedule.tuned).toBeUndefined();
    const report = await tuneOne(mla, TINY);
    expectMeasured(report);
    expect(report.note).toContain('off');
    expect(mla.info.schedule.tuned).toHaveLength(1);
    expect(await readFile(file(), 'utf8')).toBe(written);
  });

  test('what is remembered of another device, or of a configuration that is no more, is not used', async () => {
    await (await make()).tune(TINY);
    const { format, choices } = JSON.parse(await readFile(file(), 'utf8')) as { format: number; choices: Record<string, { config: string }> };
    const [key, choice] = Object.entries(choices)[0]!;
    for (const changed of [{ [key]: { ...choice, slots: 1e9 } }, { [key.replace('swiftshader', 'other')]: choice }, { [key.replace(/^[^|]+/, '0.0.0 ')]: choice }, { [key]: { ...choice, config: 'gone' } }]) {
      await writeFile(file(), JSON.stringify({ format, choices: changed }));
      expect((await make()).info.schedule.tuned).toBeUndefined();
    }
  });

  test('where nothing can be written it says so', async () => {
    await writeFile(file(), '');
    process.env['FLASHMLA_CACHE_DIR'] = file(); // a file where a directory should be
    const report = await tuneOne(await make(), TINY);
    expectMeasured(report);
    expect(report.note).toMatch(/^not remembered: /);
  });

  test('a backend without configurations has nothing to tune', async () => {
    const mla = await createMla({ backend: 'cpu' });
    open.push(mla);
    const { load: _, ...all } = TINY;
    expect(await mla.tune(all)).toMatchObject(LOADS.map((load) => ({ load, source: 'none', trials: [], note: 'backend cpu has nothing to tune' })));
  });

  test.each<[string, unknown, string]>([
    ['no arguments', undefined, 'args'],
    ['rows', { numQTokensPerHeadK: 0 }, 'numQTokensPerHeadK'],
    ['heads', { numQTokensPerHeadK: 4, numHeadsK: 1.5 }, 'numHeadsK'],
    ['widths', { numQTokensPerHeadK: 4, headDimV: 500 }, 'headDimV'],
    ['type', { numQTokensPerHeadK: 4, dtype: 'f32' }, 'dtype'],
    ['load', { numQTokensPerHeadK: 4, load: 'middling' }, 'load'],
    ['again', { numQTokensPerHeadK: 4, again: 1 }, 'again'],
  ])('refuses bad %s', async (_, args, argument) => {
    const mla = await createMla({ backend: 'cpu' });
    open.push(mla);
    const code = argument === 'dtype' ? 'invalid-dtype' : 'invalid-argument';
    await expectRefusal(() => mla.tune(args as TuneArgs), code, argument);
  });

  test('refuses a bad mode', async () => {
    await expectRefusal(() => make({ tune: 'never' as 'off' }), 'invalid-argument', 'tune');
  });
});

describe('calls of each load, on either side of a boundary', () => {
  const [short, medium] = [LOAD_TOKENS.short, LOAD_TOKENS.short + 1].map((tokens) => makeCase({ b: 2, sQ: 1, sK: 0, hQ: 16, dV: 32, rope: 16, seqlens: [tokens - 300, 300] })) as [DecodeCase, DecodeCase];
  let prototype: GPUComputePassEncoder;
  /** What tuning for short loads left in the store, and the configurations that it tried. */
  let measured: { readonly format: number; readonly key: string; readonly configs: readonly string[] } | undefined;
  beforeAll(async () => {
    await softwareGpu();
    prototype = ((await import('webgpu')) as unknown as { globals: { GPUComputePassEncoder: { prototype: GPUComputePassEncoder } } }).globals.GPUComputePassEncoder.prototype;
  });

  /** Has the store remember row tiles of 4 for short loads, of 16 for medium ones; or for one of them. */
  async function remember(...loads: ('short' | 'medium')[]): Promise<void> {
    if (!measured) {
      const { trials } = await tuneOne(await make(), { numQTokensPerHeadK: 16, headDim: 48, headDimV: 32, load: 'short' });
      const { format, choices } = JSON.parse(await readFile(file(), 'utf8')) as { format: number; choices: Record<string, object> };
      measured = { format, key: Object.keys(choices)[0]!, configs: trials.map(({ config }) => config) };
    }
    const { format, key, configs } = measured;
    const config = (tile: string): string => configs.find((name) => name.includes(tile))!;
    const known = { short: { config: config(' 4x'), slots: 8, ms: 1 }, medium: { config: config(' 16x'), slots: 3, ms: 1 } };
    await writeFile(file(), JSON.stringify({ format, choices: Object.fromEntries(loads.map((load) => [key.replace('short load', `${load} load`), known[load]])) }));
  }

  /** Parts and row tiles of the call's first dispatch; the result is checked. */
  async function grid(mla: Mla, of: DecodeCase, metadata?: MlaMetadata): Promise<readonly number[]> {
    const dispatch = vi.spyOn(prototype, 'dispatchWorkgroups');
    try {
      const result = await run(mla, of, metadata && { metadata });
      const [first] = dispatch.mock.calls;
      expectRight(of, result);
      return first!.slice(0, 2) as number[];
    } finally {
      dispatch.mockRestore();
    }
  }
  const metadata = (mla: Mla, { cacheSeqlens }: DecodeCase): MlaMetadata => mla.getMlaMetadata({ cacheSeqlens, numQTokensPerHeadK: 16, numHeadsK: 1 });

  test('schedule and kernel agree on either side of the boundary, and the other side’s kernel is there in time', { timeout: 120_000 }, async () => {
    await remember('short', 'medium');
    const mla = await make();
    expect(await grid(mla, short)).toEqual([2, 4]);
    const pipelines = async (): Promise<number> => (await mla.memory()).pipelines;
    // Of either load one, and one that merges.
    for (const start = performance.now(); (await pipelines()) < 3 && performance.now() - start < 60_000; ) await new Promise((resolve) => setTimeout(resolve, 20));
    expect(await grid(mla, medium)).toEqual([3, 1]);
    expect(await grid(mla, short)).toEqual([2, 4]);
    expect(await pipelines()).toBe(3);
  });

  test.each(['short', 'medium'] as const)('where only the %s one was tuned the other goes by the fixed choice', { timeout: 120_000 }, async (load) => {
    await remember(load);
    const [mla, fixed] = [await make(), await make({ tune: 'off' })];
    const [shortGrid, mediumGrid] = [await grid(mla, short), await grid(mla, medium)];
    if (load === 'short') expect([shortGrid, mediumGrid]).toEqual([[2, 4], await grid(fixed, medium)]);
    else expect([shortGrid, mediumGrid]).toEqual([await grid(fixed, short), [3, 1]]);
  });

  test('metadata made before anything was known serves after', { timeout: 120_000 }, async () => {
    await remember('short', 'medium');
    const [mla, fixed] = [await make(), await make({ tune: 'off' })];
    for (const [of, tiles] of [[short, 4], [medium, 1]] as const) {
      const before = metadata(fixed, of);
      expect(await grid(mla, of, before)).toEqual([before.parts, tiles]);
      expect(before.parts).not.toBe(metadata(mla, of).parts);
    }
  });
});

describe('in the background', () => {
  test("'auto' measures on first use, after the call, and its schedule follows", async () => {
    const mla = await make({ tune: 'auto' });
    expectRight(c, await run(mla, c));
    expect(mla.info.schedule.tuned).toBeUndefined();
    // Work goes on meanwhile, in order and right.
    for (let i = 0; i < 5; i++) expectRight(c, await run(mla, c));
    await eventually(() => mla.info.schedule.tuned !== undefined);
    expectRight(c, await run(mla, c));
    expect(mla.info.schedule.tuned).toMatchObject([{ load: 'short' }]);
    expect(await mla.tune(TINY)).toMatchObject([{ source: 'remembered' }]);

    const next = await make({ tune: 'auto' });
    expectRight(c, await run(next, c));
    const { allocated } = await next.memory();
    await new Promise((resolve) => setTimeout(resolve, 300));
    expect((await next.memory()).allocated).toBe(allocated);
  });

  test('who asks does not wait behind it for a measurement of their own to end', async () => {
    const mla = await make({ tune: 'auto' });
    expectRight(c, await run(mla, c));
    const { ms } = await mla.time(async () => {
      expect(await mla.tune(TINY)).toMatchObject([{ load: 'short' }]);
    });
    expect(ms).toBeGreaterThanOrEqual(0);
    expect(mla.info.schedule.tuned).toHaveLength(1);
  });

  test("'stored' measures nothing unasked, nor does a software adapter unless told to", async () => {
    for (const options of [{ tune: 'stored' }, {}] as NodeCreateOptions[]) {
      const mla = await createMla({ backend: 'webgpu', gpu: await softwareGpu(), ...options });
      open.push(mla);
      if (options.tune === undefined && !mla.info.software) continue;
      await run(mla, c);
      const { pipelines } = await mla.memory();
      await new Promise((resolve) => setTimeout(resolve, 300));
      expect(await mla.memory()).toMatchObject({ pipelines });
      expect(mla.info.schedule.tuned).toBeUndefined();
    }
  });

  test('a device that would keep others waiting is left alone, and says so', async () => {
    const wide = makeCase({ b: 1, sQ: 1, sK: 70, hQ: 128 });
    const mla = await make({ tune: 'auto' });
    if (!mla.info.software) return;
    expectRight(wide, await run(mla, wide));
    await eventually(() => mla.info.tuning !== undefined);
    expect(mla.info.tuning).toMatch(/^bf16 576\/512, 128 rows, 1 KV head, short load was not tuned: the device is too slow/);
    expect(mla.info.schedule.tuned).toEqual([]);
    expectRight(wide, await run(mla, wide));
  });

  test.each(['at once', 'in its midst'])('destroy ends it %s', async (when) => {
    const device = await softwareDevice();
    const mla = await make({ device, tune: 'auto' });
    const result = await mla.flashMlaWithKvCache(decodeArgs(c) as DecodeArgs);
    if (when !== 'at once') await new Promise((resolve) => setTimeout(resolve, 150));
    const asked = mla.tune({ ...TINY, numQTokensPerHeadK: 2 }).catch((error: unknown) => error);
    result.out.destroy();
    await mla.destroy();
    expect(await asked).toMatchObject({ name: 'MlaError', code: 'destroyed' });
    // The caller's device lives on and serves another instance.
    expectRight(c, await run(await make({ device }), c));
    await expect(readFile(file(), 'utf8')).rejects.toMatchObject({ code: 'ENOENT' });
  });

  test('a device that is lost meanwhile: whoever waits hears of that, and nobody else', async () => {
    const device = await softwareDevice();
    const mla = await make({ device, tune: 'auto' });
    await mla.flashMlaWithKvCache(decodeArgs(c) as DecodeArgs);
    await new Promise((resolve) => setTimeout(resolve, 100));
    const asked = mla.tune(TINY).catch((error: unknown) => error);
    device.destroy();
    expect(await asked).toMatchObject({ name: 'MlaError', code: 'device-lost' });
  });
});

test('from another thread: the report comes over, and the schedule with it', async () => {
  const { port1: ours, port2: theirs } = new MessageChannel();
  const gpu = await softwareGpu();
  serve((options) => createBackend({ ...options, gpu }), theirs);
  const mla = await connect(ours, { backend: 'webgpu', tune: 'off' });
  open.push(mla);
  const report = await tuneOne(mla, TINY);
  expectMeasured(report);
  expect(mla.info.schedule.tuned).toMatchObject([{ slots: report.chosen!.slots }]);
  await mla.destroy();
  ours.close();
});
