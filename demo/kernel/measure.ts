/** Time of one decode call: the median of several measurements. */
import { median } from '../../src/median.ts';
import type { Mla } from '../../src/mla.ts';

const MOST_RUNS = 15;
const FEWEST_RUNS = 3;
const BUDGET_MS = 2500;
/** Browsers round device timestamps to 0.1 ms: a measurement holds as many calls as make it longer than that. */
const LEAST_MS = 2;
const MOST_CALLS = 64;

export interface Timing {
  /** Median, of one call. Zero where the clock is too coarse. */
  readonly ms: number;
  readonly source: 'device' | 'wall';
  readonly runs: number;
  /** Calls in each run. */
  readonly calls: number;
}

/**
 * @param onRun told of each run before it starts: its number from 1, and how many there will be at most
 * @param budgetMs measuring ends after this, once there are enough runs
 */
export async function measure(
  mla: Mla, decode: () => Promise<unknown>, onRun: (run: number, most: number) => void = () => undefined, budgetMs = BUDGET_MS,
): Promise<Timing> {
  const first = await mla.time(decode);
  const calls = Math.max(1, Math.min(MOST_CALLS, Math.ceil(LEAST_MS / Math.max(first.ms, LEAST_MS / MOST_CALLS))));
  const repeat = async (): Promise<void> => {
    for (let i = 0; i < calls; i++) await decode();
  };
  const samples: number[] = [];
  const start = performance.now();
  while (samples.length < MOST_RUNS && (samples.length < FEWEST_RUNS || performance.now() - start < budgetMs)) {
    onRun(samples.length + 1, MOST_RUNS);
    samples.push((await mla.time(repeat)).ms / calls);
  }
  return { ms: median(samples), source: first.source, runs: samples.length, calls };
}
