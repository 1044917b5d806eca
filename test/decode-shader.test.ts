/** The decode kernel's source: every configuration of every tier compiles, for every kind of width. Nothing runs here. */
import { describe, expect, test } from 'vitest';
import { decodeCandidates, type DeviceTraits } from '../src/webgpu/config.ts';
import { decodeKernel, shuffledSums } from '../src/webgpu/decode.ts';
import { expand } from '../src/webgpu/kernel.ts';
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

describe('sums by shuffles', () => {
  /** What the lines leave in each lane, from what each lane has; sums and shuffles of numbers in place of vectors. */
  function run(shape: Parameters<typeof shuffledSums>[0], start: (lane: number, row: number, quad: number) => number): number[][] {
    const { rowTile, quadTile, slices } = shape;
    const lanes = Array.from({ length: slices }, (_, lane) => {
      const values: Record<string, number> = {};
      for (let r = 0; r < rowTile; r++) for (let g = 0; g < quadTile; g++) values[`sum_${r}_${g}`] = start(lane, r, g);
      return values;
    });
    for (const line of shuffledSums(shape).split('\n')) {
      const [, name, a, b, mask] = /let (\w+) = (?:halve\()?(\w+)(?:, (\w+), .*|.*?)?(?:, (?=\d)(\d+)u\);|;)$/.exec(line) ?? [];
      const bit = Number(mask ?? /(\d+)u\)/.exec(line)?.[1] ?? 0);
      const mine = lanes.map((values, lane) => [values[a!]!, b === undefined ? undefined : values[b]!, lane] as const);
      lanes.forEach((values, lane) => {
        if (bit === 0) values[name!] = values[a!]!;
        else if (b === undefined) values[name!] = mine[lane]![0] + mine[lane ^ bit]![0];
        else values[name!] = (lane & bit) === 0 ? mine[lane]![0] + mine[lane ^ bit]![0] : mine[lane]![1]! + mine[lane ^ bit]![1]!;
      });
    }
    return lanes.map((values) => Object.keys(values).filter((k) => k.startsWith('dots_')).map((_, i) => values[`dots_${i}`]!));
  }

  test.each([[8, 1, 8], [16, 2, 4], [4, 1, 16], [8, 1, 1], [2, 1, 32], [1, 1, 4]])('%i rows, %i quads, %i slices: lane s has rows s, s + SLICES', (rowTile, quadTile, slices) => {
    const start = (lane: number, row: number, quad: number): number => 1000 * row + 100_000 * quad + lane * lane;
    const total = (row: number, quad: number): number => Array.from({ length: slices }, (_, lane) => start(lane, row, quad)).reduce((a, b) => a + b);
    run({ rowTile, quadTile, slices }, start).forEach((dots, lane) => {
      expect(dots).toEqual(Array.from({ length: Math.max(1, rowTile / slices) * quadTile }, (_, i) => total((lane % rowTile) + Math.floor(i / quadTile) * slices, i % quadTile)));
    });
  });
});
