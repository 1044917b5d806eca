/** Which configuration and how many slots: the order of trials and the choice among their times. No device is touched. */
import type { TuneChoice, TuneTrial } from '../mla.ts';

/** A later trial must be better by so much: times of one kernel differ by that from run to run. */
const MARGIN = 0.98;
/** A trial that takes so many times the best is not measured further. */
export const HOPELESS = 2;

export interface Search<Config> {
  readonly trials: readonly TuneTrial[];
  readonly chosen: TuneChoice | undefined;
  readonly config: Config | undefined;
}

export interface SearchSpace<Config> {
  /** Best guess first. */
  readonly configs: readonly Config[];
  /** Configurations that do not fit, `key: reason`. */
  readonly rejected: readonly string[];
  /** Slots to try, the best guess first. */
  readonly slots: readonly number[];
  /** Parts that slots come to: slots that come to the same are tried once. */
  parts(config: Config, slots: number): number;
  /** Milliseconds of a trial, or why it was given up. @param best the least so far */
  measure(config: Config, slots: number, best: number): Promise<number | string>;
}

/** Tries every configuration with the slots guessed, then the best one with the others. */
export async function search<Config extends { readonly key: string }>({ configs, rejected, slots, parts, measure }: SearchSpace<Config>): Promise<Search<Config>> {
  const trials: TuneTrial[] = [];
  let best: { config: Config; choice: TuneChoice } | undefined;
  const attempt = async (config: Config, count: number): Promise<void> => {
    const ms = await measure(config, count, best?.choice.ms ?? Infinity);
    if (typeof ms === 'string') {
      trials.push({ config: config.key, slots: count, refused: ms });
      return;
    }
    const choice = { config: config.key, slots: count, ms };
    trials.push(choice);
    if (!best || ms < best.choice.ms * MARGIN) best = { config, choice };
  };
  const [guess, ...others] = slots as [number, ...number[]];
  for (const config of configs) await attempt(config, guess);
  const found = best?.config;
  const seen = new Set(found && [parts(found, guess)]);
  for (const count of found ? others : []) {
    if (seen.has(parts(found!, count))) continue;
    seen.add(parts(found!, count));
    await attempt(found!, count);
  }
  for (const line of rejected) {
    const colon = line.indexOf(': ');
    trials.push({ config: line.slice(0, colon), refused: line.slice(colon + 2) });
  }
  return { trials, chosen: best?.choice, config: best?.config };
}

/** Slots worth trying around the guess, which comes first: devices of one kind differ in size many times over. */
export function slotLadder(guess: number): number[] {
  return [...new Set([guess, guess / 2, guess * 2, guess / 4].map((n) => Math.max(1, Math.round(n))))];
}
