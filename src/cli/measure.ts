/** Time of one benchmark shape. */
import { median } from '../median.ts';
import type { Mla } from '../mla.ts';
import { checkWorkload, type CheckReport } from './check.ts';
import { shapeCost, type BenchShape } from './shapes.ts';
import { makeWorkload } from './workload.ts';

/** A GPU is kept busy for so long before the first run that counts: one that idled while data were made runs at a fifth of its clocks. */
const WARM_UP_MS = 400;
/** Calls in a row meanwhile take about so long. */
const BURST_MS = 20;

export interface Measurement {
  readonly name: string;
  readonly regime?: string;
  /** Median of the runs, milliseconds. */
  readonly ms: number;
  readonly min_ms: number;
  readonly max_ms: number;
  readonly tflops: number;
  readonly GBps: number;
  readonly gflop: number;
  readonly MB: number;
  readonly source: 'device' | 'wall';
  readonly runs: number;
  /** Parts of the schedule. */
  readonly parts: number;
  readonly check?: CheckReport;
}

export interface MeasureOptions {
  readonly runs: number;
  readonly check: boolean;
  readonly seed: number;
  /** Called after each run that counts. */
  readonly onRun: () => void;
}

/** The first call alone, then bursts: between calls that are waited for one by one a GPU idles. */
async function warmUp(mla: Mla, run: () => Promise<unknown>): Promise<void> {
  const end = performance.now() + WARM_UP_MS;
  let calls = 1;
  do {
    const start = performance.now();
    for (let i = 0; i < calls; i++) await run();
    await mla.finished();
    const ms = performance.now() - start;
    calls = Math.max(1, Math.min(2 * calls, Math.round((calls * BURST_MS) / ms)));
  } while (performance.now() < end);
}

/** Runs a shape with the cache flushed before each run. @throws MlaError when the device cannot */
export async function measure(mla: Mla, shape: BenchShape, { runs, check, seed, onRun }: MeasureOptions): Promise<Measurement> {
  const workload = await makeWorkload(mla, shape, seed);
  try {
    const report = check ? await checkWorkload(shape, workload, seed) : undefined;
    const run = (): Promise<unknown> => mla.flashMlaWithKvCache(workload.args);
    await warmUp(mla, run);

    const samples: number[] = [];
    let source: 'device' | 'wall' = 'device';
    for (let i = 0; i < runs; i++) {
      await mla.flushCache();
      await mla.finished();
      const time = await mla.time(run);
      samples.push(time.ms);
      source = time.source;
      onRun();
    }
    const { flops, bytes } = shapeCost(shape);
    const ms = median(samples);
    return {
      name: shape.name,
      ...(shape.regime !== undefined && { regime: shape.regime }),
      ms, min_ms: Math.min(...samples), max_ms: Math.max(...samples),
      tflops: flops / ms / 1e9, GBps: bytes / ms / 1e6,
      gflop: flops / 1e9, MB: bytes / 1e6,
      source, runs, parts: workload.metadata.parts,
      ...(report && { check: report }),
    };
  } finally {
    workload.destroy();
  }
}
