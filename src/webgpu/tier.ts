/**
 * Kernel tiers: families of kernels with the same results, each faster than the one before and asking more of the device.
 *
 * Whether a device is up to a tier is found out, not looked up: it must have the features and pass a numeric self-test. A
 * tier that fails gives way to the next, and why is kept.
 */
import { MlaError, describe } from '../errors.ts';
import type { GpuContext } from './device.ts';
import { testMatrices, type MatrixTraits } from './matrix-test.ts';
import { testSubgroups, type SubgroupSize } from './subgroup-test.ts';

/** `base`: core WebGPU. `subgroup`: sums by subgroup shuffles. `matrix`: products by subgroup matrices of f16. */
export type Tier = 'base' | 'subgroup' | 'matrix';

/** All tiers, best first. */
export const TIERS: readonly Tier[] = ['matrix', 'subgroup', 'base'];

/** The tier in use and what its self-test found. */
export interface TierChoice {
  readonly tier: Tier;
  readonly subgroupSize: SubgroupSize | undefined;
  readonly matrix: MatrixTraits | undefined;
  /** Why each better tier was passed over, `tier: reason`. */
  readonly notes: readonly string[];
}

/** @throws MlaError invalid-argument */
export function checkTier(tier: unknown): asserts tier is Tier | undefined {
  if (tier !== undefined && !TIERS.includes(tier as Tier)) {
    throw new MlaError('invalid-argument', 'no such kernel tier', { argument: 'tier', expected: [...TIERS].reverse().join(', '), got: describe(tier) });
  }
}

/**
 * The best tier that works on this device, or the one asked for.
 * @param onProbe hears of each tier before it is tried
 * @throws MlaError backend-unavailable (the tier asked for does not work here), device-lost, out-of-memory
 */
export async function chooseTier(gpu: GpuContext, wanted?: Tier, offered: readonly Tier[] = TIERS, onProbe?: (tier: Tier) => void): Promise<TierChoice> {
  const notes: string[] = [];
  const probe = prober(gpu);
  for (const tier of wanted === undefined ? TIERS.filter((t) => offered.includes(t)) : [wanted]) {
    onProbe?.(tier);
    const found = offered.includes(tier) ? await probe[tier]() : 'this version has no kernels of it';
    if (typeof found !== 'string') return { tier, subgroupSize: undefined, matrix: undefined, ...found, notes };
    notes.push(`${tier}: ${found}`);
  }
  throw new MlaError('backend-unavailable', 'the kernel tier asked for does not work on this device', {
    argument: 'tier', expected: 'a tier that works', got: notes.join('; '), fix: 'Leave tier out to take the best that works',
  });
}

/** The probes of one device: what a tier's self-tests found, or why it cannot work. */
function prober(gpu: GpuContext): Record<Tier, () => Promise<Partial<TierChoice> | string>> {
  let tested: Promise<SubgroupSize | string> | undefined;
  const subgroups = (): Promise<SubgroupSize | string> => (tested ??= testSubgroups(gpu));
  return {
    base: async () => ({}),
    subgroup: async () => {
      const subgroupSize = await subgroups();
      return typeof subgroupSize === 'string' ? subgroupSize : { subgroupSize };
    },
    matrix: async () => {
      const matrix = await testMatrices(gpu);
      if (typeof matrix === 'string') return matrix;
      const subgroupSize = await subgroups();
      return typeof subgroupSize === 'string' ? subgroupSize : { subgroupSize, matrix };
    },
  };
}
