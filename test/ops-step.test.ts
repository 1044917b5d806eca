/** Attention among a step's operations, and the steady state of steps: one submission each, and nothing made. */
import { afterAll, beforeAll, describe, expect, test } from 'vitest';
import { encode16 } from '../src/bf16.ts';
import type { DecodeArgs, Mla, MlaTensor, PagedKvCache, SequenceId } from '../src/mla.ts';
import { createMla } from '../src/node.ts';
import type { StepOp } from '../src/ops.ts';
import { runOps, type StepNames } from '../src/run-ops.ts';
import { expectRefusal } from './check.ts';
import { countCalls, type CallCounter } from './count-calls.ts';
import { makeMla, opsBackends } from './ops-bench.ts';
import { Random } from './random.ts';
import { softwareGpu } from './software-adapter.ts';

// Narrow heads compile soonest.
const [D_V, ROPE, BLOCK, H_Q] = [32, 16, 16, 8];
const WIDTH = D_V + ROPE;
const random = new Random(31);
const bits = (count: number): Uint16Array => encode16('bf16', random.normals(count, 0.1));
const floats = (mla: Mla, count: number, dtype: 'f32' | 'bf16' = 'f32'): Promise<MlaTensor> => mla.tensor({ data: random.normals(count, 0.3), shape: [count], dtype });

type Call = DecodeArgs & { readonly out: MlaTensor; readonly lse: MlaTensor };

/** A decode call of one sequence as an operation. */
function decodeOp(mla: Mla, { id, metadataId }: StepNames, args: Call): StepOp {
  const cacheSeqlens = args.cacheSeqlens as Int32Array;
  const metadata = args.metadata ?? mla.getMlaMetadata({ cacheSeqlens, numQTokensPerHeadK: H_Q, numHeadsK: 1, blockSize: BLOCK });
  const { data, shape } = args.blockTable as { data: Int32Array; shape: readonly number[] };
  return {
    op: 'decode', b: 1, sQ: 1, hQ: H_Q, hKv: 1, dQk: WIDTH, dV: D_V, blockSize: BLOCK, dtype: 'bf16', q: id(args.q as MlaTensor, 'q'), kvCache: id(args.kvCache as MlaTensor, 'kvCache'),
    out: id(args.out, 'out'), lse: id(args.lse, 'lse'), blockTable: data, maxBlocksPerSeq: shape[1]!, metadataId: metadataId(metadata), metadata, softmaxScale: 0.2, causal: false,
  };
}

describe.each(opsBackends)('attention in a step, %s', (backend) => {
  let mla: Mla;
  beforeAll(async () => {
    mla = await makeMla(backend);
  });
  afterAll(() => mla?.destroy());

  async function filled(length: number): Promise<{ cache: PagedKvCache; id: SequenceId }> {
    const cache = await mla.createKvCache({ numBlocks: 60, blockSize: BLOCK, headDim: WIDTH, headDimV: D_V });
    const id = cache.createSequence();
    await cache.append({ sequences: [id], counts: [length], latent: { data: bits(length * WIDTH), shape: [length, 1, WIDTH] } });
    return { cache, id };
  }

  const call = async ({ cache, id }: { cache: PagedKvCache; id: SequenceId }): Promise<Call> => ({
    q: await mla.tensor({ data: bits(H_Q * WIDTH), shape: [1, 1, H_Q, WIDTH] }), kvCache: cache.tensor(), blockTable: cache.blockTable([id]), cacheSeqlens: cache.cacheSeqlens([id]),
    headDimV: D_V, softmaxScale: 0.2,
    out: await mla.tensor({ data: new Uint16Array(H_Q * D_V), shape: [1, 1, H_Q, D_V] }), lse: await mla.tensor({ data: new Float32Array(H_Q), shape: [1, H_Q, 1], dtype: 'f32' }),
  });

  /** Fails unless the results are those of a call by itself. */
  async function expectAlone(args: Call): Promise<void> {
    const [out, lse] = [await args.out.readBits(), await args.lse.read()];
    await mla.flashMlaWithKvCache(args);
    expect(await args.out.readBits()).toEqual(out);
    expect(await args.lse.read()).toEqual(lse);
    expect(lse.every(Number.isFinite)).toBe(true);
  }

  // Short, then long: plans differ, and scratch memory grows under way.
  test('calls of several lengths in one step are what they are alone', async () => {
    const calls: Call[] = [];
    for (const length of [20, 700, 300]) calls.push(await call(await filled(length)));
    await runOps(mla, (names) => calls.map((args) => decodeOp(mla, names, args)));
    for (const args of calls) await expectAlone(args);
  });

  test('tokens that a step appends are seen by its attention', async () => {
    const { cache, id } = await filled(33);
    const latent = await mla.tensor({ data: bits(WIDTH), shape: [1, 1, WIDTH] });
    const { slots } = await cache.reserve({ sequences: [id], counts: [1] });
    const args = await call({ cache, id });
    await runOps(mla, (names) => [
      {
        op: 'append', kvCache: names.id(cache.tensor(), 'kvCache'), latent: names.id(latent, 'latent'), rope: undefined, slots, tokens: 1, dtype: 'bf16', hKv: 1, dQk: WIDTH, dV: D_V,
        blockSize: BLOCK,
      },
      decodeOp(mla, names, args),
    ]);
    await expectAlone(args);
    const kv = (await cache.tensor().readBits()) as Uint16Array;
    expect(kv.subarray(slots[0]! * WIDTH, (slots[0]! + 1) * WIDTH)).toEqual(await latent.readBits());
  });

  test('is timed, what was refused left out', async () => {
    const args = await call(await filled(100));
    const start = performance.now();
    const { ms } = await mla.time(async () => {
      await runOps(mla, (names) => [decodeOp(mla, names, args)]);
      // Odd rows of bf16: what WGSL does not write; cpu does.
      const refused = runOps(mla, (names) => [{
        op: 'rope', tokens: 1, heads: 1, n: 2, x: { tensor: names.id(args.lse, 'lse'), stride: 2, group: 0, offset: 0 }, angles: Float32Array.of(1, 0),
        out: { tensor: names.id(args.out, 'out'), stride: 3, group: 0, offset: 1 },
      }]);
      if (backend !== 'cpu') await expectRefusal(() => refused, 'invalid-argument', 'out');
    });
    expect(ms).toBeGreaterThan(0);
    expect(ms).toBeLessThan(performance.now() - start + 5);
  });
});

describe('steps on webgpu', () => {
  let mla: Mla;
  let calls: CallCounter;
  beforeAll(async () => {
    mla = await makeMla('webgpu');
    calls = await countCalls();
  });
  afterAll(async () => {
    calls?.stop();
    await mla?.destroy();
  });

  test('after the first ones: one submission, one write besides plans, and nothing made', async () => {
    const [steps, hidden, vocab, layers] = [20, 64, 200, 2];
    const cache = await mla.createKvCache({ numBlocks: 40, blockSize: BLOCK, headDim: WIDTH, headDimV: D_V, numLayers: layers });
    const sequence = cache.createSequence();
    await cache.reserve({ sequences: [sequence], counts: [500] });
    const make = async (count: number, dtype: 'f32' | 'bf16' = 'f32'): Promise<MlaTensor> => floats(mla, count, dtype);
    const [table, norm, x, normed, logits, latent] = [await make(vocab * hidden, 'bf16'), await make(hidden), await make(hidden), await make(hidden), await make(vocab), await make(WIDTH)];
    const ids = await mla.tensor({ data: new Int32Array(1), shape: [1] });
    const [down, queries] = [await make(WIDTH * hidden, 'bf16'), await make(H_Q * WIDTH * hidden, 'bf16')];
    const [q, back] = [await mla.tensor({ data: bits(H_Q * WIDTH), shape: [1, 1, H_Q, WIDTH] }), await make(hidden * H_Q * D_V, 'bf16')];
    const out = await mla.tensor({ data: new Uint16Array(H_Q * D_V), shape: [1, 1, H_Q, D_V] });
    const lse = await mla.tensor({ data: new Float32Array(H_Q), shape: [1, H_Q, 1], dtype: 'f32' });

    const step = async (): Promise<void> => {
      const { slots } = await cache.reserve({ sequences: [sequence], counts: [1] });
      const blockTable = cache.blockTable([sequence]);
      const cacheSeqlens = cache.cacheSeqlens([sequence]);
      const metadata = mla.getMlaMetadata({ cacheSeqlens, numQTokensPerHeadK: H_Q, numHeadsK: 1, blockSize: BLOCK });
      await runOps(mla, (names) => {
        const row = (tensor: MlaTensor, stride: number): { tensor: number; stride: number; group: number; offset: number } => ({ tensor: names.id(tensor, 'tensor'), stride, group: 0, offset: 0 });
        const product = (n: number, k: number, from: MlaTensor, weight: MlaTensor, to: MlaTensor, change: { xBf16?: boolean; outBf16?: boolean; accumulate?: boolean } = {}): StepOp => ({
          op: 'matmul', tokens: 1, groups: 1, n, k, x: row(from, k), xBf16: false, weight: { form: 'bf16', data: names.id(weight, 'weight'), scales: undefined }, out: row(to, n), outBf16: false,
          accumulate: false, ...change,
        });
        const angles = Float32Array.from({ length: ROPE }, (_, i) => (i % 2 === 0 ? 1 : 0));
        return [
          { op: 'embed', ids: Int32Array.of(random.below(vocab)), first: 0, rows: vocab, table: names.id(table, 'table'), tableDtype: 'bf16', n: hidden, out: names.id(x, 'x') },
          ...Array.from({ length: layers }, (_, layer): StepOp[] => [
            { op: 'rmsNorm', tokens: 1, n: hidden, x: row(x, hidden), weight: names.id(norm, 'norm'), eps: 1e-6, out: row(normed, hidden) },
            product(WIDTH, hidden, normed, down, latent),
            {
              op: 'appendLatent', tokens: 1, x: row(latent, WIDTH), dV: D_V, rope: ROPE, normWeight: names.id(norm, 'norm'), eps: 1e-6, angles, kvCache: names.id(cache.tensor(layer), 'kvCache'),
              blockSize: BLOCK, slots,
            },
            product(H_Q * WIDTH, hidden, normed, queries, q, { outBf16: true }),
            decodeOp(mla, names, { q, kvCache: cache.tensor(layer), blockTable, cacheSeqlens, headDimV: D_V, metadata, out, lse }),
            product(hidden, H_Q * D_V, out, back, x, { xBf16: true, accumulate: true }),
          ]).flat(),
          product(vocab, hidden, x, table, logits),
          {
            op: 'sample', rows: [{ temperature: 1, topK: 20, topP: 0.9, repetitionPenalty: 1.1, random: random.uniform() }], vocab, logits: names.id(logits, 'logits'), seen: Int32Array.of(3),
            seenStart: Int32Array.of(0, 1), out: names.id(ids, 'ids'),
          },
        ];
      });
    };

    for (let i = 0; i < 3; i++) await step();
    await mla.finished();
    calls.reset();
    for (let i = 0; i < steps; i++) await step();
    const counted = Object.fromEntries(calls.counts);
    await mla.finished();
    // Two dispatches a decode: the sequence is split.
    const dispatches = (1 + layers * 7 + 2) * steps;
    expect(counted).toEqual({
      'GPUDevice.createCommandEncoder': steps, 'GPUCommandEncoder.beginComputePass': steps, 'GPUCommandEncoder.finish': steps, 'GPUComputePassEncoder.end': steps, 'GPUQueue.submit': steps,
      // All that a step brings, and the plan that its layers share.
      'GPUQueue.writeBuffer': 2 * steps,
      'GPUComputePassEncoder.setPipeline': dispatches, 'GPUComputePassEncoder.setBindGroup': dispatches, 'GPUComputePassEncoder.dispatchWorkgroups': dispatches,
    });
    expect((await ids.read())[0]).toBeLessThan(vocab);
  });

  test('what cannot be done is refused, and nothing of the step is submitted', async () => {
    const [a, b] = [await floats(mla, 16), await floats(mla, 16, 'bf16')];
    const before = await a.read();
    const step = (change: (names: StepNames) => StepOp): Promise<void> => runOps(mla, (names) => [
      { op: 'swiglu', tokens: 1, n: 8, x: names.id(a, 'a'), out: names.id(b, 'b') },
      change(names),
    ]);
    const product = { op: 'matmul', tokens: 1, groups: 1, n: 4, k: 4, xBf16: false, accumulate: false } as const;
    calls.reset();
    await expectRefusal(() => step(({ id }) => {
      const rows = { tensor: id(a, 'a'), stride: 4, group: 0, offset: 0 };
      return { ...product, x: rows, weight: { form: 'bf16', data: id(b, 'b'), scales: undefined }, out: rows, outBf16: false };
    }), 'invalid-argument', 'out');
    await expectRefusal(() => step(({ id }) => ({
      ...product, x: { tensor: id(a, 'a'), stride: 4, group: 0, offset: 0 }, weight: { form: 'f32', data: id(a, 'a'), scales: undefined }, out: { tensor: id(b, 'b'), stride: 5, group: 0, offset: 1 }, outBf16: true,
    })), 'invalid-argument', 'out');
    expect(calls.counts.get('GPUQueue.submit')).toBeUndefined();
    expect(await a.read()).toEqual(before);
  });

  test('a weight larger than a binding is refused, with its shape', async () => {
    const small = await createMla({ backend: 'webgpu', gpu: await softwareGpu(), tune: 'off', limits: 'default' });
    const rows = small.info.limits['maxStorageBufferBindingSize']! / 4096 + 1;
    const refused = await expectRefusal(() => small.tensor({ data: new Float32Array(rows * 1024), shape: [rows, 1024], dtype: 'f32' }), 'limit-exceeded', 'tensor');
    expect(refused.message).toContain(`f32 [${rows}, 1024] is larger than one binding`);
    await small.destroy();
  });
});
