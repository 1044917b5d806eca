/** The merge by itself, against a merge in double precision: any number of splits, with as many threads as a GPU's and as a software adapter's. */
import fc from 'fast-check';
import { afterAll, beforeAll, describe, expect, test } from 'vitest';
import type { DecodeOp } from '../src/backend.ts';
import { decode16 } from '../src/bf16.ts';
import combineSource from '../shaders/combine.wgsl?raw';
import { makePlan, partialBytes, type Plan } from '../src/plan.ts';
import { getMlaMetadata } from '../src/schedule.ts';
import { LEAST_LANES, combineConfig, combineGrid, type CombineConfig } from '../src/webgpu/combine-grid.ts';
import { combineKernel } from '../src/webgpu/combine.ts';
import type { DeviceKind } from '../src/webgpu/config.ts';
import { openDevice, type GpuContext } from '../src/webgpu/device.ts';
import { KernelCache } from '../src/webgpu/kernel.ts';
import { Random } from './random.ts';
import { softwareGpu } from './software-adapter.ts';

/** JavaScript for a WGSL expression of u32. */
function inWhole(expression: string): string {
  const plain = expression.replaceAll(/\b(\d+)u\b/g, '$1');
  // Divisions from left to right, of what stands before them.
  return plain.replaceAll(/(\([^()]*\)|[\w.]+)((?: [/%] [\w.]+)+)/g, (_, first: string, rest: string) =>
    [...rest.matchAll(/ ([/%]) ([\w.]+)/g)].reduce((sum, [, op, by]) => (op === '/' ? `Math.floor(${sum} / ${by})` : `(${sum} % ${by})`), first));
}

const LOWEST = -3.4028234663852886e38;
const LIMITS = { maxComputeInvocationsPerWorkgroup: 1024 };
const GPU = combineConfig(512, 'gpu', LIMITS);

describe('the merge’s grid', () => {
  const widths = Array.from({ length: 16 }, (_, i) => (i + 1) * 32);

  test('cuts the columns evenly, with threads for all of a chunk’s', () => {
    fc.assert(
      fc.property(fc.constantFrom(...widths), fc.integer({ min: 2, max: 2000 }), fc.constantFrom<DeviceKind>('gpu', 'software'), (dV, splits, kind) => {
        const config = combineConfig(dV, kind, LIMITS);
        const lanes = dV / 4 / combineGrid(dV, 1, splits, config).chunks;
        expect(Number.isInteger(lanes)).toBe(true);
        expect(lanes).toBeGreaterThanOrEqual(LEAST_LANES);
        expect(lanes).toBeLessThanOrEqual(config.threads);
        expect(Math.floor(config.threads / lanes)).toBeLessThanOrEqual(config.mostGroups);
      }),
    );
  });

  test('few splits take whole rows; the splits of a thread stay few as splits grow', () => {
    expect(combineGrid(512, 1, 2, GPU).chunks).toBe(1);
    for (const splits of [17, 66, 132, 256]) {
      const groups = Math.floor(256 / (128 / combineGrid(512, 1, splits, GPU).chunks));
      expect(Math.ceil(splits / groups)).toBeLessThanOrEqual(8);
    }
    // As many groups as there can be, and no more.
    expect(combineGrid(512, 1, 5000, GPU).chunks).toBe(16);
  });

  test('a workgroup takes as many rows as leave a thread a handful of splits', () => {
    fc.assert(
      fc.property(fc.constantFrom(...widths), fc.integer({ min: 1, max: 300 }), fc.integer({ min: 2, max: 2000 }), fc.constantFrom<DeviceKind>('gpu', 'software'), (dV, rows, splits, kind) => {
        const config = combineConfig(dV, kind, LIMITS);
        const { x, chunks } = combineGrid(dV, rows, splits, config);
        const together = Math.ceil(rows / x);
        const groups = Math.floor((config.threads * chunks) / (dV / 4));
        expect(together).toBeLessThanOrEqual(groups);
        if (together > 1) expect(Math.ceil(splits / Math.floor(groups / together))).toBeLessThanOrEqual(4);
      }),
    );
    expect(combineGrid(512, 128, 2, GPU)).toEqual({ x: 64, chunks: 1 });
    expect(combineGrid(64, 5, 3, GPU)).toEqual({ x: 1, chunks: 1 });
    expect(combineGrid(64, 50, 17, GPU)).toEqual({ x: 25, chunks: 1 });
  });

  test('no thread leaves workgroup memory, whatever the width', () => {
    /** The kernel's own lines from its lanes to what of `group_out` a thread reads, in whole numbers. */
    const script = [...combineSource.matchAll(/^ +let (lanes|together|groups|row_here|group|busy|first_group) = (.*?);/gm)]
      .map(([, name, value]) => `const ${name} = ${inWhole(value!)};`).join('\n');
    const place = inWhole(/group_out\[(group_\$i \* lanes \+ thread % lanes)\]/.exec(combineSource)![1]!.replace('group_$i', 'group_i'));
    const groupOf = inWhole(/let group_\$i = (.*?);/.exec(combineSource)![1]!.replace('$iu', '0'));
    const used = inWhole(/let used = (.*?);/.exec(combineSource)![1]!);
    const read = new Function('thread', 'g', 'rows', 'splits', 'V_QUADS', 'THREADS', 'workgroups', 'workgroup', 'min', 'select', `
      ${script}
      const used = ${used};
      const group_i = ${groupOf};
      return g < used ? ${place} : 0;`) as (...args: unknown[]) => number;
    for (const dV of widths) {
      for (const rows of [1, 2, 3, 5, 16, 128]) {
        for (const splits of [2, 3, 4, 5, 9, 17, 66, 300]) {
          const { x, chunks } = combineGrid(dV, rows, splits, GPU);
          for (const workgroup of [0, x - 1]) {
            for (let thread = 0; thread < GPU.threads; thread++) {
              for (const g of [0, 4, 28]) {
                const at = read(thread, g, rows, splits, dV / 4, GPU.threads, { x, z: chunks }, { x: workgroup }, Math.min, (no: number, yes: number, which: boolean) => (which ? yes : no));
                if (!(at < GPU.threads)) throw new Error(`d_v = ${dV}, ${rows} rows, ${splits} splits: thread ${thread} of workgroup ${workgroup} reads ${at}`);
              }
            }
          }
        }
      }
    }
  });

  test('a device of few threads gets as many as it has', () => {
    expect(combineConfig(512, 'gpu', { maxComputeInvocationsPerWorkgroup: 128 })).toEqual({ threads: 128, mostGroups: 16 });
  });
});

interface Merge {
  readonly op: DecodeOp;
  readonly plan: Plan;
  /** As the decode kernel leaves them: O of every row, then (LSE in base 2, 0) of every row. */
  readonly partials: Float32Array<ArrayBuffer>;
}

/** A batch cut into parts of a block each where `slots` allows, with random partial results. */
function makeMerge({ lengths, slots, sQ, hQ, hKv, dV }: { lengths: number[]; slots: number; sQ: number; hQ: number; hKv: number; dV: number }, random: Random): Merge {
  const cacheSeqlens = Int32Array.from(lengths);
  const metadata = getMlaMetadata({ cacheSeqlens, numQTokensPerHeadK: (sQ * hQ) / hKv, numHeadsK: hKv, blockSize: 16 }, { slots: slots * hKv, rowTiles: [1024], minTokensPerPart: 16 });
  const op = {
    metadata, b: lengths.length, sQ, hQ, hKv, dQk: dV + 16, dV, dtype: 'bf16', blockSize: 16, maxBlocksPerSeq: 1, softmaxScale: 1, causal: false,
  } as unknown as DecodeOp;
  const partials = new Float32Array(partialBytes(metadata.parts, op) / 4);
  const rows = 2 * metadata.parts * sQ * hQ;
  partials.set(random.normals(rows * dV, 1));
  for (let i = 0; i < rows; i++) partials[rows * dV + 2 * i] = 40 * (random.uniform() - 0.5);
  return { op, plan: makePlan(op, new Int32Array(lengths.length), false), partials };
}

/** Places of a row's partial results, in the order of its splits. */
function places({ op, plan }: Merge, seq: number, row: number): number[] {
  const seqs = new Int32Array(plan.words.buffer).subarray(plan.words[2]! + seq * 4);
  const [, , splits, first] = seqs as unknown as [number, number, number, number];
  return Array.from({ length: splits }, (_, s) => (s === 0 ? first : 2 * (Math.floor(first / 2) + s)) * op.sQ * op.hQ + row);
}

describe('the merge on a device', () => {
  let gpu: GpuContext;
  let kernels: KernelCache;
  beforeAll(async () => {
    gpu = await openDevice({ gpu: await softwareGpu() });
    kernels = new KernelCache(gpu);
  });
  afterAll(() => gpu?.destroy());

  async function onDevice({ op, plan, partials }: Merge, config: CombineConfig): Promise<{ out: Uint16Array; lse: Float32Array }> {
    const { device } = gpu;
    const buffer = (bytes: number, data?: Uint32Array<ArrayBuffer> | Float32Array<ArrayBuffer>): GPUBuffer => {
      const made = device.createBuffer({ size: Math.ceil(bytes / 16) * 16, usage: 0x80 | 0x08 | 0x04 });
      if (data) device.queue.writeBuffer(made, 0, data);
      return made;
    };
    const [outBytes, lseBytes] = [op.b * op.sQ * op.hQ * op.dV * 2, op.b * op.sQ * op.hQ * 4];
    const buffers = [buffer(plan.words.byteLength, plan.words), buffer(partials.byteLength, partials), buffer(outBytes), buffer(lseBytes)];
    const back = device.createBuffer({ size: outBytes + lseBytes, usage: 0x01 | 0x08 });
    const kernel = combineKernel(kernels, op, config);
    const encoder = device.createCommandEncoder();
    const pass = encoder.beginComputePass();
    pass.setPipeline(kernel.pipeline);
    pass.setBindGroup(0, device.createBindGroup({ layout: kernel.layout, entries: buffers.map((resource, binding) => ({ binding, resource: { buffer: resource } })) }));
    const { x, chunks } = combineGrid(op.dV, op.sQ * op.hQ, plan.mostSplits, config);
    pass.dispatchWorkgroups(x, plan.splitSequences, chunks);
    pass.end();
    encoder.copyBufferToBuffer(buffers[2]!, 0, back, 0, outBytes);
    encoder.copyBufferToBuffer(buffers[3]!, 0, back, outBytes, lseBytes);
    device.queue.submit([encoder.finish()]);
    await back.mapAsync(1);
    const bytes = back.getMappedRange().slice(0);
    for (const made of [...buffers, back]) made.destroy();
    await kernel.compiled;
    expect(kernel.fault).toBeUndefined();
    return { out: new Uint16Array(bytes, 0, outBytes / 2), lse: new Float32Array(bytes.slice(outBytes)) };
  }

  function check(merge: Merge, { out, lse }: { out: Uint16Array; lse: Float32Array }): void {
    const { op, partials } = merge;
    const { b, sQ, hQ, hKv, dV } = op;
    const values = decode16('bf16', out);
    const lseAt = 2 * op.metadata.parts * sQ * hQ * dV;
    const perHead = (sQ * hQ) / hKv;
    const group = hQ / hKv;
    for (let seq = 0; seq < b; seq++) {
      for (let row = 0; row < sQ * hQ; row++) {
        const at = places(merge, seq, row);
        if (at.length < 2) continue;
        const [head, token] = [Math.floor(row / perHead) * group + (row % group), Math.floor((row % perHead) / group)];
        const lses = at.map((i) => partials[lseAt + 2 * i]!);
        const most = lses.reduce((x, y) => Math.max(x, y));
        const weights = lses.map((l) => (l === LOWEST ? 0 : 2 ** (l - most)));
        const sum = weights.reduce((x, y) => x + y);
        const got = lse[(seq * hQ + head) * sQ + token]!;
        if (sum === 0) expect(got).toBe(Infinity);
        else if (Number.isNaN(sum)) expect(got).toBeNaN();
        else expect(Math.abs(got - (most + Math.log2(sum)) * Math.LN2)).toBeLessThan(1e-5);
        for (let d = 0; d < dV; d++) {
          const expected = sum === 0 ? 0 : weights.reduce((total, w, s) => total + (w / sum) * partials[at[s]! * dV + d]!, 0);
          const value = values[((seq * sQ + token) * hQ + head) * dV + d]!;
          if (Number.isFinite(expected)) expect(Math.abs(value - expected)).toBeLessThan(1e-5 + Math.abs(expected) / 200);
          else expect(value).toBe(expected);
        }
      }
    }
  }

  describe.each<DeviceKind>(['gpu', 'software'])('laid out for %s', (kind) => {
    const configOf = ({ op }: Merge): CombineConfig => combineConfig(op.dV, kind, LIMITS);

    test.each([
      ['two splits', { lengths: [32], slots: 2, sQ: 1, hQ: 3, hKv: 1, dV: 512 }],
      ['several rows a workgroup, the last ones fewer', { lengths: [32, 16, 48], slots: 6, sQ: 2, hQ: 19, hKv: 1, dV: 128 }],
      ['rows that share groups', { lengths: [16 * 6, 16 * 2], slots: 8, sQ: 1, hQ: 21, hKv: 1, dV: 64 }],
      ['66 splits', { lengths: [16 * 66], slots: 66, sQ: 2, hQ: 2, hKv: 1, dV: 512 }],
      ['more splits than threads', { lengths: [16 * 300], slots: 300, sQ: 1, hQ: 1, hKv: 1, dV: 512 }],
      ['widths that are no power of two, KV heads', { lengths: [16 * 9, 0, 5, 16 * 40], slots: 20, sQ: 3, hQ: 4, hKv: 2, dV: 96 }],
      ['the narrowest', { lengths: [16 * 40, 16 * 3], slots: 43, sQ: 1, hQ: 5, hKv: 1, dV: 32 }],
    ])('%s', async (_, options) => {
      const merge = makeMerge(options, new Random(7));
      expect(merge.plan.mostSplits).toBeGreaterThan(1);
      const result = await onDevice(merge, configOf(merge));
      check(merge, result);
      expect(await onDevice(merge, configOf(merge))).toEqual(result);
    });

    test('splits without visible keys, NaN and infinities', async () => {
      const merge = makeMerge({ lengths: [16 * 70], slots: 70, sQ: 1, hQ: 6, hKv: 1, dV: 64 }, new Random(8));
      const { op, partials } = merge;
      const lseAt = 2 * op.metadata.parts * op.sQ * op.hQ * op.dV;
      const empty = (i: number): void => {
        partials[lseAt + 2 * i] = LOWEST;
        partials.fill(0, i * op.dV, (i + 1) * op.dV);
      };
      places(merge, 0, 0).forEach(empty); // nothing to attend to
      places(merge, 0, 1).slice(3).forEach(empty); // the last splits
      places(merge, 0, 2).slice(0, -1).forEach(empty); // all but the last
      const nan = places(merge, 0, 3)[33]!;
      partials[lseAt + 2 * nan] = NaN;
      partials.fill(NaN, nan * op.dV, (nan + 1) * op.dV);
      const last = places(merge, 0, 4).at(-1)!; // read again by those past the end
      partials[last * op.dV + 5] = Infinity;
      partials[lseAt + 2 * last] = 20;
      partials[places(merge, 0, 5)[0]! * op.dV] = -Infinity;
      partials[lseAt + 2 * places(merge, 0, 5)[0]!] = 20;
      check(merge, await onDevice(merge, configOf(merge)));
    });

    test('NaN alone in its group', async () => {
      for (const which of [0, 1]) {
        const merge = makeMerge({ lengths: [32], slots: 2, sQ: 1, hQ: 2, hKv: 1, dV: 64 }, new Random(9));
        const { op, partials } = merge;
        const at = places(merge, 0, 1)[which]!;
        partials[2 * op.metadata.parts * op.sQ * op.hQ * op.dV + 2 * at] = NaN;
        partials.fill(NaN, at * op.dV, (at + 1) * op.dV);
        check(merge, await onDevice(merge, configOf(merge)));
      }
    });
  });
});
