/** What a command is given: where to write and how to get at backends. Tests give their own. */
import { MlaError } from '../errors.ts';
import type { BackendName, Mla } from '../mla.ts';
import type { BackendReport, TuneMode } from '../node.ts';
import type { TuneStore } from '../tune-store.ts';

export interface Output {
  write(text: string): unknown;
  readonly isTTY?: boolean | undefined;
  /** Width of a terminal, in characters. */
  readonly columns?: number | undefined;
  /** Nobody takes what is written any more: what is made for it alone need not be. */
  readonly refused?: boolean;
}

/** What `--backend`, `--tier` and `--dawn` ask for, and how the command wants configurations chosen. */
export interface MlaChoice {
  readonly backend: BackendName | 'auto';
  readonly tier?: string;
  readonly tune?: TuneMode;
  /** Toggles for Dawn, in place of the usual ones. */
  readonly dawn?: readonly string[];
}

export interface Context {
  readonly stdout: Output;
  readonly stderr: Output;
  createMla(choice: MlaChoice): Promise<Mla>;
  listBackends(): Promise<readonly BackendReport[]>;
  /** What tuning has found on this machine. */
  readonly tuneStore: TuneStore;
}

/** Makes what was asked for, and nothing less. @throws MlaError */
export async function openMla(context: Context, choice: MlaChoice): Promise<Mla> {
  const mla = await context.createMla(choice);
  const { backend, tier } = mla.info;
  if (choice.tier !== undefined && choice.tier !== tier) {
    await mla.destroy();
    throw new MlaError('backend-unavailable', `backend ${backend} has no such tier here`, { argument: '--tier', expected: tier ?? 'none', got: choice.tier });
  }
  return mla;
}
