/** Which kernel tiers work on this machine, as instances come to tell. Pure. */
import type { MlaInfo } from '../../src/mla.ts';
import { TIERS, type Tier } from '../../src/webgpu/tier.ts';

/** All tiers, the plainest first. */
export const TIERS_UP: readonly Tier[] = [...TIERS].reverse();

export function isTier(text: string | undefined): text is Tier {
  return (TIERS as readonly (string | undefined)[]).includes(text);
}

export class TierBook {
  readonly #fails = new Map<Tier, string>();

  /** Notes why tiers were passed over. */
  learn({ tierNotes = [] }: Pick<MlaInfo, 'tierNotes'>): void {
    for (const tier of TIERS) {
      const note = tierNotes.find((text) => text.startsWith(`${tier}: `));
      if (note !== undefined) this.#fails.set(tier, note.slice(tier.length + 2));
    }
  }

  /** Why a tier does not work here, or undefined when nothing is known against it. */
  why(tier: Tier): string | undefined {
    return this.#fails.get(tier);
  }

  /** Tiers with nothing known against them, the plainest first. */
  get worthTrying(): Tier[] {
    return TIERS_UP.filter((tier) => !this.#fails.has(tier));
  }
}
