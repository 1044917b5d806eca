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
import { altered } from './altered.ts';
import { decodeArgs, makeCase, type DecodeCase } from './cases.ts';
import { expectRefusal, expectRight, run } from './check.ts';
import { scarce, type Scarcity } from './scarce-gpu.ts';
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

/** Waits for the background: `done` of the instance. */
async function eventually(done: () => boolean): Promise<void> {
  while (!done()) await new Promise((resolve) => setTimeout(resolve, 20));
}

/** The largest short load, and the smallest medium one. */
function atBoundary(hQ: number): [DecodeCase, DecodeCase] {
  const of = (tokens: number): DecodeCase => makeCase({ b: 2, sQ: 1, sK: 0, hQ, dV: 32, rope: 16, seqlens: [tokens - 300, 300] });
  return [of(LOAD_TOKENS.short), of(LOAD_TOKENS.short + 1)];
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

/** What a compiler may get wrong: kernels by their labels, and their text as it then is. */
interface Mistake {
  readonly of: (label: string) => boolean;
  readonly from: string;
  readonly to: string;
}

/** A device whose compiler makes a mistake; `made` are the kernels that it made it in. */
async function mistakenDevice({ of, from, to }: Mistake): Promise<{ device: GPUDevice; made: string[] }> {
  const real = await softwareDevice();
  const made: string[] = [];
  const device = altered(real, {
    createShaderModule: (descriptor: GPUShaderModuleDescriptor) => {
      const label = descriptor.label ?? '';
      if (!of(label)) return real.createShaderModule(descriptor);
      expect(descriptor.code.split(from)).toHaveLength(2);
      made.push(label);
      return real.createShaderModule({ ...descriptor, code: descriptor.code.replace(from, to) });
    },
  });
  return { device, made };
}

describe('a kernel that the compiler gets wrong', () => {
  const HALF = { from: 'let stop = select(', to: 'end = begin + (end - begin + 1u) / 2u; let stop = select(' };
  const STALE = { from: 'if (token0 < end && in_block == 0u) {', to: 'if (token0 == begin) {' };
  const IDLE = { from: 'let part = workgroup.x;', to: 'let part = workgroup.x; if (plan[PLAN_H_KV] != 0u) { return; }' };

  /** The first guess, and not the only one. */
  const FIRST = ' 4x16/';
  const ofFirst = (label: string): boolean => label.startsWith('decode ') && label.includes(FIRST);

  test.each([
    ['skips half of the steps', HALF, /^wrong results: LSE [\d.]+ where [\d.]+ is right \(row 3 of a sequence of \d+ tokens\)$/],
    ['never looks up its next block', STALE, /^wrong results: (LSE|out\[\d+\]) /],
    ['does nothing', IDLE, /^wrong results: LSE /],
  ])('and that %s is refused and says why; a right one is taken', async (_, mistake, why) => {
    const { device, made } = await mistakenDevice({ ...mistake, of: ofFirst });
    const report = await tuneOne(await make({ device }), TINY);
    expect(made.length).toBeGreaterThan(0);
    expectMeasured(report);
    for (const { config, slots, ms, refused } of report.trials) {
      if (slots === undefined || !config.includes(FIRST)) expect(refused ?? '').not.toMatch(/^wrong/);
      else expect([ms, refused]).toEqual([undefined, expect.stringMatching(why)]);
    }
    expect(report.chosen!.config).not.toContain(FIRST);
    expect(await readFile(file(), 'utf8')).toContain(report.chosen!.config);
  });

  test.each([
    ['the merge forgets a split', { from: 'let splits = plan[split_at + 2u];', to: 'let splits = plan[split_at + 2u] - 1u;' }, /^wrong results: LSE [\d.]+ where/],
    ['the merge does nothing', { from: 'let s_q = plan[PLAN_S_Q];', to: 'let s_q = plan[PLAN_S_Q]; if (s_q != 0u) { return; }' }, /^wrong results: LSE NaN where/],
  ])('and that all have in common, for %s: none is taken, nothing is remembered', async (_, mistake, why) => {
    const { device, made } = await mistakenDevice({ ...mistake, of: (label) => label.startsWith('combine ') });
    const mla = await make({ device });
    const report = await tuneOne(mla, TINY);
    expect(made.length).toBe(1);
    expect(report).toMatchObject({ source: 'none', note: 'no configuration could be measured' });
    expect(report.chosen).toBeUndefined();
    expect(mla.info.kernelNotes).toBeUndefined();
    const tried = report.trials.filter(({ slots }) => slots !== undefined);
    expect(tried.length).toBeGreaterThan(1);
    for (const { refused } of tried) expect(refused).toMatch(why);
    expect(mla.info.schedule.tuned).toBeUndefined();
    await expect(readFile(file(), 'utf8')).rejects.toMatchObject({ code: 'ENOENT' });
  });

  test('serves nobody in the next session either, nor is it tried again', async () => {
    const { device } = await mistakenDevice({ ...HALF, of: ofFirst });
    await tuneOne(await make({ device }), TINY);
    const next = await make({ device });
    expect(next.info.kernelNotes!.join('\n')).toMatch(/^\w+ 4x16\S+ .*: wrong results: LSE /);
    // Of another class, for which the fixed choice is that one.
    const other = makeCase({ b: 2, sQ: 1, sK: 300, hQ: 4, ragged: true, dV: 64, rope: 16 });
    expectRight(other, await run(next, other));
    expectRight(c, await run(next, c));
    const again = await tuneOne(next, { ...TINY, again: true });
    expect(again.source).toBe('measured');
    for (const { config, slots, refused } of again.trials) if (config.includes(FIRST)) expect([slots, refused]).toEqual([undefined, expect.stringMatching(/^wrong results: /)]);
    // It is still known after that.
    expectRight(other, await run(await make({ device }), other));
  });

  test('is refused behind a program’s back too, which can see it', async () => {
    const { device } = await mistakenDevice({ ...HALF, of: ofFirst });
    const mla = await make({ device, tune: 'auto' });
    await run(mla, c);
    await eventually(() => mla.info.schedule.tuned !== undefined && mla.info.tuning !== undefined);
    expect(mla.info.tuning).toMatch(/^bf16 48\/32, 4 rows, 1 KV head, short load: \w+ 4x16\S+ .*was refused: wrong results: LSE /);
    expect(mla.info.schedule.tuned).toMatchObject([{ load: 'short', tokens: 8 }]);
    // Calls are right from here on, for all that the fixed choice was not: of other classes too.
    expectRight(c, await run(mla, c));
    expect(mla.info.kernelNotes!.join('\n')).toMatch(/^\w+ 4x16\S+ .*: wrong results: LSE /);
    const other = makeCase({ b: 2, sQ: 1, sK: 300, hQ: 4, ragged: true, dV: 64, rope: 16 });
    expectRight(other, await run(mla, other));
  });
});

describe('right kernels are not refused', () => {
  test.each<[string, TuneArgs, 'base' | 'subgroup']>([
    ['of the subgroup tier', { ...TINY, numQTokensPerHeadK: 16 }, 'subgroup'],
    ['of the base tier', { ...TINY, numQTokensPerHeadK: 16 }, 'base'],
    ['in f16', { ...TINY, dtype: 'f16' }, 'subgroup'],
    ['with KV heads, and rows that fill no tile', { ...TINY, numQTokensPerHeadK: 33, numHeadsK: 3 }, 'subgroup'],
    ['at full width', { numQTokensPerHeadK: 4, load: 'short' }, 'subgroup'],
  ])('%s', async (_, args, tier) => {
    const { load: __, ...all } = args;
    for (const report of await (await make({ tier })).tune(args.headDim === undefined ? args : all)) {
      expect(report.source).toBe('measured');
      for (const { refused } of report.trials) expect(refused ?? '').not.toMatch(/^wrong/);
    }
  });
});

describe('calls of each load, on either side of a boundary', () => {
  const [short, medium] = atBoundary(16);
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

  test('schedule and kernel agree on either side of the boundary, and the other side’s kernel is there in time', async () => {
    await remember('short', 'medium');
    const mla = await make();
    expect(await grid(mla, short)).toEqual([2, 4]);
    const pipelines = async (): Promise<number> => (await mla.memory()).pipelines;
    // Of either load one, and one that merges.
    while ((await pipelines()) < 3) await new Promise((resolve) => setTimeout(resolve, 20));
    expect(await grid(mla, medium)).toEqual([3, 1]);
    expect(await grid(mla, short)).toEqual([2, 4]);
    expect(await pipelines()).toBe(3);
  });

  test.each(['short', 'medium'] as const)('where only the %s one was tuned the other goes by the fixed choice', async (load) => {
    await remember(load);
    const [mla, fixed] = [await make(), await make({ tune: 'off' })];
    const [shortGrid, mediumGrid] = [await grid(mla, short), await grid(mla, medium)];
    if (load === 'short') expect([shortGrid, mediumGrid]).toEqual([[2, 4], await grid(fixed, medium)]);
    else expect([shortGrid, mediumGrid]).toEqual([await grid(fixed, short), [3, 1]]);
  });

  test('metadata made before anything was known serves after', async () => {
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

  test('two instances of one device measure one after the other, and what one has found the other takes', async () => {
    const [one, other] = [await make({ tune: 'auto' }), await make({ tune: 'auto' })];
    expectRight(c, await run(one, c));
    expectRight(c, await run(other, c));
    await eventually(() => one.info.schedule.tuned !== undefined && other.info.schedule.tuned !== undefined);
    const [first, second] = [await tuneOne(one, TINY), await tuneOne(other, TINY)];
    expect([first.source, second.source]).toEqual(['remembered', 'remembered']);
    expect(second.chosen).toEqual(first.chosen);
    expectRight(c, await run(other, c));
  });

  test('a measurement of one instance’s caller holds the other’s background back, and ends with its instance', async () => {
    const [one, other] = [await make({ tune: 'off' }), await make({ tune: 'auto' })];
    let went!: () => void;
    const going = new Promise<void>((resolve) => (went = resolve));
    const measuring = one.time(() => going).catch(() => undefined);
    await run(other, c);
    await other.finished();
    // What it would take first is memory.
    const { allocated } = await other.memory();
    await new Promise((resolve) => setTimeout(resolve, 1000));
    expect((await other.memory()).allocated).toBe(allocated);
    await one.destroy();
    await eventually(() => other.info.schedule.tuned !== undefined);
    went();
    await measuring;
  });

  test('who asks of one instance while another one has the turn is told of the end of theirs at once', async () => {
    const [one, other] = [await make(), await make()];
    const measuring = other.tune(TINY);
    const asked = expectRefusal(() => one.tune({ ...TINY, load: 'medium' }), 'destroyed');
    await one.destroy();
    let measured = false;
    void measuring.then(() => (measured = true));
    await asked;
    expect(measured).toBe(false);
    expect(await measuring).toMatchObject([{ source: 'measured' }]);
  });

  test('who asks takes what another instance has found meanwhile', async () => {
    const both = [await make(), await make({ tier: 'base' }), await make()];
    const reports = await Promise.all(both.map((mla) => tuneOne(mla, TINY)));
    // Another tier has other configurations; but of one device all measure in turn.
    expect(reports.map(({ source }) => source)).toEqual(['measured', both[1]!.info.tier === both[0]!.info.tier ? 'remembered' : 'measured', 'remembered']);
    expect(reports[2]!.chosen).toEqual(reports[0]!.chosen);
  });

  test('what another instance has found is compiled before it is used', async () => {
    // A device of the caller's has limits of its own, by which its choices are kept.
    await (await make({ device: await softwareDevice() })).tune(TINY);
    const { format, choices } = JSON.parse(await readFile(file(), 'utf8')) as { format: number; choices: Record<string, { config: string }> };
    const [[key, choice]] = Object.entries(choices) as [[string, { config: string }]];
    await rm(file());
    const compiledAtOnce: string[] = [];
    const watched = async (): Promise<GPUDevice> => {
      const device = await softwareDevice();
      return altered(device, {
        createComputePipeline: (descriptor: GPUComputePipelineDescriptor) => {
          if (descriptor.label?.startsWith('decode ')) compiledAtOnce.push(descriptor.label);
          return device.createComputePipeline(descriptor);
        },
      });
    };
    const fixed = await make({ device: await watched(), tune: 'off' });
    await run(fixed, c);
    const other = (await tuneOne(fixed, TINY)).trials.find(({ config }) => !compiledAtOnce[0]!.includes(config))!.config;
    compiledAtOnce.splice(0);

    const mla = await make({ device: await watched(), tune: 'auto' });
    // Found by somebody else once this one has looked.
    await writeFile(file(), JSON.stringify({ format, choices: { [key]: { ...choice, config: other } } }));
    await run(mla, c);
    await eventually(() => mla.info.schedule.tuned !== undefined);
    expect(await mla.tune(TINY)).toMatchObject([{ source: 'remembered', chosen: { config: other } }]);
    expectRight(c, await run(mla, c));
    expect(compiledAtOnce).toHaveLength(1);
  });

  test('rows of a prompt’s chunk are not tuned unasked', async () => {
    const mla = await make({ tune: 'auto' });
    const chunk = makeCase({ b: 1, sQ: 257, sK: 300, hQ: 4, dV: 32, rope: 16 });
    expectRight(chunk, await run(mla, chunk));
    await run(mla, c);
    await eventually(() => mla.info.schedule.tuned !== undefined);
    // In turn, so that it would have been first.
    expect(mla.info.schedule.tuned).toMatchObject([{ rows: 4 }]);
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

  test('a measurement of the caller’s has the device to itself: what was under way has ended when its clock starts, and nothing follows before it stops', async () => {
    // No timestamps: times are wall time.
    const real = await softwareDevice();
    const batches = new WeakSet<GPUCommandBuffer>();
    let submitted = 0;
    let pending = 0;
    const submit = (buffers: GPUCommandBuffer[]): undefined => {
      real.queue.submit(buffers);
      if (!buffers.some((buffer) => batches.has(buffer))) return;
      submitted++;
      pending++;
      void real.queue.onSubmittedWorkDone().then(() => pending--);
    };
    // A device that answers late: batches wait long between their turn and their submission.
    const onSubmittedWorkDone = async (): Promise<undefined> => {
      await real.queue.onSubmittedWorkDone();
      await new Promise((resolve) => setTimeout(resolve, 8));
    };
    const createCommandEncoder = (descriptor?: GPUCommandEncoderDescriptor): GPUCommandEncoder => {
      const encoder = real.createCommandEncoder(descriptor);
      if (descriptor?.label !== 'tune') return encoder;
      const finish = (): GPUCommandBuffer => {
        const buffer = encoder.finish();
        batches.add(buffer);
        return buffer;
      };
      return altered(encoder, { finish });
    };
    const mla = await make({ device: altered(real, { queue: altered(real.queue, { submit, onSubmittedWorkDone }), createCommandEncoder }), tune: 'auto' });
    await run(mla, c);
    let measured = 0;
    for (; mla.info.schedule.tuned === undefined; measured++) {
      expect(mla.info.tuning).toBeUndefined();
      const { source } = await mla.time(async () => {
        expect(pending).toBe(0);
        const before = submitted;
        await new Promise((resolve) => setTimeout(resolve, 40));
        expect(submitted).toBe(before);
      });
      expect(source).toBe('wall');
      await new Promise((resolve) => setTimeout(resolve, (measured % 7) * 5));
    }
    expect(measured).toBeGreaterThan(5);
    expect(submitted).toBeGreaterThan(20);
  });

  test('a measurement that is refused leaves the one under way, and the background, as they were', async () => {
    const mla = await make({ tune: 'auto' });
    await run(mla, c);
    await mla.time(async () => {
      await expectRefusal(() => mla.time(async () => undefined), 'invalid-argument', 'time');
      // Trials take memory as they come.
      await new Promise((resolve) => setTimeout(resolve, 100));
      const { allocated } = await mla.memory();
      await new Promise((resolve) => setTimeout(resolve, 600));
      expect((await mla.memory()).allocated).toBe(allocated);
    });
    await eventually(() => mla.info.schedule.tuned !== undefined);
  });

  test('a batch that grows past a boundary is tuned for anew, and its calls go on meanwhile', async () => {
    const mla = await make({ tune: 'auto' });
    const [short, medium] = atBoundary(4);
    for (const load of ['short', 'medium'] as const) {
      const of = load === 'short' ? short : medium;
      expectRight(of, await run(mla, of));
      await eventually(() => mla.info.schedule.tuned?.some((known) => known.load === load) ?? false);
      expectRight(of, await run(mla, of));
    }
    expect(mla.info.tuning).toBeUndefined();
    expect(mla.info.schedule.tuned).toMatchObject([{ load: 'short' }, { load: 'medium' }]);
  });

  test.each(['short', 'medium'] as const)('refused memory on a %s load: no call of the caller’s is, and the instance can see why', async (load) => {
    const real = await softwareDevice();
    const uncaught: string[] = [];
    real.addEventListener('uncapturederror', (event) => {
      event.preventDefault();
      uncaught.push((event as GPUUncapturedErrorEvent).error.message);
    });
    const scarcity: Scarcity = { label: 'tune', refused: 0 };
    const mla = await make({ device: scarce(real, scarcity), tune: 'auto' });
    const of = load === 'short' ? c : atBoundary(4)[1];
    for (let i = 0; i < 5 || mla.info.tuning === undefined; i++) {
      expectRight(of, await run(mla, of));
      await mla.finished();
    }
    expect(scarcity.refused).toBeGreaterThan(0);
    expect(mla.info.tuning).toMatch(new RegExp(`^bf16 48/32, 4 rows, 1 KV head, ${load} load was not tuned: .*the device is out of memory`));
    expectRight(of, await run(mla, of));
    expect(mla.info.schedule.tuned).toEqual([]);
    expect(uncaught).toEqual([]);
    // What was asked for is told of it.
    await expectRefusal(() => mla.tune({ ...TINY, load }), 'out-of-memory');
    scarcity.label = undefined;
    expectMeasured(await tuneOne(mla, { ...TINY, load }), load);
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
    const wide = makeCase({ b: 1, sQ: 1, sK: 70, hQ: 256 });
    const mla = await make({ tune: 'auto' });
    if (!mla.info.software) return;
    expectRight(wide, await run(mla, wide));
    await eventually(() => mla.info.tuning !== undefined);
    expect(mla.info.tuning).toMatch(/^bf16 576\/512, 256 rows, 1 KV head, short load was not tuned: the device is too slow/);
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
