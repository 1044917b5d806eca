/** Runs batches on one kernel tier after another, each tier in a session of its own beside the page's. */
import { MlaError } from '../../src/errors.ts';
import type { Tier } from '../../src/webgpu/tier.ts';
import type { Batch } from './batch.ts';
import { Session, type DecodeOptions, type DecodeReport, type Progress } from './session.ts';

/** What became of one batch on one tier. */
export interface TierRun {
  readonly tier: Tier;
  readonly batch: Batch;
  /** Absent when it did not run: `fault` says why. */
  readonly report?: DecodeReport;
  readonly fault?: string;
}

export interface TierRunOptions extends DecodeOptions {
  readonly progress: (p: Progress) => void;
  /** Ends the runs at once; the batch under way yields nothing. */
  readonly signal: AbortSignal;
}

/** Yields each batch's outcome as it comes. One that fails does not keep the others from running, unless it took the device. */
export async function* runTier(tier: Tier, batches: readonly Batch[], { progress, signal, ...options }: TierRunOptions): AsyncGenerator<TierRun> {
  progress({ words: `Opening the ${tier} tier` });
  let session: Session;
  try {
    session = await Session.open({ backend: 'webgpu', tier }, () => undefined);
  } catch (error) {
    yield* batches.map((batch) => ({ tier, batch, fault: (error as Error).message }));
    return;
  }
  // Ending a session leaves its calls without an answer.
  const stopped = new Promise<never>((_, reject) => signal.addEventListener('abort', () => reject(new Error('stopped'))));
  stopped.catch(() => undefined);
  const decode = async (batch: Batch): Promise<DecodeReport> => {
    await session.fill(batch, progress);
    return session.decode(batch, progress, options);
  };
  try {
    for (const batch of batches) {
      if (signal.aborted) return;
      try {
        yield { tier, batch, report: await Promise.race([decode(batch), stopped]) };
      } catch (error) {
        if (signal.aborted) return;
        yield { tier, batch, fault: (error as Error).message };
        if (error instanceof MlaError && error.code === 'device-lost') return;
      }
    }
  } finally {
    await session.close();
  }
}
