/** Tuning on a device: measured once, remembered, bypassed; in the background, and ended with its instance. */
import { mkdtemp, readFile, rm, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { MessageChannel } from 'node:worker_threads';
import { afterEach, beforeEach, describe, expect, test } from 'vitest';
import type { DecodeArgs, Mla, TuneArgs, TuneReport } from '../src/mla.ts';
import { createBackend, createMla, type NodeCreateOptions } from '../src/node.ts';
import { partsTarget } from '../src/schedule.ts';
import { connect, serve } from '../src/worker/index.ts';
import { decodeArgs, makeCase } from './cases.ts';
import { expectRefusal, expectRight, run } from './check.ts';
import { softwareDevice, softwareGpu } from './software-adapter.ts';

// The narrowest heads and fewest rows: two small configurations.
const TINY: TuneArgs = { numQTokensPerHeadK: 4, headDim: 48, headDimV: 32 };
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

function expectMeasured(report: TuneReport): void {
  expect(report).toMatchObject({ shapeClass: 'bf16 48/32, 4 rows, 1 KV head', source: 'measured' });
  const keys = new Set(report.trials.map(({ config }) => config));
  expect(keys.size).toBeGreaterThanOrEqual(2);
  for (const { longMs, shortMs, refused } of report.trials) expect(refused ?? Math.min(longMs!, shortMs!)).toBeTruthy();
  expect(report.trials).toContainEqual(report.chosen);
  expect(report.flops).toBeGreaterThan(0);
}

describe('tune', () => {
  test('measures, uses and remembers; the next instance measures nothing', async () => {
    const mla = await make();
    const before = await run(mla, c);
    const held = (await mla.memory()).bytes;
    const report = await mla.tune(TINY);
    expectMeasured(report);
    expect(report.note).toContain(file());
    expect((await mla.memory()).bytes).toBeLessThan(held + 4096);
    const { chosen } = report;
    const rowTile = Number(/ (\d+)x/.exec(chosen!.config)![1]);
    expect(mla.info.schedule.tuned).toEqual([{ rows: 4, numHeadsK: 1, slots: chosen!.slots, rowTile }]);
    expect(partsTarget(mla.info.schedule, 3, 1)).toBe(chosen!.slots);
    // Metadata made before and after serve alike.
    expectRight(c, before);
    expectRight(c, await run(mla, c));

    expect(await mla.tune(TINY)).toMatchObject({ source: 'remembered', trials: [], chosen });
    const next = await make();
    expect(next.info.schedule.tuned).toEqual(mla.info.schedule.tuned);
    const { allocated } = await next.memory();
    expect(await next.tune(TINY)).toMatchObject({ source: 'remembered', trials: [], chosen, note: `remembered in ${file()}` });
    expect(await next.memory()).toMatchObject({ allocated, pipelines: 0 });
    expectMeasured(await next.tune({ ...TINY, again: true }));
  });

  test("'off' neither reads nor writes what is remembered", async () => {
    await (await make()).tune(TINY);
    const written = await readFile(file(), 'utf8');
    const mla = await make({ tune: 'off' });
    expect(mla.info.schedule.tuned).toBeUndefined();
    const report = await mla.tune(TINY);
    expectMeasured(report);
    expect(report.note).toContain('off');
    expect(mla.info.schedule.tuned).toHaveLength(1);
    expect(await readFile(file(), 'utf8')).toBe(written);
  });

  test('what is remembered of another device, or of a configuration that is no more, is not used', async () => {
    await (await make()).tune(TINY);
    const { choices } = JSON.parse(await readFile(file(), 'utf8')) as { choices: Record<string, { config: string }> };
    const [key, choice] = Object.entries(choices)[0]!;
    for (const changed of [{ [key.replace('swiftshader', 'other')]: choice }, { [key.replace(/^[^|]+/, '0.0.0 ')]: choice }, { [key]: { ...choice, config: 'gone' } }]) {
      await writeFile(file(), JSON.stringify({ choices: changed }));
      expect((await make()).info.schedule.tuned).toBeUndefined();
    }
  });

  test('where nothing can be written it says so', async () => {
    await writeFile(file(), '');
    process.env['FLASHMLA_CACHE_DIR'] = file(); // a file where a directory should be
    const report = await (await make()).tune(TINY);
    expectMeasured(report);
    expect(report.note).toMatch(/^not remembered: /);
  });

  test('a backend without configurations has nothing to tune', async () => {
    const mla = await createMla({ backend: 'cpu' });
    open.push(mla);
    expect(await mla.tune(TINY)).toMatchObject({ source: 'none', trials: [], note: 'backend cpu has nothing to tune' });
  });

  test.each<[string, unknown, string]>([
    ['no arguments', undefined, 'args'],
    ['rows', { numQTokensPerHeadK: 0 }, 'numQTokensPerHeadK'],
    ['heads', { numQTokensPerHeadK: 4, numHeadsK: 1.5 }, 'numHeadsK'],
    ['widths', { numQTokensPerHeadK: 4, headDimV: 500 }, 'headDimV'],
    ['type', { numQTokensPerHeadK: 4, dtype: 'f32' }, 'dtype'],
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

describe('in the background', () => {
  test("'auto' measures on first use, after the call, and its schedule follows", async () => {
    const mla = await make({ tune: 'auto' });
    expectRight(c, await run(mla, c));
    expect(mla.info.schedule.tuned).toBeUndefined();
    // Work goes on meanwhile, in order and right.
    for (let i = 0; i < 5; i++) expectRight(c, await run(mla, c));
    await eventually(() => mla.info.schedule.tuned !== undefined);
    expectRight(c, await run(mla, c));
    expect(await mla.tune(TINY)).toMatchObject({ source: 'remembered' });

    const next = await make({ tune: 'auto' });
    expectRight(c, await run(next, c));
    const { allocated } = await next.memory();
    await new Promise((resolve) => setTimeout(resolve, 300));
    expect((await next.memory()).allocated).toBe(allocated);
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
    expect(mla.info.tuning).toMatch(/^bf16 576\/512, 128 rows, 1 KV head was not tuned: the device is too slow/);
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
  const report = await mla.tune(TINY);
  expectMeasured(report);
  expect(mla.info.schedule.tuned).toMatchObject([{ slots: report.chosen!.slots }]);
  await mla.destroy();
  ours.close();
});
