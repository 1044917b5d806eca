/** The decode kernel's source: every configuration of every tier compiles, for every kind of width. Nothing runs here. */
import { describe, expect, test } from 'vitest';
import { ONE_SEGMENT, decodeCandidates, type DeviceTraits, type ScalarConfig, type Segmentation } from '../src/webgpu/config.ts';
import { decodeMatrixKernel } from '../src/webgpu/decode-matrix.ts';
import { decodeKernel, pairedSums, shuffledSums } from '../src/webgpu/decode.ts';
import { expand, type Kernels } from '../src/webgpu/kernel.ts';
import { MATRIX_SHAPES, matrixConfig, type MatrixDecodeConfig } from '../src/webgpu/matrix-config.ts';
import { compileError, texts } from './null-gpu.ts';

const limits = {
  maxStorageBufferBindingSize: 134217728, maxBufferSize: 268435456, maxStorageBuffersPerShaderStage: 8, maxComputeWorkgroupStorageSize: 49152,
  maxComputeInvocationsPerWorkgroup: 1024, maxComputeWorkgroupSizeX: 1024, maxComputeWorkgroupsPerDimension: 65535,
};
const devices: DeviceTraits[] = (['gpu', 'software'] as const).flatMap((kind) => (['base', 'subgroup'] as const).map((tier) => ({
  limits, kind, vendor: 'nvidia', architecture: '', tier, subgroupSize: kind === 'gpu' ? { min: 32, max: 32 } : { min: 4, max: 4 },
})));

describe.each(devices.map((traits) => [`${traits.tier} tier, ${traits.kind}`, traits] as const))('%s', (_, traits) => {
  test.each([[576, 512, 'bf16'], [48, 32, 'f16'], [144, 96, 'bf16']] as const)('%i/%i %s', async (dQk, dV, dtype) => {
    const { fits } = decodeCandidates({ dQk, dV, dtype, blockSize: 64 }, 512, traits);
    for (const config of fits) {
      if (config.tier === 'matrix') throw new Error('a tier that was not asked for');
      const source = decodeKernel(texts, { dQk, dV, dtype }, config, { segments: 2, blocksPerSegment: 1820 });
      expect(source).not.toMatch(/#|\$/);
      expect(await compileError(source), config.key).toBeUndefined();
    }
  });
});

test('kernels of different texts have different names, or one would be taken for the other', () => {
  const keys: Kernels<string> = { get: (key) => key };
  const problem = { dQk: 576, dV: 512, dtype: 'bf16', hKv: 1 } as const;
  const [traits] = devices;
  const scalar = decodeCandidates({ ...problem, blockSize: 64 }, 16, traits!).fits[0] as ScalarConfig;
  const matrix = matrixConfig(MATRIX_SHAPES[1]!, problem, { syntax: 'new', subgroupSize: 32 }) as MatrixDecodeConfig;
  // Blocks of 64 and of 128, or of one and two KV heads, in bindings of 128 MiB.
  const layouts = [{ segments: 1, blocksPerSegment: ONE_SEGMENT }, { segments: 2, blocksPerSegment: 1820 }, { segments: 2, blocksPerSegment: 910 }];
  for (const make of [(kv: Segmentation) => decodeKernel(keys, problem, scalar, kv), (kv: Segmentation) => decodeMatrixKernel(keys, problem, matrix, kv)]) {
    expect(new Set(layouts.map(make)).size).toBe(layouts.length);
  }
});

describe('directives', () => {
  test('unroll nests and counts', () => {
    expect(expand('#unroll i < N\n#unroll j < 2\na_$i_$j $iu\n#end\n#end\nb', { N: 2 })).toBe('a_0_0 0u\na_0_1 0u\na_1_0 1u\na_1_1 1u\nb');
  });

  test('if, not, else', () => {
    const source = '#if A\na\n#else\nb\n#end\n#if !A\nc\n#end';
    expect(expand(source, { A: true })).toBe('a');
    expect(expand(source, { A: false })).toBe('b\nc');
  });

  test.each(['#unroll i < N\n#end', '#unroll i < 2', '#if N\n#end', '#end', '#for x\n#end', '#unroll i < 2\n#else\n#end'])('%j is refused', (source) => {
    expect(() => expand(source, {})).toThrow(/bad #/);
  });
});

/** JavaScript for a line of sums, with numbers in place of vectors. */
const inScript = (line: string): string => line
  .replace(/^(?:let|var) (\w+) = /, 'v.$1 = ').replaceAll(/\b(sum|half|dot|dots|odd)_(\w+)/g, 'v.$1_$2').replaceAll('v.v.', 'v.').replaceAll(/\b(\d+)u\b/g, '$1');

describe('sums by shuffles', () => {
  type Shape = Parameters<typeof shuffledSums>[0];

  /** What the lines leave in each lane, from what each lane has. */
  function run(shape: Shape, start: (lane: number, row: number, quad: number) => number): number[][] {
    const { rowTile, quadTile, slices } = shape;
    let lanes = Array.from({ length: slices }, (_, slice) => {
      const values: Record<string, number> = {};
      for (let r = 0; r < rowTile; r++) for (let g = 0; g < quadTile; g++) values[`sum_${r}_${g}`] = start(slice, r, g);
      return values;
    });
    for (const line of shuffledSums(shape).split('\n')) {
      // Where one lane wants another's: the same expression, evaluated there.
      const script = inScript(line).replaceAll(/subgroupShuffleXor\((v\.\w+), (\d+)\)/g, '(lanes[slice ^ $2].$1)').replaceAll('.v.', '.');
      const step = new Function('v', 'slice', 'lanes', 'halve', `${script}; return v;`) as (v: object, slice: number, lanes: object[], halve: unknown) => Record<string, number>;
      const before = lanes;
      lanes = before.map((values, slice) => {
        const [, x, y] = /halve\(v\.(\w+), v\.(\w+),/.exec(script) ?? [];
        const halve = (_a: number, _b: number, odd: boolean, mask: number): number => (odd ? before[slice]![y!]! + before[slice ^ mask]![y!]! : before[slice]![x!]! + before[slice ^ mask]![x!]!);
        return step({ ...values }, slice, before, halve);
      });
    }
    return lanes.map((values) => Object.keys(values).filter((k) => k.startsWith('dots_')).map((_, i) => values[`dots_${i}`]!));
  }

  test.each([[8, 1, 8, 1], [16, 2, 4, 1], [4, 1, 16, 1], [8, 1, 1, 1], [2, 1, 32, 1], [1, 1, 4, 1], [4, 2, 16, 2], [4, 2, 4, 1], [8, 2, 32, 2], [2, 4, 4, 2]])(
    '%i rows, %i quads, %i slices: a lane has its rows, and %i of its neighbours the quads', (rowTile, quadTile, slices, quadLanes) => {
      const start = (lane: number, row: number, quad: number): number => 1000 * row + 100_000 * quad + lane * lane;
      const total = (row: number, quad: number): number => Array.from({ length: slices }, (_, lane) => start(lane, row, quad)).reduce((a, b) => a + b);
      const quads = quadTile / quadLanes;
      run({ rowTile, quadTile, slices, quadLanes }, start).forEach((dots, lane) => {
        expect(dots).toEqual(Array.from({ length: Math.max(1, rowTile / slices) * quads }, (_, i) =>
          total((lane % rowTile) + Math.floor(i / quads) * slices, (Math.floor(lane / rowTile) % quadLanes) + (i % quads) * quadLanes)));
      });
    });
});

describe('sums by pairs', () => {
  test.each([[4, 1, 8, 2], [4, 2, 16, 2], [4, 2, 16, 1], [4, 2, 8, 4], [8, 1, 8, 2], [2, 1, 4, 2], [8, 2, 32, 4]])(
    '%i rows, %i quads, %i slices, %i vectors a thread', (ROW_TILE, QUAD_TILE, SLICES, pairSums) => {
      // Two tiles of rows by two of quads.
      const [ROWS, QUADS, QUAD_TILES, THREADS] = [2 * ROW_TILE, 2 * QUAD_TILE, 2, 4 * SLICES];
      const names = { ROW_TILE, QUAD_TILE, SLICES, QUADS, QUAD_TILES, THREADS };
      const text = pairedSums({ rowTile: ROW_TILE, quadTile: QUAD_TILE, pairSums });
      const [exchange, gather] = text.split('#unroll i < THREAD_QUADS\n') as [string, string];
      const start = (thread: number, r: number, g: number): number => thread * thread + 10_000 * r + 1_000_000 * g;
      const threads = Array.from({ length: THREADS }, (_, thread) => {
        const v: Record<string, number> = {};
        for (let r = 0; r < ROW_TILE; r++) for (let g = 0; g < QUAD_TILE; g++) v[`sum_${r}_${g}`] = start(thread, r, g);
        return v;
      });
      const memory = Array.from({ length: THREADS * pairSums }, () => NaN);
      /** Runs lines that no barrier parts, a thread after the other; what one has written no other may have touched. */
      const phase = (lines: string): void => {
        const readers = new Map<number, Set<number>>();
        const writers = new Map<number, number>();
        threads.forEach((v, thread) => {
          const sums = new Proxy(memory, {
            get: (_, at) => (readers.get(Number(at)) ?? readers.set(Number(at), new Set()).get(Number(at))!).add(thread) && memory[Number(at)],
            set: (_, at, value: number) => {
              expect(writers.has(Number(at)), `${String(at)} written twice`).toBe(false);
              writers.set(Number(at), thread);
              memory[Number(at)] = value;
              return true;
            },
          });
          const script = lines.split('\n').map(inScript).join('\n');
          new Function('v', 'thread', 'slice', 'slice_sums', 'select', ...Object.keys(names), script)(
            v, thread, thread % SLICES, sums, (no: number, yes: number, which: boolean) => (which ? yes : no), ...Object.values(names));
        });
        for (const [at, thread] of writers) for (const reader of readers.get(at) ?? []) expect(reader, `${at} read and written between barriers`).toBe(thread);
      };
      exchange.split('workgroupBarrier();\n').forEach(phase);
      // The owners' part, in whole numbers.
      const script = gather.replace(/\n#end$/, '').split('\n').map((line) => line
        .replaceAll('$i', '0').replaceAll(/\b(\d+)u\b/g, '$1').replaceAll('vec4<f32>()', '0').replace(/^let /, 'const ').replace(/^var dots_0/, 'dots')
        .replaceAll('dots_0', 'dots').replace(/for \(var/, 'for (let').replaceAll(/([\w.]+(?: % \w+)*) \/ (\w+)/g, 'Math.floor(($1) / $2)')).join('\n');
      const dot = new Function('active_0', 'row_0', 'quad_0', 'slice_sums', ...Object.keys(names), `let ${script}; return dots;`) as (...args: unknown[]) => number;
      for (let row = 0; row < ROWS; row++) {
        for (let q = 0; q < QUADS; q++) {
          const tile = Math.floor(row / ROW_TILE) * QUAD_TILES + Math.floor(q / QUAD_TILE);
          const wanted = Array.from({ length: SLICES }, (_, s) => start(tile * SLICES + s, row % ROW_TILE, q % QUAD_TILE)).reduce((x, y) => x + y);
          expect(dot(true, row, row * QUADS + q, memory, ...Object.values(names)), `row ${row}, quad ${q}`).toBe(wanted);
        }
      }
    });
});
