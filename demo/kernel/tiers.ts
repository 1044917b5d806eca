/** Which kernel tiers work on this machine, as instances come to tell. Pure. */
import type { MlaInfo } from '../../src/mla.ts';
import { TIERS, type Tier } from '../../src/webgpu/tier.ts';

/** All tiers, the plainest first. */
export const TIERS_UP: readonly Tier[] = [...TIERS].reverse();

export function isTier(text: string | undefined): text is Tier {
  return (TIERS as readonly (string | undefined)[]).includes(text);
}

/** Why a tier was passed over, as an instance tells it. */
export function noteOf(tier: Tier, { tierNotes = [] }: Pick<MlaInfo, 'tierNotes'>): string | undefined {
  return tierNotes.find((text) => text.startsWith(`${tier}: `))?.slice(tier.length + 2);
}

export class TierBook {
  readonly #fails = new Map<Tier, string>();

  /** Notes why tiers were passed over. */
  learn(info: Pick<MlaInfo, 'tierNotes'>): void {
    for (const tier of TIERS) {
      const note = noteOf(tier, info);
      if (note !== undefined) this.#fails.set(tier, note);
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
