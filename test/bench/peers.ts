/**
 * `npm run bench:peers`: this package's webgpu backend against TensorFlow.js WebGPU, same Dawn, same adapter, same
 * shapes. Both are checked against the float64 oracle first. Wall time with a readback that forces completion; runs
 * take turns between ours and each way to write theirs; medians, of theirs the quickest's. Exit 1 when a ratio is
 * under the floor of the shapes.
 *
 *   --shapes small|big     issue A's three (default, at least 5 times), or issue C's two (at least 20 times)
 *   --adapter system       the machine's own GPU in place of SwiftShader
 *   --runs N               timed runs of each (15)
 *   --calls N              decode calls enqueued before each readback (1); times are a call
 *   --json FILE
 *
 * Outside the timed part: what is made once a step (metadata; their mask) or once a cache (pages; their V, padding).
 * We read lse back, b * h_q numbers, they one element of the output: the larger readback is ours.
 */
import { existsSync, writeFileSync } from 'node:fs';
import { fileURLToPath } from 'node:url';
import { parseArgs } from 'node:util';
import { decode16 } from '../../src/bf16.ts';
import { median } from '../../src/median.ts';
import type { Mla, MlaTensor } from '../../src/mla.ts';
import { decodeArgs, makeCase, type CaseOptions, type DecodeCase } from '../cases.ts';
import { compare, compareDecode, outTolerance } from '../compare.ts';
import { referenceDecode, type ReferenceResult } from '../reference.ts';
import { softwareGpu } from '../software-adapter.ts';
import { TFJS_VERSION, contenders, formulations, loadTfjs, resultTfjs, timeTfjs, type Contiguous } from './tfjs.ts';

interface ShapeSet {
  /** Least acceptable ratio. */
  readonly floor: number;
  readonly shapes: readonly CaseOptions[];
}

const RAGGED = [512, 480, 544, 497, 531, 455, 566, 511];
const SETS: Readonly<Record<string, ShapeSet>> = {
  small: {
    floor: 5,
    shapes: [
      { b: 1, sQ: 1, sK: 1024, hQ: 16 },
      { b: 1, sQ: 1, sK: 1024, hQ: 128 },
      { b: 8, sQ: 1, sK: 512, hQ: 16, seqlens: RAGGED },
    ],
  },
  big: {
    floor: 20,
    shapes: [
      { b: 8, sQ: 1, sK: 4096, hQ: 128 },
      { b: 32, sQ: 1, sK: 4096, hQ: 16 },
    ],
  },
};

interface Row {
  readonly name: string;
  readonly b: number;
  readonly h_q: number;
  readonly seqlens: number[];
  readonly ours_ms: number;
  readonly tfjs_ms: number;
  readonly ratio: number;
  /** CPU time a call of the whole process, medians: on a software adapter a figure that other programs disturb less. */
  readonly ours_cpu_ms: number;
  readonly tfjs_cpu_ms: number;
  /** What `Mla.time` says of one call. */
  readonly ours_kernel_ms: number;
  readonly ours_kernel_source: 'device' | 'wall';
  readonly tfjs_formulation: string;
  /** Medians of the formulations that were timed; the figures above are the quickest's. */
  readonly tfjs_formulations: Readonly<Record<string, number>>;
}

const { values: options } = parseArgs({
  options: {
    adapter: { type: 'string' },
    shapes: { type: 'string', default: 'small' },
    runs: { type: 'string', default: '15' },
    calls: { type: 'string', default: '1' },
    json: { type: 'string' },
  },
});

function usage(problem: string): never {
  console.error(`bench:peers: ${problem}`);
  process.exit(2);
}

function positive(name: 'runs' | 'calls'): number {
  const n = Number(options[name]);
  return Number.isInteger(n) && n > 0 ? n : usage(`--${name}: expected a positive integer, got ${options[name]}`);
}

/** The built package, as a user has it. Its types come from the source, so that type checks need no build. */
async function builtPackage(): Promise<typeof import('../../src/node.ts')> {
  const url = new URL('../../dist/node.js', import.meta.url);
  if (!existsSync(fileURLToPath(url))) usage('dist/node.js is missing: run npm run build first');
  return import(url.href);
}

interface Sample {
  readonly ms: number;
  readonly cpuMs: number;
}

interface Summary extends Sample {
  readonly name: string;
}

/** `run` gives the wall milliseconds a call. */
async function sample(run: () => Promise<number>, calls: number): Promise<Sample> {
  const before = process.cpuUsage();
  const ms = await run();
  const { user, system } = process.cpuUsage(before);
  return { ms, cpuMs: (user + system) / 1000 / calls };
}

/** The same numbers without pages, in f32. */
function contiguous(c: DecodeCase): Contiguous {
  const pool = decode16(c.dtype, c.kvCache);
  const kv = Array.from(c.cacheSeqlens, (length, s) => {
    const rows = new Float32Array(length * c.dQk);
    for (let t = 0; t < length; t++) {
      const slot = c.blockTable[s * c.maxBlocksPerSeq + Math.floor(t / c.blockSize)]! * c.blockSize + (t % c.blockSize);
      rows.set(pool.subarray(slot * c.dQk, (slot + 1) * c.dQk), t * c.dQk);
    }
    return rows;
  });
  return { hQ: c.hQ, dQk: c.dQk, dV: c.dV, seqlens: [...c.cacheSeqlens], q: decode16(c.dtype, c.q), kv };
}

/** Our side of one shape: tensors on the device, metadata made, output memory reused, as from layer to layer. */
async function prepareOurs(mla: Mla, c: DecodeCase) {
  const host = decodeArgs(c);
  const held: MlaTensor[] = [];
  const upload = async (input: Parameters<Mla['tensor']>[0]): Promise<MlaTensor> => {
    const tensor = await mla.tensor(input);
    held.push(tensor);
    return tensor;
  };
  const args = {
    ...host,
    q: await upload({ data: c.q, shape: [c.b, c.sQ, c.hQ, c.dQk], dtype: c.dtype }),
    kvCache: await upload({ data: c.kvCache, shape: [c.numBlocks, c.blockSize, c.hKv, c.dQk], dtype: c.dtype }),
    blockTable: await upload({ data: c.blockTable, shape: [c.b, c.maxBlocksPerSeq] }),
    metadata: mla.getMlaMetadata({ cacheSeqlens: c.cacheSeqlens, numQTokensPerHeadK: c.hQ, numHeadsK: 1, blockSize: c.blockSize }),
  };
  const { out, lse } = await mla.flashMlaWithKvCache(args);
  held.push(out, lse);
  const call = () => mla.flashMlaWithKvCache({ ...args, out, lse });
  return {
    out, lse, call,
    /** `calls` times over, then waits by reading lse. Milliseconds a call. */
    async time(calls: number): Promise<number> {
      const start = performance.now();
      for (let i = 0; i < calls; i++) await call();
      await lse.read();
      return (performance.now() - start) / calls;
    },
    dispose: () => held.forEach((tensor) => tensor.destroy()),
  };
}

/** All sequences of a small problem, the first and the last of a large one: the oracle runs on one core. */
function checkedSequences(c: DecodeCase): number[] {
  const all = Array.from({ length: c.b }, (_, s) => s);
  const tokens = c.cacheSeqlens.reduce((n, length) => n + length, 0);
  return tokens * c.hQ <= 1 << 20 ? all : [0, c.b - 1];
}

function fail(who: string, c: DecodeCase, problem: string | undefined): void {
  if (problem !== undefined) throw new Error(`${who} computes something else on ${c.name}:\n${problem}`);
}

async function measure(mla: Mla, tf: Awaited<ReturnType<typeof loadTfjs>>['tf'], shape: CaseOptions, runs: number, calls: number): Promise<Row> {
  const c = makeCase(shape);
  console.error(c.name);
  const sequences = checkedSequences(c);
  const expected: ReferenceResult = referenceDecode({ ...c, q: decode16(c.dtype, c.q), kvCache: decode16(c.dtype, c.kvCache), softmaxScale: c.dQk ** -0.5 }, sequences);

  const ours = await prepareOurs(mla, c);
  fail('this package', c, compareDecode(c, expected, { out: await ours.out.read(), lse: await ours.lse.read() }, sequences));
  const problem = contiguous(c);
  const theirs = await contenders(tf, formulations(tf, problem), calls);
  const each = c.hQ * c.dV;
  for (const formulation of theirs) {
    const out = await resultTfjs(tf, formulation, problem);
    for (const s of sequences) {
      const part = <T extends Float64Array | Float32Array>(x: T) => x.subarray(s * each, (s + 1) * each);
      fail('TensorFlow.js', c, compare(`out of sequence ${s}, ${formulation.name}`, [c.hQ, c.dV], part(expected.out), part(out), outTolerance));
    }
  }

  const turns = [{ name: 'ours', run: () => ours.time(calls) }, ...theirs.map((f) => ({ name: f.name, run: () => timeTfjs(tf, f, calls) }))];
  const samples = turns.map((): Sample[] => []);
  for (let i = -1; i < runs; i++) {
    for (const [k, turn] of turns.entries()) {
      const taken = await sample(turn.run, calls);
      // The round before the first warms up.
      if (i >= 0) samples[k]!.push(taken);
    }
  }
  const kernel: Awaited<ReturnType<Mla['time']>>[] = [];
  for (let i = 0; i < 5; i++) kernel.push(await mla.time(ours.call));
  ours.dispose();
  for (const formulation of theirs) formulation.dispose();

  const [mine, ...others] = samples.map((taken, k) => ({
    name: turns[k]!.name, ms: median(taken.map((x) => x.ms)), cpuMs: median(taken.map((x) => x.cpuMs)),
  })) as [Summary, ...Summary[]];
  const quickest = others.reduce((a, b) => (b.ms < a.ms ? b : a));
  return {
    name: `b=${c.b} h_q=${c.hQ} s_k=${shape.seqlens ? `ragged ${Math.min(...shape.seqlens)}-${Math.max(...shape.seqlens)}` : shape.sK}`,
    b: c.b, h_q: c.hQ, seqlens: [...c.cacheSeqlens],
    ours_ms: mine.ms, tfjs_ms: quickest.ms, ratio: quickest.ms / mine.ms, ours_cpu_ms: mine.cpuMs, tfjs_cpu_ms: quickest.cpuMs,
    ours_kernel_ms: median(kernel.map((k) => k.ms)), ours_kernel_source: kernel[0]!.source,
    tfjs_formulation: quickest.name, tfjs_formulations: Object.fromEntries(others.map((o) => [o.name, o.ms])),
  };
}

function printTable(rows: readonly Row[], floor: number): void {
  const table = [
    ['shape', 'ours ms', 'tfjs ms', 'ratio', 'ours cpu', 'tfjs cpu', 'cpu ratio', `ours ${rows[0]!.ours_kernel_source} ms`, 'tfjs does'],
    ...rows.map((r) => [
      r.name, r.ours_ms.toFixed(3), r.tfjs_ms.toFixed(3), `${r.ratio.toFixed(2)}x${r.ratio < floor ? ' LOW' : ''}`,
      r.ours_cpu_ms.toFixed(1), r.tfjs_cpu_ms.toFixed(1), `${(r.tfjs_cpu_ms / r.ours_cpu_ms).toFixed(2)}x`, r.ours_kernel_ms.toFixed(3), r.tfjs_formulation,
    ]),
  ];
  const left = (column: number): boolean => column === 0 || column === table[0]!.length - 1;
  const widths = table[0]!.map((_, i) => Math.max(...table.map((cells) => cells[i]!.length)));
  for (const cells of table) console.log(cells.map((cell, i) => (left(i) ? cell.padEnd(widths[i]!) : cell.padStart(widths[i]!))).join('  ').trimEnd());
}

async function main(): Promise<number> {
  const set = Object.hasOwn(SETS, options.shapes) ? SETS[options.shapes]! : usage(`--shapes: expected ${Object.keys(SETS).join(' or ')}, got ${options.shapes}`);
  const runs = positive('runs');
  const calls = positive('calls');
  if (options.adapter !== undefined) {
    if (options.adapter !== 'system' && options.adapter !== 'swiftshader') usage(`--adapter: expected system or swiftshader, got ${options.adapter}`);
    process.env['FLASHMLA_ADAPTER'] = options.adapter;
  }
  const { createMla } = await builtPackage();
  const gpu = await softwareGpu();
  const { tf, device } = await loadTfjs(gpu);
  // What flashmla-web tune has found is used; nothing is measured in the background.
  const mla = await createMla({ backend: 'webgpu', gpu, tune: 'stored' });
  const { description, vendor, architecture } = device.adapterInfo;
  if (![description, vendor, architecture].every((part) => mla.info.device.includes(part))) {
    throw new Error(`two adapters: ${mla.info.device} for this package, ${description}, ${vendor}, ${architecture} for TensorFlow.js`);
  }
  console.log(`${mla.info.device}; tier ${mla.info.tier ?? 'none'}; TensorFlow.js ${TFJS_VERSION} WebGPU`);
  console.log(`wall time a call, readback each ${calls === 1 ? 'call' : `${calls} calls`}, median of ${runs}, alternating`);

  const rows: Row[] = [];
  for (const shape of set.shapes) rows.push(await measure(mla, tf, shape, runs, calls));
  printTable(rows, set.floor);
  const low = rows.filter((row) => row.ratio < set.floor);
  if (options.json !== undefined) {
    const report = { adapter: mla.info.device, tier: mla.info.tier, tfjs: TFJS_VERSION, runs, calls, floor: set.floor, passed: low.length === 0, rows };
    writeFileSync(options.json, `${JSON.stringify(report, null, 2)}\n`);
  }
  await mla.destroy();
  device.destroy();
  console.log(low.length === 0 ? `every ratio is at least ${set.floor}` : `${low.length} of ${rows.length} ratios under ${set.floor}`);
  return low.length === 0 ? 0 : 1;
}

// Dawn keeps the process alive otherwise.
process.exit(await main());
