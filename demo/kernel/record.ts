/** One run in figures: what is copied as JSON and carried by links. Pure. */
import type { BackendName } from '../../src/mla.ts';
import type { Batch } from './batch.ts';
import type { Ceilings } from './probe.ts';
import { ratesOf } from './rates.ts';
import type { DecodeReport } from './session.ts';

export interface RunRecord extends Batch {
  readonly device: string;
  readonly backend: BackendName;
  readonly tier?: string;
  readonly software: boolean;
  /** Milliseconds of a call, median; 0 where the clock was too coarse. */
  readonly ms: number;
  readonly source: 'device' | 'wall';
  readonly runs: number;
  readonly calls: number;
  readonly GBps?: number;
  readonly tflops?: number;
  readonly check: { readonly pass: boolean; readonly rows: number; readonly outError: number; readonly lseError: number; readonly cosine: number };
  /** What the adapter was measured to do at best. */
  readonly ceilings?: Ceilings;
}

export function recordOf({ info, step, lengths, cost, timing, check }: DecodeReport, ceilings?: Ceilings): RunRecord {
  const rates = ratesOf(cost, timing.ms);
  const { heads, sQ, causal } = step;
  const { pass, rows, outError, lseError, cosine } = check;
  return {
    device: info.device, backend: info.backend, ...(info.tier !== undefined && { tier: info.tier }), software: info.software,
    lengths: [...lengths], heads, sQ, causal,
    ...timing,
    ...(rates && { GBps: rates.gbps, tflops: rates.tflops }),
    check: { pass, rows, outError, lseError, cosine },
    ...(ceilings && { ceilings }),
  };
}

export function sameBatch(a: Batch, b: Batch): boolean {
  return a.heads === b.heads && a.sQ === b.sQ && a.causal === b.causal && a.lengths.join() === b.lengths.join();
}
