/**
 * The suite of every backend, at full size, on one kernel tier of this machine's GPU. It fails without a GPU. A tier that the GPU
 * lacks is skipped, with the reason; `FLASHMLA_TIER=name` runs that tier only and fails when it is lacking.
 */
import { afterAll, beforeAll, describe, expect, test } from 'vitest';
import { MlaError } from '../../src/errors.ts';
import type { Mla } from '../../src/mla.ts';
import { createMla } from '../../src/node.ts';
import type { Tier } from '../../src/webgpu/tier.ts';
import { flashMlaGrid, full, software } from '../case-lists.ts';
import type { CaseOptions } from '../cases.ts';
import { conformance } from '../conformance.ts';
import { againstOracle } from '../conformance/decode.ts';
import { softwareGpu } from '../software-adapter.ts';

/** About 150 ms of the oracle a case, and one sequence at least. */
const ORACLE_FLOPS = 2e8;

process.env['FLASHMLA_ADAPTER'] = 'system';

/** Shaders with bounds checks, as in a browser, or without, as Node has them where nothing is said: kernels are chosen by that. */
export type Checks = 'checked' | 'unchecked';

async function makeMla(tier: Tier, checks: Checks): Promise<Mla> {
  const mla = await createMla({ backend: 'webgpu', ...(checks === 'checked' && { gpu: await softwareGpu() }), tier, tune: 'off' });
  if (!mla.info.software) return mla;
  await mla.destroy();
  throw new Error(`no GPU here: the system's adapter is ${mla.info.device}`);
}

/** Declares `suite` where the tier is to be tested, and in any case what became of it. */
async function onTier(tier: Tier, checks: Checks, what: string, suite: () => void): Promise<void> {
  const forced = process.env['FLASHMLA_TIER'] || undefined;
  const name = `webgpu, ${tier} tier, ${checks}, ${what}`;
  if (forced !== undefined && forced !== tier) {
    test.skip(`${name}: FLASHMLA_TIER asks for ${forced}`, () => undefined);
    return;
  }
  let lacking: unknown;
  await makeMla(tier, checks).then(
    async (mla) => {
      console.log(`${name}: on ${mla.info.device}`);
      await mla.destroy();
    },
    (error: unknown) => {
      lacking = error;
    },
  );
  if (lacking === undefined) suite();
  else if (forced === undefined && lacking instanceof MlaError && lacking.code === 'backend-unavailable' && lacking.argument === 'tier') {
    console.log(`${name}: not run: ${lacking.message}`);
    test.skip(`${name}: ${lacking.message}`, () => undefined);
  } else {
    test(name, () => {
      throw lacking;
    });
  }
}

/** All but the grid, which has files of its own; the software list shows its axes in other mixtures. */
export async function suiteOn(tier: Tier, checks: Checks = 'checked'): Promise<void> {
  const cases = [...new Set([...software, ...full])].filter((options) => !flashMlaGrid.includes(options));
  await onTier(tier, checks, 'the suite', () => {
    conformance(`webgpu, ${tier} tier, ${checks}`, () => makeMla(tier, checks), cases, { oracleFlops: ORACLE_FLOPS });
    test('is the tier that was asked for', async () => {
      const mla = await makeMla(tier, checks);
      expect(mla.info).toMatchObject({ tier, tierNotes: [], software: false });
      await mla.destroy();
    });
  });
}

/** FlashMLA's whole grid, or the part of it that `only` takes. */
export async function gridOn(tier: Tier, what: string, only: (options: CaseOptions) => boolean, checks: Checks = 'checked'): Promise<void> {
  await onTier(tier, checks, `the grid, ${what}`, () => {
    describe(`webgpu, ${tier} tier, ${checks}, the grid, ${what}`, () => {
      let mla: Mla | undefined;
      beforeAll(async () => {
        mla = await makeMla(tier, checks);
      });
      afterAll(() => mla?.destroy());
      againstOracle(() => mla!, flashMlaGrid.filter(only), ORACLE_FLOPS);
    });
  });
}
