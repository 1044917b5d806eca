/**
 * The matrix tier where no adapter has subgroup matrices: its configurations, that its text compiles in both syntaxes, and
 * the text itself with the matrices emulated (matrix-emulation.ts) on the software adapter.
 */
import { afterAll, beforeAll, describe, expect, test, vi } from 'vitest';
import { fromBf16 } from '../src/bf16.ts';
import type { Mla } from '../src/mla.ts';
import { createMla } from '../src/node.ts';
import { getMlaMetadata } from '../src/schedule.ts';
import { decodeCandidates, type DecodeProblem, type DeviceTraits } from '../src/webgpu/config.ts';
import { decodeMatrixKernel } from '../src/webgpu/decode-matrix.ts';
import { MATRIX_SHAPES, matrixConfig, type MatrixDecodeConfig, type MatrixShape } from '../src/webgpu/matrix-config.ts';
import type { MatrixSyntax } from '../src/webgpu/matrix-syntax.ts';
import { makeCase, type CaseOptions } from './cases.ts';
import { compareDecode } from './compare.ts';
import { expectRight, oracle, run } from './check.ts';
import { range } from './conformance/range.ts';
import { emulateMatrices } from './matrix-emulation.ts';
import { compileError, texts } from './null-gpu.ts';
import { softwareGpu } from './software-adapter.ts';

const limits = {
  maxStorageBufferBindingSize: 2 ** 31 - 4, maxBufferSize: 2 ** 31, maxStorageBuffersPerShaderStage: 8, maxComputeWorkgroupStorageSize: 49152,
  maxComputeInvocationsPerWorkgroup: 1024, maxComputeWorkgroupSizeX: 1024, maxComputeWorkgroupsPerDimension: 65535,
};
const traits = (syntax: MatrixSyntax): DeviceTraits => ({
  limits, kind: 'gpu', vendor: 'nvidia', architecture: '', tier: 'matrix', subgroupSize: { min: 32, max: 32 }, matrix: { syntax, subgroupSize: 32 },
});
const DEEPSEEK: DecodeProblem = { dQk: 576, dV: 512, dtype: 'bf16', blockSize: 64 };

function made(problem: DecodeProblem, syntax: MatrixSyntax = 'new'): MatrixDecodeConfig[] {
  return MATRIX_SHAPES.map((shape) => matrixConfig(shape, problem, { syntax, subgroupSize: 32 })).filter((config) => typeof config !== 'string');
}

/** Values of a kernel's expressions for a subgroup and lane: with its constants, and with those of its values that are named, each after those it is made of. */
function evaluator(text: string, names: readonly string[]): (expression: string, me: number, lane: number) => unknown {
  const script = (wgsl: string): string => wgsl.replace(/\b(\d+)u\b/g, '$1n');
  const constants = [...text.matchAll(/^const (\w+) = (\d+)u;$/gm)].map(([, name, value]) => `const ${name} = ${value}n;`);
  const values = names.flatMap((name) => [...text.matchAll(new RegExp(`^ *let ${name} = (.*);$`, 'gm'))].map(([, value]) => `const ${name} = ${script(value!)};`));
  return (expression, me, lane) => {
    const value: unknown = new Function('me', 'subgroup_lane', 'min', `${[...constants, ...values].join('\n')}\nreturn ${script(expression)};`)(
      BigInt(me), BigInt(lane), (a: bigint, b: bigint) => (a < b ? a : b),
    );
    return typeof value === 'bigint' ? BigInt.asUintN(32, value) : value;
  };
}

describe('configurations', () => {
  test('all fit DeepSeek\'s heads on a large GPU, and are consistent', () => {
    const { fits } = decodeCandidates(DEEPSEEK, 512, traits('new'));
    expect(fits.map(({ key }) => key).sort()).toEqual(made(DEEPSEEK).map(({ key }) => key).sort());
    for (const { key, rows, tokens, subgroups, slices, threads, workgroupBytes } of made(DEEPSEEK)) {
      expect(threads, key).toBe(subgroups * 32);
      // Every slice of every matrix of S has a subgroup.
      expect(subgroups, key).toBe((rows / 16) * (tokens / 16) * slices);
      expect([1, 2, 4], key).toContain(slices);
      expect([subgroups, rows / 16, tokens / 16, threads / tokens].every((n) => Number.isInteger(Math.log2(n))), key).toBe(true);
      expect(threads, key).toBeGreaterThanOrEqual(rows * Math.min(threads / rows, tokens / 4));
      expect(workgroupBytes, key).toBeLessThanOrEqual(49152);
    }
  });

  test('without bounds checks those that they would slow down come first', () => {
    const first = (unchecked: boolean, rows: number): string => decodeCandidates(DEEPSEEK, rows, { ...traits('new'), unchecked }).fits[0]!.key;
    expect([64, 32, 16].map((rows) => first(false, rows))).toEqual(['matrix 64x16 8/2 scores split fixed', 'matrix 32x32 8/2x2 scored fixed', 'matrix 16x16 4/4 scores fixed']);
    expect([64, 32, 16].map((rows) => first(true, rows))).toEqual(['matrix 64x16 8/2 2 tiles ahead scored', 'matrix 32x32 8/2x2 scores', 'matrix 16x16 4/4 scores']);
  });

  test('widths that the matrices do not divide go to the next tier, and why is said', () => {
    const { fits, rejected } = decodeCandidates({ dQk: 48, dV: 32, dtype: 'bf16', blockSize: 64 }, 16, traits('new'));
    expect(fits[0]!.tier).toBe('subgroup');
    expect(rejected.filter((why) => /^matrix .*: d_(qk|v) = (48|32) is not a multiple/.test(why)).length).toBe(MATRIX_SHAPES.length);
  });

  test('threads past the end of a row of Q ask for its last vector again', () => {
    const shape = MATRIX_SHAPES.find(({ rows, tokens, tiles }) => rows === 32 && tokens === 16 && tiles === 1)!;
    const problem = { ...DEEPSEEK, dQk: 192, dV: 128 };
    const config = matrixConfig(shape, problem, { syntax: 'new', subgroupSize: 64 }) as MatrixDecodeConfig;
    expect(config.threads / config.tokens).toBeGreaterThan(problem.dQk / 8);
    const text = decodeMatrixKernel(texts, { ...problem, hKv: 1 }, config, { segments: 1, blocksPerSegment: 1820 });
    const loads = [...text.matchAll(/^ *y_\d_0 = q\[at \+ (.*)\];$/gm)].map(([, place]) => place);
    expect(loads).toEqual(Array.from({ length: config.rows / config.tokens }, () => 'min(q_vec + 0u, VECS - 1u)'));
  });

  // d_qk, d_v, lanes of a subgroup: shares that lie alike for all lanes, and such that divide nothing.
  test.each([
    [576, 512, 32], [576, 512, 64], [192, 128, 32], [192, 128, 64], [544, 512, 32], [320, 256, 4], [448, 384, 32], [448, 384, 8],
  ])('a step\'s rows are staged once, V by who reads it: %i/%i, %i lanes', (dQk, dV, subgroupSize) => {
    const configs = MATRIX_SHAPES.map((shape) => matrixConfig(shape, { dQk, dV }, { syntax: 'new', subgroupSize })).filter((config) => typeof config !== 'string');
    expect(configs.length).toBeGreaterThan(0);
    for (const hKv of [1, 3]) for (const config of configs) {
      const { key, tokens, subgroups } = config;
      const text = decodeMatrixKernel(texts, { dQk, dV, dtype: 'bf16', hKv }, config, { segments: 1, blocksPerSegment: 1820 });
      const loads = new Map([...text.matchAll(/^ *([xz]_\d+) = kv0\[row_at\.y \+ (.*)\];$/gm)].map(([, name, from]) => [name!, from!]));
      const stores = new Map([...text.matchAll(/^ *(?:if \((.*)\) )?\{ tile_put\(here \+ (.*), halves\(([xz]_\d+)\)\); \}$/gm)].map(([, mine, to, name]) => [name!, { mine: mine ?? 'true', to: to! }]));
      expect([...stores.keys()], key).toEqual([...loads.keys()]);
      const evaluate = evaluator(text, ['own_row', 'own_vec', 'own_to', 'rest_row', 'rest_from', 'rest_to']);
      const vecs = dQk / 8;
      const writers = new Map<number, number>();
      for (let me = 0; me < subgroups; me++) for (let lane = 0; lane < subgroupSize; lane++) {
        const at = (expression: string): number => Number(evaluate(expression, me, lane));
        const ownRow = at('own_row');
        for (const [name, from] of loads) {
          const place = (ownRow * hKv * vecs + at(from)) % 2 ** 32;
          const [row, vec] = [Math.floor(place / (hKv * vecs)), place % (hKv * vecs)];
          expect(row < tokens && vec < vecs, `${key} ${name} of ${me}, ${lane}: row ${row}, vector ${vec}`).toBe(true);
          if (!evaluate(stores.get(name)!.mine, me, lane)) continue;
          const to = at(stores.get(name)!.to);
          expect(to, `${key} ${name} of ${me}, ${lane}`).toBe(row * config.strides.KV_STRIDE + vec);
          if (vec < dV / 8) expect(Math.floor(vec / (dV / 8 / subgroups)), `${key} ${name} of ${me}, ${lane}`).toBe(me);
          writers.set(to, (writers.get(to) ?? 0) + 1);
        }
      }
      expect(writers.size, key).toBe(tokens * vecs);
      expect(Math.max(...writers.values()), key).toBe(1);
    }
  });

  test('blocks smaller than a step decline it', () => {
    const { rejected } = decodeCandidates({ ...DEEPSEEK, blockSize: 16 }, 512, traits('new'));
    expect(rejected.join()).toMatch(/matrix 32x32 [^:]*: 32 tokens do not divide blocks of 16/);
  });
});

describe.each(['new', 'old'] as const)('the text compiles in the %s syntax', (syntax) => {
  test.each([[576, 512, 'bf16', 2], [576, 512, 'f16', 1], [192, 128, 'bf16', 1]] as const)('%i/%i %s', async (dQk, dV, dtype, segments) => {
    const all = made({ dQk, dV, dtype, blockSize: 64 }, syntax);
    expect(all.length).toBeGreaterThan(0);
    for (const config of all) {
      const source = decodeMatrixKernel(texts, { dQk, dV, dtype, hKv: 1 }, config, { segments, blocksPerSegment: 1820 });
      expect(source).not.toMatch(/#|\$/);
      expect(await compileError(source), config.key).toBeUndefined();
    }
  });
});

/** The configuration to take, and the syntax that the compiler takes. */
const preferred = vi.hoisted(() => ({ key: '', syntax: 'new' as MatrixSyntax }));
vi.mock('../src/webgpu/config.ts', async (importOriginal) => {
  const original = await importOriginal<typeof import('../src/webgpu/config.ts')>();
  return {
    ...original,
    // Of all row tiles, however few rows there are.
    chooseDecodeConfig: (...[problem, , decodeTraits]: Parameters<typeof original.chooseDecodeConfig>) => {
      const choice = original.chooseDecodeConfig(problem, 512, decodeTraits, preferred.key);
      expect(choice.config!.key).toBe(preferred.key);
      return choice;
    },
  };
});

// The self-test's shader is another text; that the backend heeds it is tested in tier.test.ts.
vi.mock('../src/webgpu/matrix-test.ts', async (importOriginal) => ({
  ...(await importOriginal<typeof import('../src/webgpu/matrix-test.ts')>()),
  testMatrices: async () => ({ syntax: preferred.syntax, subgroupSize: 4 }),
}));

/** SwiftShader with emulated matrices: kernels for them are rewritten on their way to the compiler, by `alter` first. */
async function emulatingDevice(alter = (code: string): string => code): Promise<GPUDevice> {
  const adapter = (await (await softwareGpu()).requestAdapter())!;
  const device = await adapter.requestDevice({
    requiredFeatures: ['subgroups'], requiredLimits: { maxComputeWorkgroupStorageSize: adapter.limits.maxComputeWorkgroupStorageSize },
  });
  const compile = device.createShaderModule.bind(device);
  device.createShaderModule = (descriptor) => compile({ ...descriptor, code: descriptor.code.includes('subgroup_matrix') ? emulateMatrices(alter(descriptor.code)) : descriptor.code });
  return device;
}

// Eight emulated subgroups have 32 threads, which share 128 columns of O.
describe.each<[string, number, MatrixSyntax?]>([
  ['matrix 16x16 4/4 scores', 64],
  ['matrix 16x16 4/4 scores', 64, 'old'],
  ['matrix 16x16 4/4 scores fixed', 64],
  ['matrix 32x32 8/2x2 scores', 128],
  ['matrix 32x32 8/2x2 scored fixed', 128],
  ['matrix 32x16 8/4 scored fixed', 128],
  ['matrix 32x32 8/2x2 scores split fixed', 128],
  ['matrix 32x16 8/4 2 tiles ahead scored', 128],
])('the kernel, with emulated matrices: %s, %i columns, %s', { timeout: 600_000 }, (key, dV, syntax = 'new') => {
  const dQk = dV + 64;
  let mla: Mla;
  let device: GPUDevice;
  const shapes = MATRIX_SHAPES as MatrixShape[];
  const usual = shapes.length;
  beforeAll(async () => {
    // Eight emulated subgroups are too few threads for 64 rows. How Q is split, and how two tiles take turns, does not depend on them.
    shapes.push({ rows: 32, tokens: 32, subgroups: 8, tiles: 1, fetch: 'scores', splitQ: true, fixed: true });
    shapes.push({ rows: 32, tokens: 16, subgroups: 8, tiles: 2, fetch: 'scored', splitQ: false, fixed: false });
    Object.assign(preferred, { key, syntax });
    device = await emulatingDevice();
    mla = await createMla({ backend: 'webgpu', device, tier: 'matrix', tune: 'off' });
  });
  afterAll(async () => {
    shapes.length = usual;
    await mla?.destroy();
    device?.destroy();
  });

  const narrow = { dV, rope: 64 } as const;
  const cases: CaseOptions[] = [
    { ...narrow, b: 3, sQ: 2, sK: 0, hQ: 20, seqlens: [300, 0, 71], causal: true },
    { ...narrow, b: 2, sQ: 4, sK: 140, hQ: 12, hKv: 3, causal: true, ragged: true },
    { ...narrow, b: 1, sQ: 1, sK: 0, hQ: 16, seqlens: [1100], softmaxScale: 30 },
    { ...narrow, b: 2, sQ: 2, sK: 140, hQ: 5, dtype: 'f16', causal: true },
    // Query tokens that see nothing, beside some that do.
    { ...narrow, b: 3, sQ: 4, sK: 0, hQ: 3, seqlens: [2, 1, 70], causal: true },
  ];
  // O leaves in several rounds, or several matrices of a subgroup in one.
  if (key === 'matrix 16x16 4/4 scores' || key.includes('2 tiles')) cases.push({ dV: 256, rope: 64, b: 2, sQ: 2, sK: 0, hQ: 9, seqlens: [70, 33], causal: true });
  // A branch a subgroup takes a software adapter's compiler most of this suite's time, for each type and number of KV heads. Neither where
  // products find their operands nor when rows are converted depends on the number of heads.
  const wanted = key.endsWith('fixed') ? cases.filter(({ hKv = 1 }) => hKv === 1) : cases;
  // Lengths, tokens a block, slots, what a sequence costs, how many partial results there are.
  test.each([
    ['none is split', [190, 380, 128, 250, 512, 320, 256], 64, 4, 0, 0],
    ['some are', [218, 191, 252, 136, 111, 224, 283], 32, 5, 40, 4],
  ] as const)('sequences in another order, of which %s', async (_, seqlens, blockSize, slots, sequenceTokens, partials) => {
    const c = makeCase({ ...narrow, b: seqlens.length, sQ: 1, sK: 0, hQ: 16, seqlens: [...seqlens], blockSize });
    const call = { cacheSeqlens: c.cacheSeqlens, numQTokensPerHeadK: c.hQ, numHeadsK: 1, blockSize };
    const metadata = getMlaMetadata(call, { ...mla.info.schedule, slots, minTokensPerPart: 64, sequenceTokens });
    expect([...metadata.order]).not.toEqual([...metadata.order.keys()]);
    const splits = seqlens.map((_, i) => metadata.numSplits[i + 1]! - metadata.numSplits[i]!);
    expect(splits.reduce((sum, n) => sum + (n > 1 ? n : 0), 0)).toBe(partials);
    expectRight(c, await run(mla, c, { metadata }));
  });

  test.each(wanted.map((options): [string, CaseOptions] => [JSON.stringify(options), options]))('%s', async (_, options) => {
    expect(mla.info.tier).toBe('matrix');
    const c = makeCase(options);
    expectRight(c, await run(mla, c));
  });

  range(() => mla, { ...narrow, b: 1, sQ: 1, sK: 0, hQ: 16, seqlens: [100] });

  // The last key is seen by the last query token only: some rows of a workgroup, or all of one and none of another.
  test.each([[0, 4], [2, 4], [5, 4], [2, 32]])('NaN in number %i of a key that one query token sees, %i heads', async (column, hQ) => {
    const c = makeCase({ ...narrow, b: 1, sQ: 2, sK: 0, hQ, seqlens: [70], causal: true });
    c.kvCache[(c.blockTable[1]! * c.blockSize + 5) * dQk + column] = 0x7fc0;
    const got = await run(mla, c);
    expectRight(c, got);
    expect(got.out.subarray(0, hQ * dV).every(Number.isFinite)).toBe(true);
    expect(got.out.subarray(hQ * dV).every(Number.isNaN)).toBe(true);
  });

  // Of the first row far above all before, in a step that all rows see whole.
  test('the highest score at the very end', async () => {
    const softmaxScale = 40;
    const c = makeCase({ ...narrow, b: 1, sQ: 1, sK: 0, hQ: 16, seqlens: [128], softmaxScale });
    const q = c.q.subarray(0, dQk);
    c.kvCache.set(q, (c.blockTable[1]! * c.blockSize + 63) * dQk);
    expectRight(c, await run(mla, c));
    // That it is: next to nothing is left of the others.
    const highest = softmaxScale * q.reduce((sum, bits) => sum + fromBf16(bits) ** 2, 0);
    expect(highest).toBeGreaterThan(40);
    expect(Math.abs(oracle(c).lse[0]! - highest)).toBeLessThan(1e-3);
  });
});

describe('rescaling of O', () => {
  let mla: Mla;
  let device: GPUDevice;
  beforeAll(async () => {
    Object.assign(preferred, { key: 'matrix 16x16 4/4 scores', syntax: 'new' });
    device = await emulatingDevice((code) => {
      const never = code.replace('if ((moved & RESCALE) != 0u) {', 'if (false) {');
      expect(never).not.toBe(code);
      return never;
    });
    mla = await createMla({ backend: 'webgpu', device, tier: 'matrix', tune: 'off' });
  });
  afterAll(async () => {
    await mla?.destroy();
    device?.destroy();
  });

  // In base 2, the score of the last key above those before.
  test.each([[6, 'left out'], [20, 'needed']])('is lazy: with a maximum that rises by %i at the end it is %s', async (rise, what) => {
    const options: CaseOptions = { dV: 64, rope: 64, b: 1, sQ: 1, sK: 0, hQ: 1, seqlens: [128] };
    const { q } = makeCase(options);
    const softmaxScale = (rise * Math.LN2) / q.reduce((sum, bits) => sum + fromBf16(bits) ** 2, 0);
    const c = makeCase({ ...options, softmaxScale });
    const last = (c.blockTable[1]! * c.blockSize + 63) * c.dQk;
    const { lse } = oracle(c);
    c.kvCache.set(c.q, last);
    // The one before knows the others' scores only: 128 of them, next to 0.
    expect(Math.abs(lse[0]! / Math.LN2 - 7)).toBeLessThan(2);
    const fault = compareDecode(c, oracle(c), await run(mla, c));
    if (what === 'needed') expect(fault).toMatch(/out: /);
    else expect(fault).toBeUndefined();
  });
});
