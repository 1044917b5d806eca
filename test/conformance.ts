/**
 * What every backend must do, declared as one vitest suite: `conformance('cpu', () => createMla(...), cases)`.
 * The parts are in conformance/; each takes the instance through a function, because it is made in `beforeAll`.
 */
import { afterAll, beforeAll, describe } from 'vitest';
import type { Mla } from '../src/mla.ts';
import type { CaseOptions } from './cases.ts';
import { badCacheInput } from './conformance/bad-cache-input.ts';
import { badDecodeInput } from './conformance/bad-decode-input.ts';
import { cache } from './conformance/cache.ts';
import { decode } from './conformance/decode.ts';
import { lifetime } from './conformance/lifetime.ts';
import { range, type Lack } from './conformance/range.ts';
import { special } from './conformance/special.ts';
import { tensors } from './conformance/tensors.ts';
import type { Heads } from './heads.ts';

export interface ConformanceOptions {
  /** Most operations that the oracle spends on one case; past it only some sequences are compared. Unlimited when absent. */
  readonly oracleFlops?: number;
  /** The one shape of heads that the backend decodes; every shape when absent. */
  readonly only?: Heads;
  /** What the backend is known not to do. */
  readonly lacks?: readonly Lack[];
}

export function conformance(
  name: string,
  makeMla: () => Promise<Mla>,
  cases: readonly CaseOptions[],
  { oracleFlops = Infinity, only, lacks }: ConformanceOptions = {},
): void {
  describe(name, () => {
    let mla: Mla | undefined;
    beforeAll(async () => {
      mla = await makeMla();
    });
    afterAll(() => mla?.destroy());
    const instance = (): Mla => {
      if (mla === undefined) throw new Error('the instance is made in beforeAll');
      return mla;
    };

    decode(instance, cases, oracleFlops, only);
    special(instance);
    range(instance, undefined, lacks);
    tensors(instance);
    cache(instance, only);
    badDecodeInput(instance, makeMla, only);
    badCacheInput(instance, makeMla);
    lifetime(makeMla, only);
  });
}
