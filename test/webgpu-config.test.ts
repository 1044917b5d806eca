/** Choice of kernel configuration and layout of large pools: pure, for every width and for the smallest limits there are. */
import fc from 'fast-check';
import { describe, expect, test } from 'vitest';
import { MlaError } from '../src/errors.ts';
import { BLOCK_SIZES, chooseRowTile, partsTarget } from '../src/schedule.ts';
import { DECODE_BINDINGS, chooseDecodeConfig, decodeCandidates, scheduleInfo, segmentPool, type DecodeProblem, type DeviceTraits, type KernelLimits } from '../src/webgpu/config.ts';

/** WebGPU's defaults: what every device has. */
const defaults: KernelLimits = {
  maxStorageBufferBindingSize: 134217728, maxBufferSize: 268435456, maxStorageBuffersPerShaderStage: 8, maxComputeWorkgroupStorageSize: 16384,
  maxComputeInvocationsPerWorkgroup: 256, maxComputeWorkgroupSizeX: 256, maxComputeWorkgroupsPerDimension: 65535,
};
const large: KernelLimits = { ...defaults, maxComputeWorkgroupStorageSize: 49152, maxComputeInvocationsPerWorkgroup: 1024, maxComputeWorkgroupSizeX: 1024 };

const widths: DecodeProblem[] = Array.from({ length: 16 }, (_, i) => (i + 1) * 32).flatMap((dV) => [16, 32, 48, 64].map((rope) => ({ dV, dQk: dV + rope, dtype: 'bf16' as const })));
const DEEPSEEK: DecodeProblem = { dQk: 576, dV: 512, dtype: 'bf16', blockSize: 64 };

const device = { kind: 'gpu', vendor: '', architecture: '', tier: 'base', limits: large } as const satisfies DeviceTraits;
const devices: [string, DeviceTraits][] = [
  ['a GPU', device],
  ['an NVIDIA GPU', { ...device, vendor: 'nvidia' }],
  ['an AMD GPU', { ...device, vendor: 'amd', architecture: 'rdna-3' }],
  ['software', { ...device, kind: 'software' }],
  ...([[4, 4], [8, 32], [32, 32], [64, 64]] as const).map(([min, max]): [string, DeviceTraits] => [
    `subgroups of ${min} to ${max}`, { ...device, kind: min === 4 ? 'software' : 'gpu', vendor: min === 32 ? 'nvidia' : '', tier: 'subgroup', subgroupSize: { min, max } },
  ]),
];

describe.each(devices.flatMap(([name, traits]): [string, DeviceTraits][] => [
  [`${name} with large limits`, traits], [`${name} with default limits`, { ...traits, limits: defaults }],
]))('decode configurations for %s', (_, traits) => {
  const { limits } = traits;

  test('there is one for every width and row count, and every one that fits is consistent', () => {
    for (const problem of widths) {
      for (const rows of [1, 2, 4, 5, 16, 17, 40, 128, 512]) {
        const { fits, rejected } = decodeCandidates(problem, rows, traits);
        if (fits.length === 0) throw new Error(`${problem.dQk}/${problem.dV}, ${rows} rows: ${rejected.join('; ')}`);
        // The most rows have all there are.
        for (const config of rows === 512 ? fits : []) {
          if (config.tier === 'matrix') throw new Error('a tier that was not asked for');
          const what = `${problem.dQk}/${problem.dV}, ${rows} rows: ${config.key}`;
          expect(config.workgroupBytes, what).toBeLessThanOrEqual(limits.maxComputeWorkgroupStorageSize);
          expect(config.threads, what).toBeLessThanOrEqual(limits.maxComputeInvocationsPerWorkgroup);
          // A step lies in one block, of the smallest size when nothing is said.
          expect(16 % config.tokens, what).toBe(0);
          // Stage: threads load whole tokens, as often as it takes.
          expect(Number.isInteger(config.threads / config.stageLanes), what).toBe(true);
          expect(config.tokens % (config.threads / config.stageLanes), what).toBe(0);
          expect((problem.dQk / 2) % config.vec, what).toBe(0);
          // Scores: threads have a tile of rowTile rows x 4 quadTile tokens and a slice, and together they are the step.
          expect(config.rows % config.rowTile, what).toBe(0);
          expect(config.tokens % (4 * config.quadTile), what).toBe(0);
          expect(config.scoreThreads, what).toBeLessThanOrEqual(config.threads);
          expect(Number.isInteger(config.slices) && config.slices >= 1, what).toBe(true);
          expect(config.scoreThreads * config.rowTile * config.quadTile * 4, what).toBe(config.rows * config.tokens * config.slices);
          // Softmax: quads of a row and 4 tokens, all of them taken: in the subgroup tier by lanes that hold a row's sum.
          const owners = config.tier === 'base' ? config.threads : (config.scoreThreads * Math.min(config.rowTile * config.quadLanes, config.slices)) / config.slices;
          expect(owners * config.threadQuads, what).toBeGreaterThanOrEqual((config.rows * config.tokens) / 4);
          // Shuffles stay in a subgroup, whichever size of those promised it has.
          if (config.tier === 'subgroup') {
            expect(config.slices & (config.slices - 1), what).toBe(0);
            expect(config.slices * (config.shuffleMax ? config.tokens / 4 / config.quadTile : 1), what).toBeLessThanOrEqual(traits.subgroupSize!.min);
          }
          if (config.quadProbs) expect(config.outLanes % 4, what).toBe(0);
          // Output: groups of lanes reach every row and no thread's rows leave the tile; a group's words reach every column.
          const groups = Math.floor(config.threads / config.outLanes);
          expect(groups * config.outRows, what).toBeGreaterThanOrEqual(config.rows);
          expect(config.rows % config.outRows, what).toBe(0);
          expect(config.outLanes * config.outUnits * config.vec, what).toBeGreaterThanOrEqual(problem.dV / 2);
        }
      }
    }
  });

  test('keys tell configurations apart', () => {
    const keys = decodeCandidates(DEEPSEEK, 512, traits).fits.map(({ key }) => key);
    expect(new Set(keys).size).toBe(keys.length);
  });

  test('the scheduler counts tiles as the kernel has them', () => {
    const { rowTiles } = scheduleInfo(traits);
    expect(rowTiles.length).toBeGreaterThan(0);
    expect([...rowTiles].sort((a, b) => a - b)).toEqual(rowTiles);
    for (let rows = 1; rows <= 256; rows++) {
      expect(chooseDecodeConfig(DEEPSEEK, rows, traits).config!.rows).toBe(chooseRowTile(rowTiles, rows));
    }
  });

  test('a software adapter is given a part a processor, four at least', () => {
    const slots = (processors?: number): number => scheduleInfo({ ...traits, kind: 'software', processors }).slots;
    expect([slots(), slots(1), slots(2), slots(16)]).toEqual([8, 4, 4, 16]);
    expect(scheduleInfo({ ...traits, kind: 'gpu', processors: 2 })).toEqual(scheduleInfo({ ...traits, kind: 'gpu' }));
  });

  test('the preferred one where it fits, else the first', () => {
    const { fits } = decodeCandidates(DEEPSEEK, 128, traits);
    for (const config of fits) expect(chooseDecodeConfig(DEEPSEEK, 128, traits, config.key).config).toEqual(config);
    expect(chooseDecodeConfig(DEEPSEEK, 128, traits, 'of another device').config).toEqual(fits[0]);
    expect(chooseDecodeConfig(DEEPSEEK, 128, traits).config).toEqual(fits[0]);
  });

  test('says why when nothing fits', () => {
    const { config, rejected } = chooseDecodeConfig(DEEPSEEK, 16, { ...traits, limits: { ...defaults, maxComputeWorkgroupStorageSize: 1024 } });
    expect(config).toBeUndefined();
    expect(rejected.length).toBeGreaterThan(0);
    for (const why of rejected) expect(why).toMatch(/exceed/);
  });
});

describe('where nothing is tuned, by vendor and architecture', () => {
  const on = (vendor: string, architecture = '', tier: DeviceTraits['tier'] = 'subgroup'): DeviceTraits => ({
    ...device, vendor, architecture, tier, subgroupSize: { min: 32, max: 32 }, matrix: { syntax: 'new', subgroupSize: 32 },
  });

  test('as many parts as the device is likely to run at once', () => {
    const slots = (vendor: string, architecture?: string): number => scheduleInfo(on(vendor, architecture)).slots;
    // An H200 says no architecture.
    expect([slots('nvidia'), slots('nvidia', 'hopper'), slots('nvidia', 'ampere'), slots('nvidia', 'turing'), slots('nvidia', 'pascal')]).toEqual([528, 528, 320, 160, 80]);
    expect([slots('amd', 'cdna-3'), slots('amd', 'rdna-3'), slots('amd', 'gcn-5')]).toEqual([440, 264, 144]);
    expect([slots('intel', 'gen-9'), slots('intel', 'gen-11'), slots('intel', 'gen-12lp'), slots('intel', 'xe-2lpg'), slots('intel', 'gen-12hp'), slots('intel', 'xe-2hpg')]).toEqual([32, 32, 64, 64, 160, 160]);
    expect([slots('apple', 'metal-3'), slots('qualcomm', 'adreno-6xx'), slots('qualcomm', 'adreno-8xx'), slots('arm', 'valhall'), slots('', '')]).toEqual([80, 16, 32, 32, 264]);
    expect(scheduleInfo(on('nvidia', '', 'matrix')).slots).toBe(264);
  });

  test('tiles that registers hold; what they do not has a reason', () => {
    const first = (vendor: string, architecture: string): string => decodeCandidates(DEEPSEEK, 128, on(vendor, architecture, 'base')).fits[0]!.key;
    expect([first('nvidia', 'ampere'), first('amd', 'rdna-3'), first('intel', 'xe-2lpg')]).toEqual([
      'base 64x16/256 s4x2/256 prefetch pairs of 2', 'base 64x16/256 s4x1/256x6 prefetch', 'base 32x16/256 s4x1/256 prefetch',
    ]);
    const all = decodeCandidates(DEEPSEEK, 128, on('nvidia'));
    for (const [vendor, architecture, ...why] of [
      ['amd', 'rdna-3', '160 sums a thread exceed the 144 that registers are taken to hold on amd rdna-3', '512 threads exceed the 256 that are taken to be good on amd rdna-3'],
      ['', '', '144 sums a thread exceed the 96 that registers are taken to hold on an unknown GPU'],
    ] as const) {
      const { fits, rejected } = decodeCandidates(DEEPSEEK, 128, on(vendor, architecture));
      // Each is in one list or the other.
      expect([...fits.map(({ key }) => key), ...rejected.map((line) => line.split(':')[0]!)].sort()).toEqual([...all.fits.map(({ key }) => key), ...all.rejected.map((line) => line.split(':')[0]!)].sort());
      for (const part of why) expect(rejected.join('\n')).toContain(part);
    }
  });

  test('tiles larger than the rows have a reason as well', () => {
    const { fits, rejected } = decodeCandidates(DEEPSEEK, 16, on('nvidia'));
    expect(new Set(fits.map(({ rows }) => rows))).toEqual(new Set([16, 4]));
    expect(rejected).toContain('subgroup 64x16/256 s4x2/256 prefetch: 16 rows leave more of it empty than of 16');
  });
});

describe('what the device has said against configurations', () => {
  const traits: DeviceTraits = { ...device, tier: 'matrix', vendor: 'nvidia', subgroupSize: { min: 32, max: 32 }, matrix: { syntax: 'new', subgroupSize: 32 } };

  test('is a reason, and where it is all of a tier the next one serves', () => {
    const faults = new Map<string, string>();
    const tiers: string[] = [];
    for (;;) {
      const { config, rejected } = chooseDecodeConfig(DEEPSEEK, 16, traits, undefined, faults);
      for (const [key, why] of faults) expect(rejected).toContain(`${key}: ${why}`);
      if (!config) break;
      if (tiers.at(-1) !== config.tier) tiers.push(config.tier);
      faults.set(config.key, 'the device refuses it');
    }
    expect(tiers).toEqual(['matrix', 'subgroup', 'base']);
  });
});

describe.each<[string, DeviceTraits]>([
  ['the subgroup tier', { ...device, vendor: 'nvidia', tier: 'subgroup', subgroupSize: { min: 32, max: 32 } }],
  ['the matrix tier', { ...device, vendor: 'nvidia', tier: 'matrix', subgroupSize: { min: 32, max: 32 }, matrix: { syntax: 'new', subgroupSize: 32 } }],
])('a tuned configuration of %s', (_, traits) => {
  const { fits } = decodeCandidates(DEEPSEEK, 128, traits);

  test('may take steps of 32 keys', () => {
    expect(new Set(fits.map(({ tokens }) => tokens))).toContain(32);
  });

  test('gives way to the first where the blocks of a call do not fit, and the schedule with it', () => {
    for (const { key, rows, tokens } of fits) {
      const machine = { ...scheduleInfo(traits), tuned: [{ rows: 128, numHeadsK: 1, load: 'long', slots: 100, rowTile: rows, tokens } as const] };
      for (const blockSize of BLOCK_SIZES) {
        const problem = { ...DEEPSEEK, blockSize };
        const config = chooseDecodeConfig(problem, 128, traits, key).config!;
        const serves = blockSize >= tokens;
        expect(config.key, `${key} on blocks of ${blockSize}`).toBe(serves ? key : decodeCandidates(problem, 128, traits).fits[0]!.key);
        const parts = partsTarget(machine, { rows: 128, numHeadsK: 1, blockSize, load: 'long' });
        expect(parts, `${key} on blocks of ${blockSize}`).toBe(Math.floor((serves ? 100 : machine.slots) / Math.ceil(128 / config.rows)));
      }
    }
  });
});

describe('pools over several bindings', () => {
  const blockBytes = 64 * 576 * 2;

  test('one binding where one will do', () => {
    expect(segmentPool(Math.floor(defaults.maxStorageBufferBindingSize / blockBytes), blockBytes, defaults, 'numBlocks').segments).toBe(1);
  });

  test('every block has a place in a binding that fits', () => {
    fc.assert(
      fc.property(fc.integer({ min: 1, max: 5460 }), fc.constantFrom(16, 64, 128), (numBlocks, blockSize) => {
        const bytes = blockSize * 576 * 2;
        fc.pre(numBlocks <= Math.floor(defaults.maxStorageBufferBindingSize / bytes) * (8 - DECODE_BINDINGS));
        const { segments, blocksPerSegment } = segmentPool(numBlocks, bytes, defaults, 'numBlocks');
        expect(Math.floor((numBlocks - 1) / blocksPerSegment)).toBe(segments - 1);
        if (segments > 1) expect(blocksPerSegment * bytes).toBeLessThanOrEqual(defaults.maxStorageBufferBindingSize);
        expect(segments + DECODE_BINDINGS).toBeLessThanOrEqual(8);
      }),
    );
  });

  test('beyond that the error names the limit and the largest pool, which is possible', () => {
    let refused: unknown;
    try {
      segmentPool(1_000_000, blockBytes, defaults, 'numBlocks');
    } catch (error) {
      refused = error;
    }
    if (!(refused instanceof MlaError)) throw new Error('no MlaError');
    expect(refused).toMatchObject({ code: 'limit-exceeded', argument: 'numBlocks', got: '1000000' });
    expect(refused.message).toContain('maxStorageBufferBindingSize');
    const most = Number(/at most (\d+) blocks/.exec(refused.expected!)![1]);
    expect(segmentPool(most, blockBytes, defaults, 'numBlocks').segments).toBe(8 - DECODE_BINDINGS);
    expect(() => segmentPool(most + 1, blockBytes, defaults, 'numBlocks')).toThrow(MlaError);
  });
});
