/** The choice of a kernel tier: what the probe makes of devices that lack something, lie or fail; and the real one here. */
import { afterAll, beforeAll, describe, expect, test } from 'vitest';
import { createMla } from '../src/node.ts';
import { GpuContext } from '../src/webgpu/device.ts';
import type { MatrixSyntax } from '../src/webgpu/matrix-syntax.ts';
import { rightAnswers, selfTestSource as matrixSource, testMatrices, type MatrixTraits } from '../src/webgpu/matrix-test.ts';
import { expectedSums, judge, refuseSizes, selfTestSource as subgroupSource, testSubgroups } from '../src/webgpu/subgroup-test.ts';
import { TIERS, chooseTier, type Tier } from '../src/webgpu/tier.ts';
import { altered } from './altered.ts';
import { expectRefusal } from './check.ts';
import { FakeBuffers, fakeGpu, type FakeGpu } from './fake-gpu.ts';
import { emulateMatrices } from './matrix-emulation.ts';
import { compileError } from './null-gpu.ts';
import { softwareGpu } from './software-adapter.ts';

const F16_TO_F32 = { componentType: 'f16', resultComponentType: 'f32', M: 16, N: 16, K: 16 };

function constant(code: string, name: string): number {
  return Number(new RegExp(`const ${name} = (\\d+)u`).exec(code)![1]);
}

/** What the subgroup self-test writes on a device with subgroups of `size`. */
function subgroupWords(threads: number, width: number, size: number): Uint32Array {
  const sums = new Uint32Array(Float32Array.from(expectedSums(threads, width)).buffer);
  return Uint32Array.from(Array.from({ length: threads }, (_, t) => [size, t % size, sums[t]!, Number(Math.floor(t / size) === Math.floor((threads - 1) / size))]).flat());
}

/** A device on which everything works, with subgroups of `size` in kernels. */
function good(size = 32, syntax: 'new' | 'old' = 'new'): FakeGpu & { run: (code: string) => Uint32Array | string } {
  return {
    features: ['subgroups', 'shader-f16', 'chromium-experimental-subgroup-matrix'], subgroups: [size, size], matrixConfigs: [F16_TO_F32],
    run: (code) => {
      if (!code.includes('subgroup_matrix')) return subgroupWords(constant(code, 'THREADS'), constant(code, 'WIDTH'), size);
      if (code.includes('row_major') !== (syntax === 'new')) return 'Error while parsing WGSL: no matching call\n8 candidate functions: ...';
      return new Uint32Array(Float32Array.from(rightAnswers()).buffer);
    },
  };
}

/** The choice among all tiers, and that the probe left nothing behind. */
async function choose(fake: FakeGpu, wanted?: Tier): Promise<Awaited<ReturnType<typeof chooseTier>>> {
  const buffers = new FakeBuffers();
  try {
    return await chooseTier(fakeGpu(fake, buffers), wanted, TIERS);
  } finally {
    expect(buffers.alive).toBe(0);
  }
}

describe('the best tier that works', () => {
  test('matrix, in the syntax that the compiler takes', async () => {
    expect(await choose(good())).toEqual({ tier: 'matrix', subgroupSize: { min: 32, max: 32 }, matrix: { syntax: 'new', subgroupSize: 32 }, notes: [] });
    expect((await choose(good(32, 'old'))).matrix).toEqual({ syntax: 'old', subgroupSize: 32 });
  });

  test('base where there is nothing', async () => {
    const { tier, notes } = await choose({});
    expect(tier).toBe('base');
    expect(notes).toEqual(['matrix: no feature chromium-experimental-subgroup-matrix, shader-f16, subgroups', 'subgroup: no feature subgroups']);
  });

  test.each([
    ['no f16', { features: ['subgroups', 'chromium-experimental-subgroup-matrix'] }, 'subgroup', /matrix: no feature shader-f16/],
    ['no such matrices', { matrixConfigs: [{ ...F16_TO_F32, resultComponentType: 'f16' }] }, 'subgroup', /16 x 16 x 16/],
    ['uneven subgroups', { subgroups: [16, 32] as const }, 'subgroup', /subgroups of 16 to 32 lanes, one size is needed/],
    ['sizes unknown', { subgroups: undefined }, 'base', /subgroup: the adapter does not say/],
    ['tiny subgroups', { subgroups: [1, 32] as const }, 'base', /subgroup: subgroups may be as small as 1/],
  ])('%s', async (_, change, tier, why) => {
    const { subgroups, ...rest } = { ...good(32), ...change };
    const choice = await choose({ ...rest, ...(subgroups && { subgroups }) });
    expect(choice.tier).toBe(tier);
    expect(choice.notes.join('\n')).toMatch(why);
  });

  test('wrong products', async () => {
    const { run, ...rest } = good();
    const { tier, notes } = await choose({ ...rest, run: (code) => (code.includes('subgroup_matrix') ? new Uint32Array(rightAnswers().length) : run(code)) });
    expect(tier).toBe('subgroup');
    expect(notes.join()).toMatch(/matrix: new syntax: a row-major load, .* came out wrong: 0 where -?\d+ is right .*; old syntax: a row-major load, .* came out wrong: 0 where/);
  });

  test('wrong sums', async () => {
    const { run, ...rest } = good();
    const { tier, notes } = await choose({ ...rest, run: (code) => {
      const words = run(code);
      if (typeof words !== 'string' && !code.includes('subgroup_matrix')) words[4 * 7 + 2]!++;
      return words;
    } });
    expect(tier).toBe('base');
    expect(notes.join()).toMatch(/subgroup: self-test with 32 threads: wrong sums: .* \(number 7\)/);
  });

  test('results that cannot be read', async () => {
    const { tier, notes } = await choose({ ...good(), unmappable: true });
    expect(tier).toBe('base');
    expect(notes.join('\n')).toMatch(/matrix: .*no mapping[^]*subgroup: .*no mapping/);
  });

  test('a compiler that refuses: one line of what it says', async () => {
    const { tier, notes } = await choose({ ...good(), run: () => `no\nsuch\n${'thing '.repeat(100)}` });
    expect(tier).toBe('base');
    expect(notes).toEqual([
      'matrix: new syntax: matrix self-test, new syntax: no; old syntax: matrix self-test, old syntax: no',
      'subgroup: subgroup self-test, 32 threads: no',
    ]);
  });
});

describe('a tier asked for', () => {
  test('is taken, though a better one works', async () => {
    expect(await choose(good(), 'base')).toMatchObject({ tier: 'base', notes: [] });
    expect(await choose(good(), 'subgroup')).toMatchObject({ tier: 'subgroup', matrix: undefined });
  });

  test('and does not work: says why', async () => {
    const error = await expectRefusal(() => choose({}, 'subgroup'), 'backend-unavailable', 'tier');
    expect(error.message).toContain('no feature subgroups');
  });

  test('of which there are no kernels', async () => {
    await expectRefusal(() => chooseTier(fakeGpu(good()), 'matrix', ['base']), 'backend-unavailable', 'tier');
  });

  test.each(['fast', 7, null])('%s is no tier', async (tier) => {
    await expectRefusal(async () => createMla({ backend: 'webgpu', gpu: await softwareGpu(), tier: tier as Tier }), 'invalid-argument', 'tier');
    // Whatever the backend.
    await expectRefusal(() => createMla({ tier: tier as Tier }), 'invalid-argument', 'tier');
  });
});

test('a device lost in the probe is a typed error', async () => {
  await expectRefusal(() => choose({ ...good(), lost: true }), 'device-lost');
});

describe('the subgroup self-test', () => {
  test.each([[4, 128], [8, 32], [32, 32], [64, 64]])('takes sizes from %i to %i', (min, max) => {
    expect(refuseSizes({ min, max })).toBeUndefined();
    // Whichever size of these a kernel gets.
    for (let size = min; size <= max; size *= 2) expect(judge(subgroupWords(256, min, size), { min, max })).toBeUndefined();
  });

  test.each([[2, 64], [6, 12], [32, 16]])('refuses sizes from %i to %i', (min, max) => {
    expect(refuseSizes({ min, max })).toBeDefined();
  });

  test('sees sizes that were not promised, mixed sizes and scattered lanes', () => {
    const size = { min: 8, max: 32 };
    expect(judge(subgroupWords(64, 8, 64), size)).toMatch(/a subgroup of 64/);
    const mixed = subgroupWords(64, 8, 16);
    mixed[4 * 40] = 32;
    expect(judge(mixed, size)).toMatch(/several sizes/);
    const scattered = subgroupWords(64, 8, 16);
    scattered[4 * 40 + 1] = 7;
    expect(judge(scattered, size)).toMatch(/not neighbouring/);
    const deaf = subgroupWords(64, 8, 16);
    deaf[4 * 50 + 3] = 0;
    expect(judge(deaf, size)).toMatch(/told wrong .* \(number 50\)/);
  });
});

/** Replaces in the text of emulated matrices (matrix-emulation.ts): what a driver might do wrong. */
type Fault = readonly (readonly [what: string | RegExp, by: string])[];

function faulty(code: string, fault: Fault): string {
  return fault.reduce((text, [what, by]) => {
    const changed = text.replace(what, by);
    if (changed === text) throw new Error(`nothing to replace: ${what}`);
    return changed;
  }, code);
}

/** What a load or a store named `name` is told, and the beginning of its body. */
const told = (name: string): RegExp => new RegExp(`(?<=fn ${name}\\((?:m: u32, )?)offset: u32, (m: u32, )?stride: u32\\) \\{`);
const fromStart = (name: string, places = '0xffffffffu'): Fault => [[told(name), `place: u32, $1stride: u32) { let offset = select(place, 0u, place < ${places});`]];
/** Rows of `padded` elements, in either syntax, as if they had none but `dense`. */
const unpadded = (name: string, padded: number, dense: number): Fault =>
  [[told(name), `offset: u32, $1far: u32) { let stride = select(far, far / ${padded}u * ${dense}u, far % ${padded}u == 0u);`]];
const conversion = (by: string): Fault => [[/\bpack2x16float\(/g, 'converted('], [/$/, `\nfn converted(x: vec2<f32>) -> u32 { return pack2x16float(${by}); }\n`]];
const operand = (by: string): Fault =>
  [['fn kv_tile_half(at: u32) -> f32 {', `fn kv_tile_half(at: u32) -> f32 { let x = true_kv_tile_half(at); return ${by}; }\nfn true_kv_tile_half(at: u32) -> f32 {`]];

describe('the matrix self-test, with emulated matrices', () => {
  let device: GPUDevice;
  beforeAll(async () => {
    device = await (await (await softwareGpu()).requestAdapter())!.requestDevice({ requiredFeatures: ['subgroups'] });
  });
  afterAll(() => device.destroy());

  /** What it finds on a device whose compiler takes `syntaxes` and whose driver has a fault. */
  function found(fault: Fault, syntaxes: readonly MatrixSyntax[]): Promise<MatrixTraits | string> {
    const { features, matrixConfigs: subgroupMatrixConfigs } = good();
    const emulating = altered(device, {
      features: new Set(features) as ReadonlySet<string> as GPUSupportedFeatures,
      createShaderModule: ({ code }) => {
        const taken = syntaxes.includes(code.includes('row_major') ? 'new' : 'old');
        return device.createShaderModule({ code: taken ? faulty(emulateMatrices(code), fault) : 'not taken' });
      },
    });
    return testMatrices(new GpuContext(emulating, false, { subgroupMinSize: 4, subgroupMaxSize: 4, subgroupMatrixConfigs } as unknown as GPUAdapterInfo));
  }

  test.each(['new', 'old'] as const)('all is right in the %s syntax', async (syntax) => {
    expect(await found([], [syntax])).toEqual({ syntax, subgroupSize: 4 });
  });

  // What rests on what is wrong comes out wrong too. In both syntaxes where these have texts of their own.
  const both = ['new', 'old'] as const;
  test.each<[string, Fault, string, (readonly MatrixSyntax[])?]>([
    ['a row-major load that heeds no padding', unpadded('load_row_kv_tile', 5, 4), 'a row-major load, .*', both],
    ['a row-major load from where its array begins', fromStart('load_row_kv_tile'), 'a row-major load, .*'],
    ['row-major for column-major', [[/(?<!fn )\bload_col_kv_tile\(/g, 'load_row_kv_tile(']], 'a column-major load, a product of infinity or NaN', both],
    ['the same of a place that is a constant', [['load_col_kv_tile(fixed_k,', 'load_row_kv_tile(fixed_k,']], 'a column-major load'],
    ['a column-major load that heeds no padding', unpadded('load_col_kv_tile', 5, 4), 'a column-major load, a product of infinity or NaN'],
    ['a column-major load from where its array begins', fromStart('load_col_kv_tile'), 'a column-major load, a product of infinity or NaN'],
    ['a load of pairs that heeds no padding', unpadded('load_row_probs', 10, 8), 'a load of probabilities', both],
    ['a load of pairs from where their array begins', fromStart('load_row_probs'), 'a load of probabilities'],
    ['sums that begin at zero', [['var sum = bank[c + i];', 'var sum = vec4<f32>();']], 'a sum of several products, a matrix made zero again, a sum loaded back'],
    ['zero once, not at each turn', [[/\bclear_matrix\(s\);/, 'if (turn == 0u) { clear_matrix(s); }']], 'a matrix made zero again'],
    ['a store that heeds no padding', unpadded('store_row_slices', 5, 4), 'a store, a sum loaded back', both],
    // To 64 as it should.
    ['a store to where its array begins', fromStart('store_row_slices', '64u'), 'a store, a sum loaded back'],
    ['no load of sums', [[/(?<!fn )\bload_row_slices\([^;]*;/, '']], 'a sum loaded back'],
    ['a load of sums that heeds no padding', unpadded('load_row_slices', 5, 4), 'a sum loaded back', both],
    ['a load of sums from where their array begins', fromStart('load_row_slices'), 'a sum loaded back'],
    ['operands loaded when they are multiplied', [[/( *let gone_q .*\n *let gone_v .*\n)(.*\n)/, '$2$1']], 'an operand overwritten once loaded', both],
    ['f16\'s largest number for infinity', conversion('clamp(x, vec2<f32>(-65504.0), vec2<f32>(65504.0))'), 'a number beyond f16\'s range'],
    ['the same where the compiler sees the number', [['let seen = 65536.0', 'let seen = 65504.0']], 'a number beyond f16\'s range'],
    ['the same where it does not', [[/let high = (.*);/, 'let high = min($1, vec4<f32>(65504.0));']], 'a number beyond f16\'s range'],
    ['small numbers converted to zero', conversion('select(x, vec2<f32>(), abs(x) < vec2<f32>(0x1p-14))'), 'a product of f16\'s smallest numbers'],
    ['small numbers multiplied as zero', operand('select(x, 0.0, abs(x) < 0x1p-14)'), 'a product of f16\'s smallest numbers'],
    ['infinity multiplied as the largest number', operand('clamp(x, -65504.0, 65504.0)'), 'a product of infinity or NaN'],
    ['zero times infinity is zero', [['x.x * bank[b + 4u * k]', 'select(x.x * bank[b + 4u * k], vec4<f32>(), x.x == 0.0)']], 'a product of infinity or NaN'],
    ['an event lost', [['atomicOr(&events, 4u);', '']], 'an event of another thread'],
    ['an event that stays', [['atomicAnd(&events, ~4u);', '']], 'an event of another thread'],
    ['a store among the keys that heeds no padding', unpadded('store_row_kv_tile', 5, 4), 'a store among the keys'],
    ['a store among the keys to where these begin', fromStart('store_row_kv_tile'), 'a store among the keys'],
  ])('%s', async (_, fault, what, syntaxes = ['new']) => {
    const reasons = String(await found(fault, syntaxes)).split('; ');
    expect(reasons.length).toBe(2);
    for (const [i, syntax] of syntaxes.entries()) expect(reasons[i]).toMatch(new RegExp(`^${syntax} syntax: ${what} came out wrong: \\S+ where \\S+ is right \\(number \\d+\\)$`));
  });
});

test.each([
  ['subgroup', subgroupSource(32, 4)], ['matrix, new syntax', matrixSource(32, 'new')], ['matrix, old syntax', matrixSource(32, 'old')],
])('the self-test compiles: %s', async (_, code) => {
  expect(await compileError(code)).toBeUndefined();
});

describe('the adapter here', () => {
  test('its best tier, and why no better one', async () => {
    const mla = await createMla({ backend: 'webgpu', gpu: await softwareGpu() });
    const { tier, tierNotes } = mla.info;
    await mla.destroy();
    expect(TIERS).toContain(tier);
    expect(tierNotes?.length).toBe(TIERS.indexOf(tier as Tier));
  });

  test('its subgroups pass the self-test where it has them', async () => {
    const device = await (await (await softwareGpu()).requestAdapter())!.requestDevice({ requiredFeatures: ['subgroups'] });
    expect(await testSubgroups(new GpuContext(device, true, device.adapterInfo))).toMatchObject({ min: expect.any(Number) });
    device.destroy();
  });
});
