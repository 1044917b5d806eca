/** Opens a session on what the visitor chose; a tier that does not work here gives way to the best that does. */
import type { BackendName } from '../../src/mla.ts';
import { MlaError } from '../../src/errors.ts';
import type { Tier } from '../../src/webgpu/tier.ts';
import { Session } from './session.ts';
import { noteOf } from './tiers.ts';

/** As the form says it. */
export interface Choice {
  readonly backend: BackendName | 'auto';
  readonly tier: Tier | 'auto';
}

export interface Opened {
  readonly session: Session;
  /** Why the tier asked for gave way. */
  readonly gaveWay?: string;
}

/** @throws MlaError backend-unavailable */
export async function openSession({ backend, tier }: Choice, onLost: (session: Session, message: string) => void): Promise<Opened> {
  if (tier === 'auto' || backend === 'cpu') return { session: await Session.open({ backend }, onLost) };
  try {
    return { session: await Session.open({ backend: 'webgpu', tier }, onLost) };
  } catch (error) {
    if (!(error instanceof MlaError) || error.code !== 'backend-unavailable') throw error;
    const session = await Session.open({ backend }, onLost);
    // Without WebGPU there is more to say than that a tier is missing, and the page says it.
    if (session.info.backend !== 'webgpu') return { session };
    return { session, gaveWay: noteOf(tier, session.info) ?? error.message };
  }
}
