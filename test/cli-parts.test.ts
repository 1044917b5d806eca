/** Parts of the command line that a run of the whole program does not reach. */
import { mkdtemp, readFile, readdir, readlink, rm, stat, symlink, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { describe, expect, it } from 'vitest';
import { bench } from '../src/cli/bench.ts';
import { checkWorkload } from '../src/cli/check.ts';
import type { Context } from '../src/cli/context.ts';
import { checkOutputs, writeOutput } from '../src/cli/output-file.ts';
import { plotSvg } from '../src/cli/plot-svg.ts';
import { randomBits } from '../src/cli/random.ts';
import { permutation, seededRandom } from '../src/random.ts';
import { run } from '../src/cli/run.ts';
import { BUILT_IN_SHAPES, parseShapes, shapeCost, type BenchShape } from '../src/cli/shapes.ts';
import { figure } from '../src/cli/stats.ts';
import { median } from '../src/median.ts';
import { table } from '../src/cli/table.ts';
import { makeWorkload } from '../src/cli/workload.ts';
import { MlaError } from '../src/errors.ts';
import { createMla } from '../src/index.ts';
import { noStore } from '../src/tune-store.ts';
import { expectRefusal } from './check.ts';
import { altered } from './altered.ts';
import { fakeContext } from './fake-context.ts';

const shape: BenchShape = {
  name: 'small', b: 3, s_q: 2, h_q: 4, h_kv: 2, d_qk: 80, d_v: 64, block_size: 16, causal: true, dtype: 'bf16', seqlens: [50, 0, 17],
};

async function withDirectory(use: (directory: string) => Promise<void>): Promise<void> {
  const directory = await mkdtemp(join(tmpdir(), 'flashmla-parts-'));
  try {
    await use(directory);
  } finally {
    await rm(directory, { recursive: true, force: true });
  }
}

describe('bench', () => {
  it('draws a bar on a terminal and takes it away', async () => {
    const context = fakeContext({ isTTY: true });
    await withDirectory(async (directory) => {
      await writeFile(join(directory, 'shapes.json'), JSON.stringify([shape]));
      expect(await bench(['--shapes', join(directory, 'shapes.json'), '--runs', '2'], context)).toBe(0);
    });
    const frames = context.err.split('\r\u001b[K');
    expect(frames.some((frame) => /^█+░+ 50%, \d+ s left {2}small$/.test(frame))).toBe(true);
    expect(frames.some((frame) => frame.startsWith(`${'█'.repeat(30)} 100%`))).toBe(true);
    expect(frames.at(-1)).toBe('');
    for (const frame of frames) expect(frame.length).toBeLessThan(100);
    expect(context.out).not.toContain('█');
  });

  it('a lost device fails its shape and is replaced for the next', async () => {
    let calls = 0;
    const context = fakeContext({
      wrap: (mla) => altered(mla, {
        time: async (work) => {
          if (calls++ === 0) throw new MlaError('device-lost', 'the device\nwas lost');
          await work();
          return { ms: 2, source: 'device' };
        },
      }),
    });
    await withDirectory(async (directory) => {
      const [shapes, json] = [join(directory, 'shapes.json'), join(directory, 'out.json')];
      await writeFile(shapes, JSON.stringify([{ ...shape, name: 'first' }, { ...shape, name: 'second' }]));
      expect(await bench(['--shapes', shapes, '--json', json, '--runs', '3'], context)).toBe(1);
      expect(JSON.parse(await readFile(json, 'utf8'))).toMatchObject({
        source: 'device',
        results: [{ name: 'second', ms: 2, runs: 3 }],
        failures: [{ name: 'first', code: 'device-lost', message: 'the device was lost' }],
      });
    });
    expect(context.choices).toHaveLength(2);
    expect(context.out).toContain('first: not run (device-lost): the device was lost\n');
  });

  it('a lost device that is not to be replaced: what there is is reported, and every shape to come', async () => {
    let calls = 0;
    let made = 0;
    const context = fakeContext({
      wrap: (mla) => {
        if (made++ > 0) throw new MlaError('backend-unavailable', 'no adapter any more');
        return altered(mla, {
          time: async (work) => {
            if (calls++ > 3) throw new MlaError('device-lost', 'the device was lost');
            await work();
            return { ms: 2, source: 'device' };
          },
        });
      },
    });
    await withDirectory(async (directory) => {
      const [shapes, json] = [join(directory, 'shapes.json'), join(directory, 'out.json')];
      await writeFile(shapes, JSON.stringify(['first', 'second', 'third', 'fourth'].map((name) => ({ ...shape, name }))));
      expect(await bench(['--shapes', shapes, '--json', json, '--runs', '3'], context)).toBe(1);
      expect(JSON.parse(await readFile(json, 'utf8'))).toMatchObject({
        results: [{ name: 'first', ms: 2 }],
        failures: [{ name: 'second', code: 'device-lost' }, { name: 'third', code: 'backend-unavailable' }, { name: 'fourth', code: 'backend-unavailable' }],
      });
    });
    expect(context.out).toMatch(/^first +2\.000/m);
  });

  it('gives back all that a shape took, whether it ran or not', async () => {
    const mla = await createMla({ backend: 'cpu' });
    const { destroy } = await makeWorkload(mla, shape, 1);
    destroy();
    expect(await mla.memory()).toMatchObject({ bytes: 0, allocations: 0 });
    const failing = altered(mla, { flashMlaWithKvCache: () => Promise.reject(new MlaError('out-of-memory', 'no')) });
    await expect(makeWorkload(failing, shape, 1)).rejects.toMatchObject({ code: 'out-of-memory' });
    expect(await mla.memory()).toMatchObject({ bytes: 0, allocations: 0 });
    await mla.destroy();
  });

  it('the check passes right results and catches wrong ones', async () => {
    const mla = await createMla({ backend: 'cpu' });
    // Longer than one chunk of random rows, so that the pool's filling wraps around.
    const long = { ...shape, seqlens: [4500, 0, 100] };
    const workload = await makeWorkload(mla, long, 7);
    expect(await checkWorkload(long, workload, 7)).toMatchObject({ ok: true, rows: 6 });
    const scaled = await mla.flashMlaWithKvCache({ ...workload.args, softmaxScale: 1 });
    expect(scaled.out).toBe(workload.out);
    const report = await checkWorkload(long, workload, 7);
    expect(report.ok).toBe(false);
    expect(report.fault).toMatch(/^sequence 0, query \d, head \d: out off by/);
    await mla.destroy();
  });

  it('counts as the benchmark does: b32-q1-h128-4096 is 36.507 GFLOP and 159.9 MB', () => {
    const { flops, bytes } = shapeCost({ ...shape, b: 32, s_q: 1, h_q: 128, h_kv: 1, d_qk: 576, d_v: 512, seqlens: Array.from({ length: 32 }, () => 4096) });
    expect(flops / 1e9).toBeCloseTo(36.507, 3);
    expect(bytes / 1e6).toBeCloseTo(159.9, 1);
  });

  it('reads what it would write, and names the field that is wrong', () => {
    expect(parseShapes(JSON.stringify(BUILT_IN_SHAPES), 'x')).toEqual(BUILT_IN_SHAPES);
    expect(parseShapes('[{"name":"least","b":1,"h_q":1,"seqlens":[0]}]', 'x')[0]).toMatchObject({ s_q: 1, h_kv: 1, d_qk: 576, d_v: 512, block_size: 64, causal: false, dtype: 'bf16' });
    const wrong: readonly (readonly [string, string])[] = [
      ['{', 'not JSON'], ['{}', 'no shapes'], ['[]', 'no shapes'], ['[1]', 'shape 0: is not an object'], [JSON.stringify([shape, shape]), 'one name'],
      ...Object.entries({ name: '', regime: 1, b: 0, s_q: 1.5, h_q: -1, h_kv: '1', d_qk: null, d_v: 0, block_size: 2 ** 60, causal: 1, dtype: 'f64', seqlens: [1, 2] })
        .filter(([, value]) => value !== null)
        .map(([field, value]) => [JSON.stringify([{ ...shape, [field]: value }]), `shape 0.${field}`] as const),
      [JSON.stringify([{ ...shape, seqlens: [1, 2, -1] }]), 'shape 0.seqlens'],
    ];
    for (const [json, message] of wrong) {
      expect(() => parseShapes(json, 'x')).toThrow(expect.objectContaining({ code: 'invalid-file', message: expect.stringContaining(message) as string }));
    }
  });
});

describe('output files', () => {
  it('are there whole or not at all', async () => {
    await withDirectory(async (directory) => {
      const path = join(directory, 'out');
      function* failing(): Generator<Uint8Array> {
        yield new Uint8Array(10);
        throw new Error('no more');
      }
      await expect(writeOutput(path, failing())).rejects.toThrow('no more');
      expect(await readdir(directory)).toEqual([]);
      await writeOutput(path, [Uint8Array.of(1, 2), new Uint8Array(0), Uint8Array.of(3)]);
      expect([...(await readFile(path))]).toEqual([1, 2, 3]);
      await expect(writeOutput(path, failing())).rejects.toThrow(path);
      expect([...(await readFile(path))]).toEqual([1, 2, 3]);
      expect(await readdir(directory)).toEqual(['out']);
    });
    expect(process.listenerCount('SIGTERM')).toBeLessThan(3);
  });

  it('keep their mode, and go where links lead', async () => {
    await withDirectory(async (directory) => {
      const [path, link, ahead] = ['out', 'link', 'ahead'].map((name) => join(directory, name)) as [string, string, string];
      await writeFile(path, 'x', { mode: 0o600 });
      await symlink('out', link);
      await symlink('new', ahead);
      for (const to of [link, ahead]) await writeOutput(to, [Uint8Array.of(1)]);
      expect((await stat(path)).mode & 0o777).toBe(0o600);
      expect([...(await readFile(path)), ...(await readFile(join(directory, 'new')))]).toEqual([1, 1]);
      expect(await Promise.all([link, ahead].map((name) => readlink(name)))).toEqual(['out', 'new']);
    });
  });

  it('are not two of one, nor an input, whatever they are called', async () => {
    await withDirectory(async (directory) => {
      const path = (name: string): string => join(directory, name);
      await writeFile(path('in'), 'x');
      await symlink('in', path('link'));
      await symlink('new', path('ahead'));
      await expectRefusal(() => checkOutputs({ '--json': path('link') }, { '--shapes': path('in') }), 'invalid-argument', '--json');
      await expectRefusal(() => checkOutputs({ '--json': path('new'), '--plot': path('ahead') }), 'invalid-argument', '--plot');
      await checkOutputs({ '--json': path('new'), '--plot': path('other'), '--none': undefined }, { '--shapes': path('in'), '--none': undefined });
      await checkOutputs({ '--json': '/dev/null', '--plot': '/dev/null' });
    });
  });
});

describe('doctor', () => {
  it('shows devices, limits and reasons, and ends with status 1 when nothing runs', async () => {
    const context: Context & { out: string } = Object.assign(fakeContext(), {
      createMla: () => Promise.reject(new MlaError('backend-unavailable', 'nothing\nhere')),
      listBackends: async () => [
        { backend: 'webgpu' as const, available: true, reason: 'works', device: 'A GPU', tier: 'base', tierNotes: ['subgroup: no feature subgroups'], features: ['x', 'y'], limits: { maxBufferSize: 1073741824, maxThings: 8 }, software: true },
        { backend: 'cpu' as const, available: false, reason: 'because' },
      ],
    });
    expect(await run(['doctor'], context)).toBe(1);
    expect(context.out).toMatch(/webgpu: available: works\n {2}device {4}A GPU \(software\)\n {2}tier {6}base\n {12}not subgroup: no feature subgroups\n {2}features {2}x y\n/);
    expect(context.out).toMatch(/ {2}limits {4}maxBufferSize {2}1073741824 \(1 GiB\)\n {12}maxThings {6}8\n/);
    expect(context.out).toContain('cpu: not available: because\n');
    expect(context.out).toContain('auto finds nothing: nothing here\n');
    expect(context.out).toContain('tuned: nothing is remembered in nowhere: a test\n');
  });

  it('shows what is remembered', async () => {
    const choice = { config: 'base 4x16/128', slots: 132, ms: 1 };
    const tuneStore = { ...noStore('a test'), place: '/a/file', load: async () => new Map([['0.1.0 | gpu | f16 48/32', choice]]) };
    const context = Object.assign(fakeContext(), { tuneStore });
    await run(['doctor'], context);
    expect(context.out).toContain('tuned, as remembered in /a/file:\n  0.1.0 | gpu | f16 48/32: base 4x16/128, 132 slots\n');
    context.out = '';
    await run(['doctor', '--json'], context);
    expect(JSON.parse(context.out)).toMatchObject({ tuned: { place: '/a/file', choices: { '0.1.0 | gpu | f16 48/32': choice } } });
  });
});

describe('figures', () => {
  it('medians and significant digits', () => {
    expect([median([3, 1, 2]), median([4, 1, 3, 2]), median([5])]).toEqual([2, 2.5, 5]);
    expect(median([])).toBeNaN();
    expect([figure(0.0012345), figure(12.345), figure(1234.5), figure(0), figure(0.5, 4)]).toEqual(['0.00123', '12.3', '1235', '0', '0.5000']);
  });

  it('tables line up', () => {
    const columns = [{ title: 'name', align: 'left' }, { title: 'ms', align: 'right' }] as const;
    expect(table(columns, [['a', '1.25'], ['longer', '10']])).toBe('name      ms\na       1.25\nlonger    10\n');
  });

  it('charts of nothing, of one value, of many decades, and of names that XML cannot hold', () => {
    const panels = [{ label: 'ms', better: 'lower' }] as const;
    const chart = (rows: Parameters<typeof plotSvg>[0]['rows']): string => plotSvg({ title: 'A & B', subtitle: '', panels, rows });
    expect(chart([])).toContain('A &amp; B');
    for (const values of [[1], [1e-9, 1e9], [10, 100, 1000], [999.9], [0], [0, 5]]) {
      const svg = chart(values.map((value) => ({ name: '\u0000<x>"', values: [value] })));
      expect(svg).not.toMatch(/NaN|Infinity|undefined|<x>/);
      expect(svg).not.toContain('\u0000');
      for (const [, width] of svg.matchAll(/<rect x="[\d.]+" y="[\d.]+" width="([\d.]+)"/g)) {
        expect(Number(width)).toBeGreaterThan(0);
        expect(Number(width)).toBeLessThanOrEqual(250);
      }
    }
    expect(chart([{ name: 'x', values: [], note: 'did not run' }])).toContain('did not run');
  });

  it('random data are the same every time and look normal', () => {
    const bits = randomBits(2_000_000, 'bf16', 5);
    expect(randomBits(1000, 'bf16', 5)).toEqual(bits.slice(0, 1000));
    expect(randomBits(1000, 'bf16', 6)).not.toEqual(bits.slice(0, 1000));
    const values = new Float32Array(new Uint32Array(bits.subarray(0, 100_000)).map((x) => x << 16).buffer);
    const mean = values.reduce((sum, x) => sum + x, 0) / values.length;
    const deviation = Math.sqrt(values.reduce((sum, x) => sum + (x - mean) ** 2, 0) / values.length);
    expect(Math.abs(mean)).toBeLessThan(0.002);
    expect(deviation).toBeCloseTo(0.1, 2);
    expect([...permutation(100, seededRandom(1))].sort((x, y) => x - y)).toEqual(Array.from({ length: 100 }, (_, i) => i));
  });
});
