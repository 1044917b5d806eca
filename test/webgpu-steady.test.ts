/** The steady state: after its first steps a decode loop asks the device for nothing but to run. */
import { mkdtemp, readFile, rm, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterAll, beforeAll, describe, expect, test } from 'vitest';
import { encode16 } from '../src/bf16.ts';
import type { LoadClass, Mla, MlaTensor, PagedKvCache, SequenceId } from '../src/mla.ts';
import { createMla } from '../src/node.ts';
import { LOADS, LOAD_TOKENS, loadOf } from '../src/schedule.ts';
import { BindGroups } from '../src/webgpu/bind-groups.ts';
import type { Kernel } from '../src/webgpu/kernel.ts';
import { countCalls, type CallCounter } from './count-calls.ts';
import { Random } from './random.ts';
import { softwareGpu } from './software-adapter.ts';

// Narrow heads compile soonest.
const [D_V, WIDTH, BLOCK, H_Q] = [32, 48, 16, 8];
const STEPS = 24;

let directory: string;
let outer: string | undefined;
beforeAll(async () => {
  directory = await mkdtemp(join(tmpdir(), 'flashmla-steady-'));
  outer = process.env['FLASHMLA_CACHE_DIR'];
  process.env['FLASHMLA_CACHE_DIR'] = directory;
});
afterAll(async () => {
  process.env['FLASHMLA_CACHE_DIR'] = outer;
  await rm(directory, { recursive: true, force: true });
});

/** Has the calls below remembered as tuned, medium loads with a kernel of their own, each load with a cut of its own. */
async function remember(): Promise<void> {
  const mla = await createMla({ backend: 'webgpu', gpu: await softwareGpu(), tune: 'stored' });
  const [report] = await mla.tune({ numQTokensPerHeadK: H_Q, headDim: WIDTH, headDimV: D_V, load: 'short' });
  await mla.destroy();
  const file = join(directory, 'tune.json');
  const { format, choices } = JSON.parse(await readFile(file, 'utf8')) as { format: number; choices: Record<string, object> };
  const [key] = Object.keys(choices);
  // Two that take these blocks.
  const tried = report!.trials.filter(({ config, slots }) => slots !== undefined && Number(/ \d+x(\d+)/.exec(config)![1]) <= BLOCK);
  const [one, other] = new Set(tried.map(({ config }) => config));
  const entry = (load: LoadClass, config: string, slots: number): [string, object] => [key!.replace('short load', `${load} load`), { config, slots, ms: 1 }];
  await writeFile(file, JSON.stringify({ format, choices: Object.fromEntries([entry('short', one!, 8), entry('medium', other!, 6), entry('long', one!, 7)]) }));
}

describe.each(['off', 'auto'] as const)('a decode loop in its steady state, tune: %s', (tune) => {
  let mla: Mla;
  let calls: CallCounter;
  let cache: PagedKvCache;
  let ids: SequenceId[];
  const random = new Random(11);
  const bits = (count: number): Uint16Array => encode16('bf16', random.normals(count, 0.1));

  beforeAll(async () => {
    if (tune === 'auto') await remember();
    mla = await createMla({ backend: 'webgpu', gpu: await softwareGpu(), tune });
    expect(mla.info.schedule.tuned?.map(({ load }) => load)).toEqual(tune === 'auto' ? [...LOADS] : undefined);
    calls = await countCalls();
  });
  afterAll(async () => {
    calls?.stop();
    await mla?.destroy();
  });

  /** Two sequences long enough to be split, with room to grow. */
  async function fill(counts = [500, 300]): Promise<void> {
    const numBlocks = counts.reduce((n, count) => n + Math.ceil((count + 4 * STEPS) / BLOCK), 0);
    cache = await mla.createKvCache({ numBlocks, blockSize: BLOCK, headDim: WIDTH, headDimV: D_V });
    ids = [cache.createSequence(), cache.createSequence()];
    await append(counts);
  }

  async function append(counts: number[]): Promise<void> {
    const tokens = counts.reduce((n, c) => n + c, 0);
    await cache.append({
      sequences: ids, counts, latent: { data: bits(tokens * D_V), shape: [tokens, 1, D_V] }, rope: { data: bits(tokens * (WIDTH - D_V)), shape: [tokens, 1, WIDTH - D_V] },
    });
  }

  /** Runs `step` until it has warmed up, then STEPS times more; what was called in those. */
  async function steady(step: () => Promise<unknown>, warmUp: number): Promise<Record<string, number>> {
    for (let i = 0; i < warmUp; i++) await step();
    await mla.finished();
    calls.reset();
    for (let i = 0; i < STEPS; i++) await step();
    const counted = Object.fromEntries(calls.counts);
    await mla.finished();
    return counted;
  }

  const decodeOnly = {
    'GPUDevice.createCommandEncoder': STEPS,
    'GPUCommandEncoder.beginComputePass': STEPS,
    'GPUCommandEncoder.finish': STEPS,
    'GPUComputePassEncoder.setPipeline': 2 * STEPS,
    'GPUComputePassEncoder.setBindGroup': 2 * STEPS,
    'GPUComputePassEncoder.dispatchWorkgroups': 2 * STEPS,
    'GPUComputePassEncoder.end': STEPS,
    'GPUQueue.submit': STEPS,
  };
  const outputs = async (): Promise<{ out: MlaTensor; lse: MlaTensor }> => ({
    out: await mla.tensor({ data: new Uint16Array(2 * H_Q * D_V), shape: [2, 1, H_Q, D_V] }),
    lse: await mla.tensor({ data: new Float32Array(2 * H_Q), shape: [2, H_Q, 1], dtype: 'f32' }),
  });

  test('the same tensors: a submission of two dispatches a step, and nothing is made, written, read or waited for', async () => {
    await fill();
    const { data, shape } = cache.blockTable(ids);
    const cacheSeqlens = await mla.tensor({ data: cache.cacheSeqlens(ids), shape: [2] });
    const metadata = mla.getMlaMetadata({ cacheSeqlens: cache.cacheSeqlens(ids), numQTokensPerHeadK: H_Q, numHeadsK: 1, blockSize: BLOCK });
    expect(metadata.parts).toBeGreaterThan(2);
    const args = {
      q: await mla.tensor({ data: bits(2 * H_Q * WIDTH), shape: [2, 1, H_Q, WIDTH] }), kvCache: cache.tensor(),
      blockTable: await mla.tensor({ data, shape, dtype: 'i32' }), cacheSeqlens, headDimV: D_V, metadata, ...(await outputs()),
    };
    expect(await steady(() => mla.flashMlaWithKvCache(args), 2)).toEqual(decodeOnly);
  });

  // A token is appended to each sequence, so lengths, metadata and block table are others at each step, and blocks are taken.
  const served = {
    ...decodeOnly,
    'GPUDevice.createCommandEncoder': 2 * STEPS, 'GPUCommandEncoder.beginComputePass': 2 * STEPS, 'GPUCommandEncoder.finish': 2 * STEPS,
    'GPUComputePassEncoder.setPipeline': 3 * STEPS, 'GPUComputePassEncoder.setBindGroup': 3 * STEPS,
    'GPUComputePassEncoder.dispatchWorkgroups': 3 * STEPS, 'GPUComputePassEncoder.end': 2 * STEPS, 'GPUQueue.submit': 2 * STEPS,
    // Slots, latent and RoPE part; q and the plan.
    'GPUQueue.writeBuffer': 5 * STEPS,
  };

  test('serving from the host, outputs given: one submission an append and one a decode, nothing made', async () => {
    await fill();
    const given = await outputs();
    const before = cache.stats().usedBlocks;
    expect(await steady(async () => {
      await append([1, 1]);
      const cacheSeqlens = cache.cacheSeqlens(ids);
      await mla.flashMlaWithKvCache({
        q: { data: bits(2 * H_Q * WIDTH), shape: [2, 1, H_Q, WIDTH] }, kvCache: cache.tensor(), blockTable: cache.blockTable(ids).data, cacheSeqlens, headDimV: D_V,
        metadata: mla.getMlaMetadata({ cacheSeqlens, numQTokensPerHeadK: H_Q, numHeadsK: 1, blockSize: BLOCK }), ...given,
      });
    }, 3)).toEqual(served);
    expect(cache.stats().usedBlocks).toBeGreaterThan(before + 2);
  });

  /** A token more for each sequence, and a call whose results nobody wants. */
  async function serve(): Promise<void> {
    await append([1, 1]);
    const cacheSeqlens = cache.cacheSeqlens(ids);
    const { out, lse } = await mla.flashMlaWithKvCache({
      q: { data: bits(2 * H_Q * WIDTH), shape: [2, 1, H_Q, WIDTH] }, kvCache: cache.tensor(), blockTable: cache.blockTable(ids), cacheSeqlens, headDimV: D_V,
    });
    out.destroy();
    lse.destroy();
  }

  test('serving from the host, outputs made and destroyed: the same', async () => {
    await fill();
    expect(await steady(serve, 3)).toEqual(served);
  });

  test.runIf(tune === 'auto')('a batch that grows from one load that was tuned into the next: another kernel, which is there, bound; nothing else is made, written, read or waited for', async () => {
    const warmUp = 3;
    await fill([LOAD_TOKENS.short - 3000 - 2 * warmUp - STEPS, 3000]);
    await serve();
    expect(loadOf(cache.cacheSeqlens(ids))).toBe('short');
    // What appends, what merges, and either load's kernel: the next one's is compiled in the background.
    while ((await mla.memory()).pipelines < 4) await new Promise((resolve) => setTimeout(resolve, 20));
    expect((await mla.memory()).pipelines).toBe(4);
    const { 'GPUDevice.createBindGroup': groups, ...rest } = await steady(serve, warmUp - 1);
    expect(loadOf(cache.cacheSeqlens(ids))).toBe('medium');
    expect(rest).toEqual(served);
    // The other kernel's, with the buffers that calls take in turn.
    expect(groups).toBeLessThanOrEqual(2);
    expect(mla.info.tuning).toBeUndefined();
    // And from then on.
    expect(await steady(serve, 1)).toEqual(served);
  });

  test('a step’s block table as a tensor, shared by its layers: plans come from the pool as well', async () => {
    await fill();
    const given = await outputs();
    const q = await mla.tensor({ data: bits(2 * H_Q * WIDTH), shape: [2, 1, H_Q, WIDTH] });
    const counted = await steady(async () => {
      await append([1, 1]);
      const cacheSeqlens = cache.cacheSeqlens(ids);
      const metadata = mla.getMlaMetadata({ cacheSeqlens, numQTokensPerHeadK: H_Q, numHeadsK: 1, blockSize: BLOCK });
      const blockTable = await mla.tensor(cache.blockTable(ids));
      for (let layer = 0; layer < 3; layer++) await mla.flashMlaWithKvCache({ q, kvCache: cache.tensor(), blockTable, cacheSeqlens, headDimV: D_V, metadata, ...given });
      blockTable.destroy();
    }, 12);
    // Slots, latent and RoPE part; the table; one plan for all layers.
    expect(counted).toMatchObject({ 'GPUQueue.submit': 4 * STEPS, 'GPUQueue.writeBuffer': 5 * STEPS, 'GPUDevice.createCommandEncoder': 4 * STEPS });
    expect(Object.keys(counted).filter((name) => /^GPUDevice\.(?!createCommandEncoder)|^GPUBuffer/.test(name))).toEqual([]);
  });

  // Of widths that were not tuned.
  test.runIf(tune === 'off')('a sequence that comes to be split compiles nothing', async () => {
    const pool = await mla.createKvCache({ numBlocks: 40, blockSize: BLOCK, headDim: WIDTH + BLOCK, headDimV: D_V });
    const id = pool.createSequence();
    const pipelines: number[] = [];
    for (const length of [16, 600]) {
      await pool.reserve({ sequences: [id], counts: [length - pool.length(id)] });
      const cacheSeqlens = pool.cacheSeqlens([id]);
      const metadata = mla.getMlaMetadata({ cacheSeqlens, numQTokensPerHeadK: H_Q, numHeadsK: 1, blockSize: BLOCK });
      expect(metadata.parts > 1).toBe(length === 600);
      const { out } = await mla.flashMlaWithKvCache({ q: { data: bits(H_Q * (WIDTH + BLOCK)), shape: [1, 1, H_Q, WIDTH + BLOCK] }, kvCache: pool.tensor(), blockTable: pool.blockTable([id]), cacheSeqlens, headDimV: D_V, metadata });
      await out.read();
      pipelines.push((await mla.memory()).pipelines);
    }
    expect(pipelines[1]).toBe(pipelines[0]);
  });
});

describe('bind groups', () => {
  const made: string[] = [];
  const device = {
    createBindGroup: ({ label }: { label: string }) => {
      made.push(label);
      return { label };
    },
  } as unknown as GPUDevice;
  const kernel = (): Kernel => ({ layout: {} }) as Kernel;
  const buffer = (): GPUBuffer => ({}) as GPUBuffer;

  test('one for a kernel and its buffers, in their order', () => {
    const groups = new BindGroups(device);
    const [k, other, a, b] = [kernel(), kernel(), buffer(), buffer()];
    const first = groups.get(k, [a, b], 'first');
    expect(groups.get(k, [a, b], 'again')).toBe(first);
    for (const another of [groups.get(k, [b, a], 'order'), groups.get(other, [a, b], 'kernel'), groups.get(k, [a], 'fewer')]) expect(another).not.toBe(first);
    expect(groups.count).toBe(4);
  });

  test('none of a buffer that is gone', () => {
    const groups = new BindGroups(device);
    const [k, a, b] = [kernel(), buffer(), buffer()];
    const first = groups.get(k, [a, b], 'both');
    const alone = groups.get(k, [b], 'alone');
    groups.get(k, [a, a], 'twice');
    groups.forget(a);
    groups.forget(a);
    expect(groups.count).toBe(1);
    expect(groups.get(k, [b], 'alone')).toBe(alone);
    expect(groups.get(k, [a, b], 'both')).not.toBe(first);
  });

  test('no more than so many, the least lately used going first', () => {
    const groups = new BindGroups(device, 3);
    const k = kernel();
    const buffers = Array.from({ length: 4 }, buffer);
    const [first, second] = buffers.slice(0, 3).map((b) => groups.get(k, [b], 'warm'));
    groups.get(k, [buffers[0]!], 'used');
    groups.get(k, [buffers[3]!], 'one more');
    expect(groups.count).toBe(3);
    made.length = 0;
    expect(groups.get(k, [buffers[0]!], 'kept')).toBe(first);
    expect(groups.get(k, [buffers[1]!], 'gone')).not.toBe(second);
    expect(made).toEqual(['gone']);
  });
});
