/** The choice of a kernel tier: what the probe makes of devices that lack something, lie or fail; and the real one here. */
import { describe, expect, test } from 'vitest';
import { createMla } from '../src/node.ts';
import { GpuContext } from '../src/webgpu/device.ts';
import { expectedProduct, selfTestSource as matrixSource } from '../src/webgpu/matrix-test.ts';
import { expectedSums, judge, refuseSizes, selfTestSource as subgroupSource, testSubgroups } from '../src/webgpu/subgroup-test.ts';
import { TIERS, chooseTier, type Tier } from '../src/webgpu/tier.ts';
import { expectRefusal } from './check.ts';
import { FakeBuffers, fakeGpu, type FakeGpu } from './fake-gpu.ts';
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
      return new Uint32Array(Float32Array.from(expectedProduct()).buffer);
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
    const { tier, notes } = await choose({ ...rest, run: (code) => (code.includes('subgroup_matrix') ? new Uint32Array(256) : run(code)) });
    expect(tier).toBe('subgroup');
    expect(notes.join()).toMatch(/matrix: new syntax: 0 where -?\d+ is right .*; old syntax: 0 where/);
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
