/** `flashmla-web tune`, and how bench goes about tuning, on backends that pretend. */
import { mkdtemp, readFile, rm, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterEach, beforeEach, describe, expect, it } from 'vitest';
import { run } from '../src/cli/run.ts';
import { MlaError } from '../src/errors.ts';
import type { TuneArgs, TuneReport } from '../src/mla.ts';
import { noStore } from '../src/tune-store.ts';
import { altered } from './altered.ts';
import { fakeContext } from './fake-context.ts';

let directory: string;
beforeEach(async () => {
  directory = await mkdtemp(join(tmpdir(), 'flashmla-tune-'));
});
afterEach(() => rm(directory, { recursive: true, force: true }));

const chosen = { config: 'b', slots: 66, ms: 2 };
const trials = [{ config: 'a', slots: 132, ms: 4 }, { config: 'b', slots: 132, refused: 'given up' }, chosen, { config: 'c', refused: 'too large' }];
const asked: TuneArgs[] = [];
beforeEach(() => asked.splice(0));
async function tune(args: TuneArgs): Promise<TuneReport[]> {
  asked.push(args);
  const { numQTokensPerHeadK: rows, load } = args;
  if (!load) throw new Error('asked for both');
  if (rows === 8 && load === 'short') throw new MlaError('out-of-memory', 'no\nroom');
  return [{ shapeClass: `${rows} rows, ${load}`, load, source: 'measured', trials, chosen, flops: 4e9, bytes: 8e6, timing: 'device', note: 'remembered in /a/file' }];
}

describe('tune', () => {
  const shapes = [
    { name: 'one', b: 1, s_q: 1, h_q: 63, seqlens: [10] }, { name: 'same class', b: 1, s_q: 2, h_q: 32, seqlens: [99] },
    { name: 'other', b: 1, h_q: 4, dtype: 'f16', seqlens: [10] }, { name: 'failing', b: 1, h_q: 8, seqlens: [10] },
  ];

  it('tunes each class once, for all loads, shows every trial, and goes on after a failure', async () => {
    const shapesFile = join(directory, 'shapes.json');
    await writeFile(shapesFile, JSON.stringify(shapes));
    const context = fakeContext({ wrap: (mla) => altered(mla, { tune }) });
    expect(await run(['tune', '--shapes', shapesFile, '--json', join(directory, 'out.json')], context)).toBe(1);
    const loads = ['short', 'medium', 'long'];
    expect(asked.map(({ numQTokensPerHeadK, dtype, load, again }) => [numQTokensPerHeadK, dtype, load, again])).toEqual(
      [[64, 'bf16'], [4, 'f16'], [8, 'bf16']].flatMap((one) => loads.map((load) => [...one, load, true])),
    );
    expect(context.choices).toEqual([{ backend: 'webgpu', tune: 'stored' }]);
    expect(context.err).toBe('');
    for (const load of loads) expect(context.out).toContain(`64 rows, ${load}; device time\n`);
    expect(context.out).toMatch(/^a +132 +4\.000 +1\.00 +2\.00$/m);
    expect(context.out).toMatch(/^b +132 +given up$/m);
    expect(context.out).toMatch(/^b +66 +2\.000 +2\.00 +4\.00 +chosen$/m);
    expect(context.out).toMatch(/^c +too large$/m);
    expect(context.out).toContain('remembered in /a/file\n');
    expect(context.out).toContain('8 rows, 1 KV head, short load: not tuned (out-of-memory): no room\n');
    expect(JSON.parse(await readFile(join(directory, 'out.json'), 'utf8'))).toMatchObject({
      backend: 'cpu', reports: [{ load: 'short', chosen, trials }, { load: 'medium' }, { load: 'long' }, ...loads.map((load) => ({ load })), { shapeClass: '8 rows, medium' }, { shapeClass: '8 rows, long' }], failures: [{ shapeClass: 'bf16 576/512, 8 rows, 1 KV head, short load', code: 'out-of-memory' }],
    });
  });

  it('a lost device is replaced for the classes to come; a shape that makes no class is named', async () => {
    const shapesFile = join(directory, 'shapes.json');
    await writeFile(shapesFile, JSON.stringify([{ name: 'odd', b: 1, h_q: 3, h_kv: 2, seqlens: [10] }, shapes[0]]));
    let calls = 0;
    const context = fakeContext({
      wrap: (mla) => altered(mla, {
        tune: async (args) => {
          if (calls++ === 0) throw new MlaError('device-lost', 'gone');
          return tune(args);
        },
      }),
    });
    expect(await run(['tune', '--shapes', shapesFile, '--json', join(directory, 'out.json')], context)).toBe(1);
    expect(context.choices).toHaveLength(2);
    expect(JSON.parse(await readFile(join(directory, 'out.json'), 'utf8'))).toMatchObject({
      reports: [{ load: 'medium' }, { load: 'long' }], failures: [{ shapeClass: 'odd', code: 'invalid-argument' }, { code: 'device-lost' }],
    });
  });

  it('--no-cache keeps from what is remembered, --forget ends it', async () => {
    const context = fakeContext({ wrap: (mla) => altered(mla, { tune }) });
    let forgotten = 0;
    const tuneStore = { ...noStore('a test'), forget: async () => (forgotten++ === 0 ? undefined : 'no way') };
    Object.assign(context, { tuneStore });
    expect(await run(['tune', '--no-cache', '--only', '1024'], context)).toBe(0);
    expect(context.choices).toEqual([{ backend: 'webgpu', tune: 'off' }]);
    expect(await run(['tune', '--forget'], context)).toBe(0);
    expect(await run(['tune', '--forget'], context)).toBe(1);
    expect(context.err).toBe('flashmla-web tune: no way\n');
    expect(context.choices).toHaveLength(1);
  });

  it.each([[['stray']], [['--only', '(']], [['--forget', '--no-cache']], [['--shapes', '/none.json']], [['--json', '/none/out.json']], [['--backend', 'vulkan']]])('%j: status 2, one line', async (args) => {
    const context = fakeContext();
    expect(await run(['tune', ...args], context)).toBe(2);
    expect(context.err).toMatch(/^flashmla-web tune: [^\n]+\n$/);
    expect(context.choices).toEqual([]);
  });
});

describe('bench', () => {
  const bench = async (software: boolean, seqlens: readonly number[], ...args: string[]): Promise<ReturnType<typeof fakeContext>> => {
    const shapesFile = join(directory, 'shapes.json');
    await writeFile(shapesFile, JSON.stringify([{ name: 'tiny', b: seqlens.length, h_q: 4, d_qk: 48, d_v: 32, seqlens }]));
    const context = fakeContext({ wrap: (mla) => altered(mla, { tune, info: { ...mla.info, software } }) });
    expect(await run(['bench', '--shapes', shapesFile, '--runs', '1', ...args], context)).toBe(0);
    return context;
  };

  it.each([['short', [10]], ['medium', [65_000, 537]], ['long', [1e6]]])('tunes the class of a %s shape before it measures it, and nothing behind its back', async (load, seqlens) => {
    const context = await bench(false, seqlens);
    expect(asked).toEqual([{ numQTokensPerHeadK: 4, numHeadsK: 1, headDim: 48, headDimV: 32, dtype: 'bf16', load }]);
    expect(context.choices).toEqual([{ backend: 'auto', tune: 'stored' }]);
  });

  it('--no-tune keeps to the fixed choice; a software adapter is not tuned', async () => {
    expect((await bench(false, [10], '--no-tune')).choices).toEqual([{ backend: 'auto', tune: 'off' }]);
    await bench(true, [10]);
    expect(asked).toEqual([]);
  });
});
