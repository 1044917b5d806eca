/** FlashMLA's whole grid on a Hopper GPU, a batch size a file, so that the oracle has a core for each. */
import { afterAll, beforeAll, describe } from 'vitest';
import type { Mla } from '../../src/mla.ts';
import { createMla } from '../../src/node.ts';
import { flashMlaGrid } from '../case-lists.ts';
import { againstOracle } from '../conformance/decode.ts';

/** About 150 ms of the oracle a case, and one sequence at least. */
export const ORACLE_FLOPS = 2e8;

export function gridOf(b: number): void {
  describe(`cuda, the whole grid, batch ${b}`, () => {
    let mla: Mla | undefined;
    beforeAll(async () => {
      mla = await createMla({ backend: 'cuda' });
    });
    afterAll(() => mla?.destroy());
    againstOracle(() => mla!, flashMlaGrid.filter((options) => options.b === b), ORACLE_FLOPS);
  });
}
