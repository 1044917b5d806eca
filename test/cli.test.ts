/** The built program, as a user runs it: exit statuses, what it writes where, and what it leaves behind. */
import { spawn } from 'node:child_process';
import { closeSync, existsSync, openSync, watch } from 'node:fs';
import { lstat, mkdtemp, readFile, readdir, rm, symlink, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterEach, beforeAll, beforeEach, describe, expect, it } from 'vitest';
import { decode16 } from '../src/bf16.ts';
import { readSafetensors, writeSafetensors, type SafetensorsDType, type SafetensorsTensor } from '../src/safetensors.ts';
import { CLI, bytes, checkBuilt, runCli, tensorsOf, type Ended } from './built-cli.ts';
import { makeCase, type CaseOptions, type DecodeCase } from './cases.ts';
import { compareDecode } from './compare.ts';
import { referenceDecode } from './reference.ts';

let directory: string;
const inside = (name: string): string => join(directory, name);

beforeAll(checkBuilt);
beforeEach(async () => {
  directory = await mkdtemp(join(tmpdir(), 'flashmla-cli-'));
});
afterEach(() => rm(directory, { recursive: true, force: true }));

const cli = (...args: string[]): Promise<Ended> => runCli(args);

const small: CaseOptions = { b: 2, sQ: 2, sK: 100, hQ: 3, dV: 64, rope: 16, blockSize: 16, ragged: true };

/** A small case that cannot fail, changed. */
function changed(change: (tensors: Map<string, SafetensorsTensor>, c: DecodeCase) => void): Uint8Array {
  const c = makeCase(small);
  const tensors = tensorsOf(c);
  change(tensors, c);
  return writeSafetensors(tensors);
}

describe('decode', () => {
  const runs: readonly (readonly [string, CaseOptions, SafetensorsDType, SafetensorsDType])[] = [
    ['BF16, DeepSeek widths', { b: 2, sQ: 1, sK: 140, hQ: 16, ragged: true, zeros: true }, 'BF16', 'BF16'],
    ['F16, causal, own scale', { ...small, dtype: 'f16', causal: true, softmaxScale: 0.3 }, 'F16', 'F16'],
    ['F32, written as BF16', small, 'F32', 'BF16'],
  ];
  it.each(runs)('%s', async (_, options, dtype, outDType) => {
    const c = makeCase(options);
    await writeFile(inside('in.safetensors'), writeSafetensors(tensorsOf(c, dtype)));
    const { status, stdout, stderr } = await cli(
      'decode', inside('in.safetensors'), '-o', inside('out.safetensors'), '--backend', 'cpu', '--json', '--head-dim-v', `${c.dV}`,
      ...(c.causal ? ['--causal'] : []), ...(c.softmaxScale === undefined ? [] : ['--softmax-scale', `${c.softmaxScale}`]),
    );
    expect({ status, stderr }).toEqual({ status: 0, stderr: '' });
    expect(JSON.parse(stdout)).toMatchObject({ backend: 'cpu', tier: null, source: 'wall', out: { shape: [c.b, c.sQ, c.hQ, c.dV] }, lse: { shape: [c.b, c.hQ, c.sQ] } });

    const { tensors } = readSafetensors(await readFile(inside('out.safetensors')));
    const [out, lse] = [tensors.get('out')!, tensors.get('lse')!];
    expect(out).toMatchObject({ dtype: outDType, shape: [c.b, c.sQ, c.hQ, c.dV] });
    expect(lse).toMatchObject({ dtype: 'F32', shape: [c.b, c.hQ, c.sQ] });
    const { softmaxScale, ...rest } = c;
    const expected = referenceDecode({
      ...rest, q: decode16(c.dtype, c.q), kvCache: decode16(c.dtype, c.kvCache), ...(softmaxScale !== undefined && { softmaxScale }),
    });
    const got = { out: decode16(c.dtype, new Uint16Array(out.data.slice().buffer)), lse: new Float32Array(lse.data.slice().buffer) };
    expect(compareDecode(c, expected, got)).toBeUndefined();
    expect((await readdir(directory)).sort()).toEqual(['in.safetensors', 'out.safetensors']);
  });

  it('says in words what it did, follows a link, and writes a device in place', async () => {
    await writeFile(inside('in.safetensors'), changed(() => {}));
    await writeFile(inside('target'), 'old');
    await symlink('target', inside('link'));
    const { status, stdout } = await cli('decode', inside('in.safetensors'), '-o', inside('link'), '--backend', 'cpu', '--head-dim-v', '64');
    expect(status).toBe(0);
    expect(stdout).toMatch(/out bf16 \[2, 2, 3, 64\], lse f32 \[2, 3, 2\]\ncpu on .* ms \(wall time\)\n$/);
    expect((await lstat(inside('link'))).isSymbolicLink()).toBe(true);
    expect([...readSafetensors(await readFile(inside('target'))).tensors.keys()].sort()).toEqual(['lse', 'out']);
    expect((await cli('decode', inside('in.safetensors'), '-o', '/dev/null', '--backend', 'cpu', '--head-dim-v', '64')).status).toBe(0);
    expect((await lstat('/dev/null')).isCharacterDevice()).toBe(true);
  });

  const replace = (tensors: Map<string, SafetensorsTensor>, name: string, change: Partial<SafetensorsTensor>): void => {
    tensors.set(name, { ...tensors.get(name)!, ...change });
  };
  const overlapping = (): Uint8Array => {
    const json = '{"q":{"dtype":"U8","shape":[8],"data_offsets":[0,8]},"kv_cache":{"dtype":"U8","shape":[8],"data_offsets":[4,12]}}';
    const file = new Uint8Array(8 + json.length + 12);
    new DataView(file.buffer).setBigUint64(0, BigInt(json.length), true);
    file.set(new TextEncoder().encode(json), 8);
    return file;
  };
  const oversized = (): Uint8Array => {
    const file = changed(() => {});
    new DataView(file.buffer).setBigUint64(0, 2n ** 40n, true);
    return file;
  };
  // What is wrong, the file, and what the line on stderr must say.
  const bad: readonly (readonly [string, () => Uint8Array, RegExp])[] = [
    ['an empty file', () => new Uint8Array(0), /too short/],
    ['a truncated header', () => changed(() => {}).subarray(0, 100), /truncated/],
    ['truncated data', () => changed(() => {}).slice(0, -1), /past the end/],
    ['an oversized header', oversized, /beyond the limit/],
    ['overlapping tensors', overlapping, /tensor "kv_cache" overlaps tensor "q"/],
    ['no q', () => changed((t) => t.delete('q')), /no tensor q/],
    ['names of another case', () => changed((t, c) => { t.delete('q'); t.set('Q', tensorsOf(c).get('q')!); }), /no tensor q/],
    ['q of integers', () => changed((t) => replace(t, 'q', { dtype: 'I16' })), /tensor q has the wrong dtype; expected BF16 or F16 or F32, got I16/],
    ['a block table of I64', () => changed((t, c) => replace(t, 'block_table', { dtype: 'I64', data: new Uint8Array(8 * c.blockTable.length) })), /block_table.*expected I32, got I64/],
    ['q of another type than kv_cache', () => changed((t) => replace(t, 'q', { dtype: 'F16' })), /kv_cache.*expected f16, got bf16/],
    ['q of rank 3', () => changed((t, c) => replace(t, 'q', { shape: [c.b * c.sQ, c.hQ, c.dQk] })), /rank/],
    ['widths that differ', () => changed((t, c) => replace(t, 'q', { shape: [c.b, c.sQ, c.hQ * 2, c.dQk / 2] })), /d_qk/],
    ['heads that do not divide', () => changed((t, c) => replace(t, 'kv_cache', { shape: [c.numBlocks, c.blockSize / 2, 2, c.dQk] })), /h_q/],
    ['an empty batch', () => changed((t, c) => replace(t, 'q', { shape: [0, c.sQ, c.hQ, c.dQk], data: new Uint8Array(0) })), /q/],
    ['a table of another batch', () => changed((t, c) => replace(t, 'block_table', { shape: [c.b * c.maxBlocksPerSeq, 1] })), /block_table/],
    ['a negative length', () => changed((t) => replace(t, 'cache_seqlens', { data: bytes(Int32Array.of(-1, 1)) })), /cache_seqlens/],
    ['a length beyond the table', () => changed((t) => replace(t, 'cache_seqlens', { data: bytes(Int32Array.of(1, 1_000_000)) })), /cache_seqlens\[1\]/],
    ['a block that is not there', () => changed((t, c) => replace(t, 'block_table', { data: bytes(new Int32Array(c.blockTable.length).fill(c.numBlocks)) })), /block_table\[0\]\[0\]/],
    ['a negative block', () => changed((t, c) => replace(t, 'block_table', { data: bytes(new Int32Array(c.blockTable.length).fill(-1)) })), /block_table\[0\]\[0\]/],
  ];
  it.each(bad)('bad input: %s', async (_, file, message) => {
    await writeFile(inside('in.safetensors'), file());
    // No backend is named: whatever `auto` would take must not add lines of its own.
    const { status, stdout, stderr } = await cli('decode', inside('in.safetensors'), '-o', inside('out.safetensors'), '--head-dim-v', '64');
    expect({ status, stdout }).toEqual({ status: 2, stdout: '' });
    expect(stderr).toMatch(/^flashmla-web decode: [^\n]+\n$/);
    expect(stderr).toMatch(message);
    expect(await readdir(directory)).toEqual(['in.safetensors']);
  });

  const badArgs: readonly (readonly [string, readonly string[], RegExp])[] = [
    ['no output', [], /--output/],
    ['an unknown option', ['-o', 'OUT', '--frobnicate'], /--frobnicate/],
    ['an unknown backend', ['-o', 'OUT', '--backend', 'tpu'], /"tpu"/],
    ['a scale that is NaN', ['-o', 'OUT', '--softmax-scale', 'NaN'], /--softmax-scale/],
    ['a scale that is empty', ['-o', 'OUT', '--softmax-scale='], /--softmax-scale/],
    ['a width that is not an integer', ['-o', 'OUT', '--head-dim-v', '64.5'], /--head-dim-v/],
    ['a width that no kernel has', ['-o', 'OUT', '--head-dim-v', '48'], /headDimV/],
    ['two inputs', ['-o', 'OUT', 'more.safetensors'], /one input file/],
    ['an output directory that is not there', ['-o', 'OUT/none/out.safetensors'], /directory/],
    ['an output that is a directory', ['-o', '.'], /directory/],
    ['the input as output', ['-o', 'IN'], /is the same file as the input/],
  ];
  it.each(badArgs)('bad arguments: %s', async (_, args, message) => {
    await writeFile(inside('in.safetensors'), changed(() => {}));
    const before = await readFile(inside('in.safetensors'));
    const paths = args.map((arg) => arg.replace('OUT', inside('out.safetensors')).replace('IN', inside('in.safetensors')));
    const { status, stderr } = await cli('decode', inside('in.safetensors'), ...paths);
    expect(status).toBe(2);
    expect(stderr).toMatch(/^flashmla-web decode: [^\n]+\n$/);
    expect(stderr).toMatch(message);
    expect(await readdir(directory)).toEqual(['in.safetensors']);
    expect(await readFile(inside('in.safetensors'))).toEqual(before);
  });

  it('one line even when names hold line breaks and escape sequences', async () => {
    const { status, stderr } = await cli('decode', inside('a\n\u001b[31mb'), '-o', inside('out'));
    expect(status).toBe(2);
    expect(stderr).toMatch(/^[^\n]+\n$/);
    expect(stderr).not.toContain('\u001b');
  });

  it('leaves an older output as it was when the input is bad', async () => {
    await writeFile(inside('in.safetensors'), new Uint8Array(3));
    await writeFile(inside('out.safetensors'), 'older');
    expect((await cli('decode', inside('in.safetensors'), '-o', inside('out.safetensors'))).status).toBe(2);
    expect(await readFile(inside('out.safetensors'), 'utf8')).toBe('older');
  });

  it('other failures: status 1, one line, no file', async () => {
    await writeFile(inside('in.safetensors'), changed(() => {}));
    const { status, stdout, stderr } = await cli('decode', inside('in.safetensors'), '-o', inside('out.safetensors'), '--head-dim-v', '64', '--backend', 'cpu', '--tier', 'matrix');
    expect({ status, stdout }).toEqual({ status: 1, stdout: '' });
    expect(stderr).toMatch(/^flashmla-web decode: .*matrix\n$/);
    expect(await readdir(directory)).toEqual(['in.safetensors']);
  });

  it('interrupted while it computes: nothing is left', async () => {
    // A million tokens in few bytes: every table entry names one of the same blocks.
    const width = 62_500;
    await writeFile(inside('in.safetensors'), changed((tensors, c) => {
      replace(tensors, 'block_table', { shape: [c.b, width], data: bytes(Int32Array.from({ length: c.b * width }, (_, i) => i % c.numBlocks)) });
      replace(tensors, 'cache_seqlens', { data: bytes(new Int32Array(c.b).fill(width * c.blockSize)) });
    }));
    const child = spawn(process.execPath, [CLI, 'decode', inside('in.safetensors'), '-o', inside('out.safetensors'), '--head-dim-v', '64', '--backend', 'cpu']);
    const ended = new Promise((resolve) => child.once('exit', (_, signal) => resolve(signal)));
    setTimeout(() => child.kill('SIGINT'), 1000);
    expect(await ended).toBe('SIGINT');
    expect(await readdir(directory)).toEqual(['in.safetensors']);
  });

  it('interrupted while it writes: the whole file or none', async () => {
    const c = makeCase({ b: 16, sQ: 4, sK: 0, hQ: 128, seqlens: Array.from({ length: 16 }, () => 0) });
    await writeFile(inside('in.safetensors'), writeSafetensors(tensorsOf(c)));
    const child = spawn(process.execPath, [CLI, 'decode', inside('in.safetensors'), '-o', inside('out.safetensors'), '--backend', 'cpu']);
    const watcher = watch(directory, (_, name) => {
      if (name?.endsWith('.tmp')) child.kill('SIGINT');
    });
    await new Promise((resolve) => child.once('exit', resolve));
    watcher.close();
    const left = (await readdir(directory)).filter((name) => name !== 'in.safetensors');
    if (left.length > 0) {
      expect(left).toEqual(['out.safetensors']);
      expect(readSafetensors(await readFile(inside('out.safetensors'))).tensors.size).toBe(2);
    }
  });
});

describe('doctor', () => {
  it('--json lists the backends and what auto would take', async () => {
    const { status, stdout } = await cli('doctor', '--json');
    expect(status).toBe(0);
    const report = JSON.parse(stdout) as { version: string; backends: { backend: string; available: boolean; reason: string }[]; auto: { backend: string; reason: string } };
    const { version } = JSON.parse(await readFile(new URL('../package.json', import.meta.url), 'utf8')) as { version: string };
    expect(report.version).toBe(version);
    expect(report.backends.map(({ backend }) => backend)).toEqual(expect.arrayContaining(['webgpu', 'cpu']));
    for (const { reason } of report.backends) expect(reason).not.toBe('');
    expect(report.backends.find(({ backend }) => backend === 'cpu')!.available).toBe(true);
    expect(report.backends.find(({ backend }) => backend === report.auto.backend)!.available).toBe(true);
    expect(report.auto.reason).toContain(report.auto.backend);
  });

  it('in words', async () => {
    const { status, stdout } = await cli('doctor');
    expect(status).toBe(0);
    expect(stdout).toMatch(/^flashmla-web \d/);
    expect(stdout).toMatch(/^cpu: available/m);
    expect(stdout).toMatch(/^auto would take /m);
  });
});

describe('bench', () => {
  const shape = { b: 2, s_q: 1, h_q: 4, h_kv: 2, d_qk: 80, d_v: 64, block_size: 16, causal: false, seqlens: [70, 33] };
  const shapes = [{ ...shape, name: 'plain', regime: 'latency' }, { ...shape, name: 'causal <2>', s_q: 2, causal: true, dtype: 'f16' }];

  it('writes figures, chart and table, and draws no bar into a pipe', async () => {
    await writeFile(inside('shapes.json'), JSON.stringify(shapes));
    const { status, stdout, stderr } = await cli('bench', '--shapes', inside('shapes.json'), '--json', inside('out.json'), '--plot', inside('out.svg'), '--backend', 'cpu', '--check');
    expect({ status, stderr }).toEqual({ status: 0, stderr: '' });
    for (const mark of ['\u001b', '\r', '█', '░']) expect(stdout).not.toContain(mark);
    expect(stdout).toMatch(/^plain +[\d.]+ +[\d.]+ +[\d.]+ +ok$/m);

    const report = JSON.parse(await readFile(inside('out.json'), 'utf8')) as { results: { name: string; ms: number; tflops: number; GBps: number }[] };
    expect(report).toMatchObject({ backend: 'cpu', tier: null, source: 'wall', runs: 15, failures: [], results: [{ name: 'plain', regime: 'latency', check: { ok: true } }, { name: 'causal <2>', check: { ok: true } }] });
    const tokens = 103;
    for (const [i, { ms, tflops, GBps }] of report.results.entries()) {
      expect(ms).toBeGreaterThan(0);
      expect(tflops).toBeCloseTo((2 * 4 * (i + 1) * 144 * tokens) / ms / 1e9, 12);
      expect(GBps).toBeCloseTo((2 * (2 * (i + 1) * 4 * 144 + tokens * 2 * 80)) / ms / 1e6, 12);
    }

    const svg = await readFile(inside('out.svg'), 'utf8');
    expect(svg).toMatch(/^<svg xmlns="http:\/\/www.w3.org\/2000\/svg"/);
    expect(svg).toContain('causal &lt;2&gt;');
    expect(svg.match(/<rect /g)).toHaveLength(1 + 2 * 3);
    // Well-formed: what is opened is closed, in order.
    const open: string[] = [];
    for (const [, close, name, self] of svg.matchAll(/<(\/?)(\w+)(?:\s[\w:-]+="[^"<]*")*(\/?)>/g)) {
      if (close) expect(open.pop()).toBe(name);
      else if (!self) open.push(name!);
    }
    expect(open).toEqual([]);
    expect(svg.replace(/<[^<>]*>/g, '')).not.toMatch(/[<>]/);
  });

  it('reports a shape that the device cannot hold, runs the others and ends with status 1', async () => {
    await writeFile(inside('shapes.json'), JSON.stringify([{ ...shape, name: 'huge', seqlens: [4_000_000_000, 1] }, ...shapes]));
    const { status, stdout, stderr } = await cli('bench', '--shapes', inside('shapes.json'), '--json', inside('out.json'), '--backend', 'cpu', '--runs', '1', '--only', 'huge|plain');
    expect({ status, stderr }).toEqual({ status: 1, stderr: '' });
    expect(stdout).toMatch(/^huge: not run \(limit-exceeded\): /m);
    const report = JSON.parse(await readFile(inside('out.json'), 'utf8')) as { results: { name: string }[]; failures: { name: string; code: string }[] };
    expect(report.results.map(({ name }) => name)).toEqual(['plain']);
    expect(report.failures).toMatchObject([{ name: 'huge', code: 'limit-exceeded' }]);
  });

  it('bad shapes and options: status 2, one line', async () => {
    await writeFile(inside('bad.json'), JSON.stringify([{ ...shape, name: 'bad', seqlens: [1] }]));
    await writeFile(inside('good.json'), JSON.stringify(shapes));
    for (const args of [
      ['--shapes', inside('none.json')], ['--shapes', inside('bad.json')], ['--shapes', inside('good.json'), '--only', 'nothing'],
      ['--only', '('], ['--runs', '0'], ['--json', inside('none/out.json')], ['--json'], ['stray'], ['--tier', 'fast'],
      // One file in the place of another.
      ['--shapes', inside('good.json'), '--json', inside('good.json')], ['--json', inside('x'), '--plot', join(inside('.'), 'x')],
    ]) {
      const { status, stderr } = await cli('bench', ...args, '--backend', 'cpu');
      expect({ args, status }).toEqual({ args, status: 2 });
      expect(stderr).toMatch(/^flashmla-web bench: [^\n]+\n$/);
    }
  });
});

describe('the program', () => {
  it('--help, --version, and what it does not know', async () => {
    const help = await cli('--help');
    expect(help.status).toBe(0);
    for (const command of ['doctor', 'decode', 'bench']) {
      expect(help.stdout).toContain(`flashmla-web ${command}`);
      expect(await cli(command, '--help')).toMatchObject({ status: 0, stderr: '', stdout: expect.stringMatching(`^Usage: flashmla-web ${command}`) });
    }
    expect((await cli('--version')).stdout).toMatch(/^\d+\.\d+\.\d+\n$/);
    expect(await cli('generte')).toMatchObject({ status: 2, stdout: '', stderr: expect.stringMatching(/^flashmla-web: unknown command "generte"[^\n]*\n$/) });
    expect(await cli()).toMatchObject({ status: 2, stdout: '' });
  });

  it('a reader that has gone costs a command neither its files nor its status', async () => {
    const shape = { b: 1, s_q: 1, h_q: 4, h_kv: 2, d_qk: 80, d_v: 64, block_size: 16, causal: false };
    await writeFile(inside('shapes.json'), JSON.stringify([{ ...shape, name: 'small', seqlens: [33] }, { ...shape, name: 'huge', seqlens: [4_000_000_000] }]));
    const child = spawn(process.execPath, [CLI, 'bench', '--shapes', inside('shapes.json'), '--json', inside('out.json'), '--backend', 'cpu', '--runs', '1'], { stdio: ['ignore', 'pipe', 'pipe'] });
    child.stdout.destroy();
    expect(await new Promise((resolve) => child.once('close', resolve))).toBe(1);
    expect(JSON.parse(await readFile(inside('out.json'), 'utf8'))).toMatchObject({ results: [{ name: 'small' }], failures: [{ name: 'huge' }] });
  });

  it.runIf(existsSync('/dev/full'))('a full disk behind standard output: status 1, one line', async () => {
    const full = openSync('/dev/full', 'w');
    const child = spawn(process.execPath, [CLI, 'doctor'], { stdio: ['ignore', full, 'pipe'] });
    let stderr = '';
    child.stderr!.on('data', (data) => (stderr += data));
    expect(await new Promise((resolve) => child.once('close', resolve))).toBe(1);
    closeSync(full);
    expect(stderr).toBe('flashmla-web: standard output: cannot be written: the disk is full\n');
  });

  it('ends quietly when its reader has gone', async () => {
    const child = spawn(process.execPath, [CLI, '--help'], { stdio: ['ignore', 'pipe', 'pipe'] });
    child.stdout.destroy();
    let stderr = '';
    child.stderr.on('data', (data) => (stderr += data));
    expect(await new Promise((resolve) => child.once('close', resolve))).toBe(0);
    expect(stderr).toBe('');
  });
});
