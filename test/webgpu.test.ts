/** The webgpu backend through Dawn: on SwiftShader, or with FLASHMLA_ADAPTER=system on this machine's GPU. */
import { afterAll, beforeAll, describe, expect, test } from 'vitest';
import { MlaError } from '../src/errors.ts';
import type { Mla } from '../src/mla.ts';
import { createMla } from '../src/node.ts';
import { TIERS, type Tier } from '../src/webgpu/tier.ts';
import { few, software } from './case-lists.ts';
import { conformance } from './conformance.ts';
import { againstOracle } from './conformance/decode.ts';
import { special } from './conformance/special.ts';
import { softwareGpu } from './software-adapter.ts';

const makeMla = async (tier?: Tier): Promise<Mla> => createMla({ backend: 'webgpu', gpu: await softwareGpu(), tune: 'off', ...(tier !== undefined && { tier }) });

conformance('webgpu', () => makeMla(), software);

/** The tiers here besides the one that is taken unasked. */
async function otherTiers(): Promise<Tier[]> {
  const works = async (tier: Tier): Promise<boolean> => {
    try {
      await (await makeMla(tier)).destroy();
      return true;
    } catch (error) {
      if (error instanceof MlaError && error.code === 'backend-unavailable') return false;
      throw error;
    }
  };
  const best = await makeMla();
  await best.destroy();
  const found: Tier[] = [];
  for (const tier of TIERS) if (tier !== best.info.tier && (await works(tier))) found.push(tier);
  return found;
}

describe.each(await otherTiers())('webgpu, %s tier', (tier) => {
  let mla: Mla | undefined;
  beforeAll(async () => {
    mla = await makeMla(tier);
  });
  afterAll(() => mla?.destroy());

  test('is in use', () => {
    expect(mla!.info).toMatchObject({ tier, tierNotes: [] });
  });
  againstOracle(() => mla!, few, Infinity);
  special(() => mla!);
});
