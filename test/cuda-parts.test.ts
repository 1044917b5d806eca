/** Pure parts of the cuda backend: the bytes of parameters, the choice of kernels, and the committed cubins. */
import { readFile } from 'node:fs/promises';
import { join } from 'node:path';
import fc from 'fast-check';
import { describe, expect, test } from 'vitest';
import { HERE, sourceHashes } from '../native-cuda/sources.ts';
import type { DecodeShape } from '../src/backend.ts';
import { BLOCK_TOKENS, COMBINE_THREADS, DECODE_FEW_THREADS, DECODE_SHARED_BYTES, DECODE_THREADS, D_QK, D_V, chooseDecodeConfig, mergeItems, scheduleInfo } from '../src/cuda/config.ts';
import { CUBINS, readKernels } from '../src/cuda/cubin.ts';
import { HostBlock } from '../src/cuda/driver.ts';
import { APPEND_PARAMS, COMBINE_PARAMS_AT, DECODE_PARAMS, GATHER_PARAMS, writeAppendParams, writeDecodeParams, writeGatherParams } from '../src/cuda/params.ts';
import { getMlaMetadata, mostParts } from '../src/schedule.ts';

const source = (name: string): Promise<string> => readFile(join(HERE, name), 'utf8');

interface Field {
  readonly name: string;
  readonly at: number;
}

/** Offsets of a struct's fields and its size, by C's rules; of the types that the kernels' parameters have. */
function layout(code: string, struct: string, known: Readonly<Record<string, { size: number; align: number }>> = {}): { fields: Field[]; size: number; align: number } {
  const body = new RegExp(`struct ${struct} \\{([^}]*)\\}`).exec(code.replace(/\/\/.*$/gm, ''))![1]!;
  const fields: Field[] = [];
  let at = 0;
  let most = 1;
  for (const declaration of body.split(';').map((line) => line.trim()).filter(Boolean)) {
    const [, type, star, names] = /^((?:const )?\w+)(\*?) (.*)$/.exec(declaration)!;
    const { size, align } = star ? { size: 8, align: 8 } : { int: { size: 4, align: 4 }, float: { size: 4, align: 4 }, CUtensorMap: { size: 128, align: 64 }, ...known }[type!]!;
    for (const name of names!.split(', ')) {
      at = Math.ceil(at / align) * align;
      fields.push({ name, at });
      at += size;
      most = Math.max(most, align);
    }
  }
  return { fields, size: Math.ceil(at / most) * most, align: most };
}

const camel = (name: string): string => name.replace(/_(\w)/g, (_, c: string) => c.toUpperCase());
const named = (fields: readonly Field[], from = 0): Record<string, number> => Object.fromEntries(fields.map(({ name, at }) => [camel(name), from + at]));

describe('parameters', () => {
  test('lie where the kernels read them', async () => {
    const header = await source('params.cuh');
    const plan = layout(header, 'Plan');
    const whole = layout(header, 'DecodeParams', { Plan: plan });
    const { plan: planAt, ...rest } = named(whole.fields);
    expect({ ...rest, ...named(plan.fields, planAt), bytes: whole.size }).toEqual(DECODE_PARAMS);

    const combine = layout(header, 'CombineParams', { Plan: plan });
    const { plan: combinePlan, ...combineRest } = named(combine.fields, COMBINE_PARAMS_AT);
    expect(combinePlan).toBe(DECODE_PARAMS.parts);
    expect(DECODE_PARAMS).toMatchObject(combineRest);

    const append = layout(await source('append.cu'), 'AppendParams');
    expect({ ...named(append.fields), bytes: append.size }).toEqual(APPEND_PARAMS);
    const gather = layout(await source('gather_q.cu'), 'GatherParams');
    expect({ ...named(gather.fields), bytes: gather.size }).toEqual(GATHER_PARAMS);
  });

  const block = (size: number): HostBlock => new HostBlock({ address: () => 0x7f12_3456_7890 }, size);

  test('are aligned for tensor maps', () => {
    expect(block(8).address % 64).toBe(0);
  });

  test('are written in full', () => {
    const to = block(DECODE_PARAMS.bytes);
    const pointer = 0x7f12_89ab_cdef;
    writeDecodeParams(to, {
      kvMaps: new Uint8Array(256).fill(1), qMaps: new Uint8Array(256).fill(2), parts: pointer, sequences: pointer + 1, merges: pointer + 2, table: pointer + 3,
      tableStride: 11, rows: 12, group: 13, hKv: 14, sQ: 15, causal: true, softmaxScale: -2, out: pointer + 4, lse: pointer + 5, partialOut: pointer + 6, partialInfo: pointer + 7,
    });
    const bytes = new DataView(to.bytes.buffer, to.bytes.byteOffset);
    expect([0, 255, 256, 511].map((at) => bytes.getUint8(at))).toEqual([1, 1, 2, 2]);
    const pointers = (['parts', 'sequences', 'merges', 'table', 'out', 'lse', 'partialOut', 'partialInfo'] as const).map((name) => to.pointer(DECODE_PARAMS[name]) - pointer);
    expect(pointers).toEqual([0, 1, 2, 3, 4, 5, 6, 7]);
    expect(bytes.getBigUint64(DECODE_PARAMS.parts, true)).toBe(BigInt(pointer));
    expect((['tableStride', 'rows', 'group', 'hKv', 'sQ', 'causal'] as const).map((name) => bytes.getInt32(DECODE_PARAMS[name], true))).toEqual([11, 12, 13, 14, 15, 1]);
    expect(bytes.getFloat32(DECODE_PARAMS.scaleLog2, true)).toBe(Math.fround(-2 * Math.LOG2E));

    const append = block(APPEND_PARAMS.bytes);
    writeAppendParams(append, { cache: pointer, latent: 1, rope: 0, slots: 3, rows: 4, hKv: 5, latentChunks: 6, rowChunks: 7 });
    expect([0, 8, 16, 24].map((at) => append.pointer(at))).toEqual([pointer, 1, 0, 3]);
    expect([...append.i32.subarray(8, 12)]).toEqual([4, 5, 6, 7]);
    const gather = block(GATHER_PARAMS.bytes);
    writeGatherParams(gather, { from: pointer, to: 1, rows: 2, sQ: 3, hKv: 4, group: 5 });
    expect([0, 8].map((at) => gather.pointer(at))).toEqual([pointer, 1]);
    expect([...gather.i32.subarray(4, 8)]).toEqual([2, 3, 4, 5]);
  });
});

describe('configuration', () => {
  const shape: DecodeShape = { b: 2, sQ: 1, hQ: 16, hKv: 1, dQk: 576, dV: 512, blockSize: 64, dtype: 'bf16' };

  test('constants are the kernels’ own', async () => {
    const number = (code: string, name: string): number => Number(new RegExp(`constexpr int ${name} = (\\d+);`).exec(code)![1]);
    const header = await source('params.cuh');
    expect([number(header, 'BLOCK_TOKENS'), number(header, 'D_QK'), number(header, 'D_V')]).toEqual([BLOCK_TOKENS, D_QK, D_V]);
    expect(scheduleInfo(132).rowTiles).toEqual([number(header, 'TILE_ROWS')]);
    const decode = await source('decode.cu');
    expect(number(decode, 'THREADS')).toBe(DECODE_THREADS);
    const combine = await source('combine.cu');
    expect(number(combine, 'WARPS') * 32).toBe(COMBINE_THREADS);
    const plan = { parts: 65535, kvBlocks: 65535, mergeBlocks: 0, mostSplits: number(combine, 'MOST_SPLITS') };
    expect(chooseDecodeConfig(shape, plan, 132).grid).toEqual([1, 65535, 1]);
    expect(() => chooseDecodeConfig(shape, { ...plan, mostSplits: plan.mostSplits + 1 }, 132)).toThrow(expect.objectContaining({ code: 'limit-exceeded' }));
    const few = await source('decode_few.cu');
    expect(number(few, 'CONSUMERS') + 64).toBe(DECODE_FEW_THREADS);
    expect(chooseDecodeConfig(shape, { ...plan, mostSplits: 1 }, 132)).toMatchObject({ boxTokens: number(few, 'STEP_TOKENS'), boxRows: number(few, 'ROWS') });
    for (const kernel of [decode, few]) expect(kernel).toContain(`sizeof(Shared) <= ${DECODE_SHARED_BYTES}`);
  });

  test('any problem that the kernels take has a grid that covers it', () => {
    fc.assert(
      fc.property(fc.integer({ min: 1, max: 300 }), fc.integer({ min: 1, max: 8 }), fc.integer({ min: 1, max: 8 }), fc.integer({ min: 1, max: 132 }), fc.integer({ min: 0, max: 400 }), fc.integer({ min: 0, max: 3000 }), (group, hKv, sQ, parts, mergeBlocks, kvBlocks) => {
        const config = chooseDecodeConfig({ ...shape, hQ: group * hKv, hKv, sQ }, { parts, kvBlocks, mergeBlocks, mostSplits: 3 }, 132);
        expect(config.rows).toBe(group * sQ);
        const [rowTiles, ...others] = config.grid;
        expect(rowTiles * 64).toBeGreaterThanOrEqual(config.rows);
        expect(rowTiles * 64).toBeLessThan(config.rows + 128);
        const few = config.rows <= 16 && kvBlocks / parts <= 8;
        expect(config.kernel).toBe(config.rows > 64 ? 'decode_bf16_pair' : few ? 'decode_bf16_few' : 'decode_bf16');
        expect([config.boxTokens, config.boxRows]).toEqual(few ? [32, 16] : [64, 64]);
        if (config.rows > 64) expect(rowTiles % 2).toBe(0);
        else expect(rowTiles).toBe(1);
        expect(others).toEqual([parts, hKv]);
        expect(config.gatherQ).toBe(hKv > 1 && sQ > 1);
        if (mergeBlocks === 0) expect(config.combine).toBeUndefined();
        else expect(config.combine).toEqual({ kernel: 'combine_bf16', blocks: mergeBlocks, sharedBytes: mergeBlocks <= 132 ? 180_000 : mergeBlocks <= 264 ? 88_000 : 0 });
      }),
    );
  });

  test('the merge takes every row of every split sequence once', async () => {
    const combine = await source('combine.cu');
    const [warps, few, fewRows] = ['WARPS', 'FEW', 'FEW_ROWS'].map((name) => Number(new RegExp(`constexpr int ${name} = (\\d+);`).exec(combine)![1])) as [number, number, number];
    fc.assert(
      fc.property(fc.array(fc.integer({ min: 1, max: 132 }), { minLength: 1, maxLength: 20 }), fc.integer({ min: 1, max: 300 }), (splits, rows) => {
        const { items, mostSplits } = mergeItems(Int32Array.from(splits.flatMap((n, i) => [9, i, n, 2 * i + (n % 2)])), rows);
        expect(mostSplits).toBe(Math.max(...splits));
        const taken = splits.map(() => new Int32Array(2 * rows)); // halves of rows
        for (let at = 0; at < items.length; at += 4) {
          const [sequence, what, firstPartial, ofSequence] = items.subarray(at, at + 4) as unknown as [number, number, number, number];
          expect([firstPartial, ofSequence]).toEqual([2 * sequence + (splits[sequence]! % 2), splits[sequence]]);
          const kind = what & 7;
          if (kind === few) expect(splits[sequence]).toBeLessThanOrEqual(32 / fewRows);
          const count = kind === few ? 2 * warps * fewRows : warps >> kind;
          const first = (what >> 3) * (kind === few ? 2 : 1);
          for (let half = first; half < Math.min(first + count, 2 * rows); half++) taken[sequence]![half]!++;
        }
        expect(taken.map((halves) => [...new Set(halves)])).toEqual(splits.map((n) => [n > 1 ? 1 : 0]));
      }),
    );
  });

  test('a schedule of its own fills the machine once', () => {
    const machine = scheduleInfo(132);
    // One long sequence too: more parts than small ones may be, each long enough.
    expect(getMlaMetadata({ cacheSeqlens: Int32Array.of(131_072), numQTokensPerHeadK: 16, numHeadsK: 1 }, machine).parts).toBeGreaterThan(machine.mostSmallParts!);
    for (const [rows, hKv] of [[16, 1], [64, 1], [65, 1], [128, 1], [192, 1], [256, 1], [300, 2], [16, 8], [1000, 200]] as const) {
      const { parts } = getMlaMetadata({ cacheSeqlens: new Int32Array(200).fill(9000), numQTokensPerHeadK: rows, numHeadsK: hKv }, machine);
      const { grid } = chooseDecodeConfig({ ...shape, hQ: rows * hKv, hKv }, { parts, kvBlocks: 28200, mergeBlocks: 0, mostSplits: 1 }, 132);
      expect(parts).toBe(mostParts(machine, { rows, numHeadsK: hKv, blockSize: 64 }));
      const blocks = grid[0] * grid[1] * grid[2];
      if (parts > 1) expect(blocks, `${rows} rows, ${hKv} KV heads`).toBeLessThanOrEqual(132);
      expect(blocks + blocks / parts, `${rows} rows, ${hKv} KV heads`).toBeGreaterThan(132);
    }
  });

  test('limits are refused by name', () => {
    const plan = { parts: 1, kvBlocks: 1, mergeBlocks: 0, mostSplits: 1 };
    for (const [change, argument] of [
      [{ dV: 256, dQk: 320 }, 'headDimV'], [{ dQk: 528 }, 'q.shape[3]'], [{ blockSize: 128 }, 'kvCache.shape[1]'], [{ hKv: 65536, hQ: 65536 }, 'kvCache.shape[2]'], [{ b: 2 ** 20, hQ: 2048 }, 'q'],
    ] as const) {
      expect(() => chooseDecodeConfig({ ...shape, ...change }, plan, 132), argument).toThrow(expect.objectContaining({ code: 'limit-exceeded', argument }));
    }
    for (const change of [{ parts: 65536 }, { mostSplits: 513 }]) {
      expect(() => chooseDecodeConfig(shape, { ...plan, ...change }, 132)).toThrow(expect.objectContaining({ code: 'limit-exceeded', argument: 'metadata' }));
    }
  });
});

describe('the committed cubins', () => {
  test('are of these sources: else run npm run build:cuda', async () => {
    const { manifest } = await readKernels();
    expect(manifest.sources).toEqual(await sourceHashes());
  });

  test('have the kernels that are launched', async () => {
    const { images, manifest } = await readKernels();
    expect(manifest.driver).toBe(Number(manifest.nvcc.split('.')[0]) * 1000);
    const text = Object.fromEntries(CUBINS.map((name) => [name, Buffer.from(images[name]).toString('latin1')]));
    const both = (name: string): string[] => [`${name}bf16`, `${name}f16`];
    const kernels = { decode: [...both('decode_'), ...both('decode_').map((n) => `${n}_pair`)], decode_few: both('decode_').map((n) => `${n}_few`), combine: both('combine_'), append: ['append'], gather_q: ['gather_q'], delay: ['delay'] };
    for (const name of CUBINS) for (const kernel of kernels[name]) expect(text[name], kernel).toContain(`.text.${kernel}\0`);
  });
});
