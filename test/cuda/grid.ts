/** FlashMLA's whole grid on a Hopper GPU, in several files, so that several cores make the data and run the oracle. */
import { afterAll, beforeAll, describe } from 'vitest';
import type { Mla } from '../../src/mla.ts';
import { createMla } from '../../src/node.ts';
import { flashMlaGrid } from '../case-lists.ts';
import { againstOracle } from '../conformance/decode.ts';

/** About 150 ms of the oracle a case, and one sequence at least. */
export const ORACLE_FLOPS = 2e8;

/** The points of a batch size, and of one number of query tokens where given. */
export function gridOf(b: number, sQ?: number): void {
  describe(`cuda, the whole grid, batch ${b}`, () => {
    let mla: Mla | undefined;
    beforeAll(async () => {
      mla = await createMla({ backend: 'cuda' });
    });
    afterAll(() => mla?.destroy());
    againstOracle(() => mla!, flashMlaGrid.filter((options) => options.b === b && (sQ === undefined || options.sQ === sQ)), ORACLE_FLOPS);
  });
}
