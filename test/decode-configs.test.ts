/**
 * Configurations of the decode kernel for GPUs, on the software adapter disguised as one: one a row tile, or with
 * FLASHMLA_CONFIGS=all every one that fits it, which takes minutes.
 */
import { describe, expect, test, vi } from 'vitest';
import { createMla } from '../src/node.ts';
import { decodeCandidates, scalarConfig, type DeviceTraits, type KernelLimits, type ScalarConfig } from '../src/webgpu/config.ts';
import { makeCase } from './cases.ts';
import { expectRight, run } from './check.ts';
import { softwareGpu } from './software-adapter.ts';

/** The configuration to take: one of the list's by its key, or one of the test's own. */
const preferred = vi.hoisted((): { key: string; own?: ScalarConfig | undefined } => ({ key: '' }));
vi.mock('../src/webgpu/config.ts', async (importOriginal) => {
  const original = await importOriginal<typeof import('../src/webgpu/config.ts')>();
  return {
    ...original,
    chooseDecodeConfig: (...[problem, rows, traits]: Parameters<typeof original.chooseDecodeConfig>) => {
      if (preferred.own) return { config: preferred.own, rejected: [] };
      const choice = original.chooseDecodeConfig(problem, rows, traits, preferred.key);
      expect(choice.config!.key).toBe(preferred.key);
      return choice;
    },
  };
});

// Narrow heads compile soonest; 24 words are fewer than some workgroups' slices take at once. Turns of the scores that are one, and halves of
// a unit, need more.
const NARROW = { dV: 32, rope: 16 } as const;
const WIDER = { dV: 128, rope: 64 } as const;
const batch = { b: 3, sQ: 2, sK: 0, hQ: 40, seqlens: [300, 0, 71], causal: true } as const;
const narrow = makeCase({ ...NARROW, ...batch });
const wider = makeCase({ ...WIDER, ...batch });

const adapter = (await (await softwareGpu()).requestAdapter())!;
const { subgroupMinSize: min, subgroupMaxSize: max } = adapter.info as GPUAdapterInfo & { subgroupMinSize: number; subgroupMaxSize: number };
const traits: Omit<DeviceTraits, 'tier'> = { limits: adapter.limits as unknown as KernelLimits, kind: 'gpu', vendor: 'nvidia', architecture: '', subgroupSize: { min, max } };

/** The adapter under another name. An adapter gives one device. */
async function disguised(): Promise<GPUAdapter> {
  const real = (await (await softwareGpu()).requestAdapter())!;
  const info = { vendor: 'nvidia', architecture: '', description: 'a GPU', subgroupMinSize: min, subgroupMaxSize: max };
  return new Proxy(real, {
    get: (target, name) => {
      if (name === 'info') return info;
      const value = Reflect.get(target, name, target) as unknown;
      return typeof value === 'function' ? value.bind(target) : value;
    },
  });
}

describe.each(['base', 'subgroup'] as const)('%s tier', (tier) => {
  const fitting = ({ dV, rope }: { dV: number; rope: number }): ScalarConfig[] =>
    decodeCandidates({ dQk: dV + rope, dV, dtype: 'bf16', blockSize: 64 }, 512, { ...traits, tier }).fits.filter((config) => config.tier !== 'matrix');
  const fits = fitting(NARROW);
  // Subgroups of 4 have fewer slices than those configurations; the lists are the same but for what the tier puts in place of shuffles.
  const inTurns = fitting(WIDER).filter(({ scoreTurns, wholeUnits, vec }) => scoreTurns > 1 || wholeUnits * vec * 2 < WIDER.dV + WIDER.rope);
  test('has configurations of its own here', () => {
    expect(fits.every((config) => config.tier === tier)).toBe(true);
    if (tier === 'base') expect(inTurns.length).toBeGreaterThan(0);
  });

  const tried = process.env['FLASHMLA_CONFIGS'] === 'all' ? fits : fits.filter((config, i) => fits.findIndex(({ rows }) => rows === config.rows) === i);
  test.each([...tried.map((config) => [config.key, narrow] as const), ...inTurns.map((config) => [config.key, wider] as const)])('%s', async (key, c) => {
    preferred.key = key;
    // An instance asks once for a class of calls.
    const mla = await createMla({ backend: 'webgpu', adapter: await disguised(), tier, tune: 'off' });
    expectRight(c, await run(mla, c));
    await mla.destroy();
  });
});

/** What the list has for subgroups of 32 only, as small as subgroups of 4 have room for. */
describe.runIf(min === 4)('a row’s maximum by shuffles', () => {
  test.each([
    ['over a tile’s quads', { rows: 16, tokens: 8, threads: 32, rowTile: 2, quadTile: 2, prefetch: true }],
    ['over tiles', { rows: 16, tokens: 8, threads: 64, rowTile: 1, prefetch: true }],
    ['over tiles, several rows a lane', { rows: 16, tokens: 16, threads: 16, rowTile: 4, prefetch: true }],
  ])('%s', async (_, candidate) => {
    const config = scalarConfig('subgroup', candidate, { dQk: NARROW.dV + NARROW.rope, dV: NARROW.dV, dtype: 'bf16' }, { subgroupSize: { min, max } });
    if (typeof config === 'string') throw new Error(config);
    expect(config.shuffleMax).toBe(true);
    preferred.own = config;
    try {
      const mla = await createMla({ backend: 'webgpu', adapter: await disguised(), tier: 'subgroup', tune: 'off' });
      expectRight(narrow, await run(mla, narrow));
      await mla.destroy();
    } finally {
      preferred.own = undefined;
    }
  });
});
