/** Time of one benchmark shape. */
import type { Mla } from '../mla.ts';
import { checkWorkload, type CheckReport } from './check.ts';
import { shapeCost, type BenchShape } from './shapes.ts';
import { median } from './stats.ts';
import { makeWorkload } from './workload.ts';

/** Calls before the first that counts: at least one, and enough for clocks to rise. */
const WARM_UP = { calls: 10, ms: 100 } as const;

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

/** Runs a shape with the cache flushed before each run. @throws MlaError when the device cannot */
export async function measure(mla: Mla, shape: BenchShape, { runs, check, seed, onRun }: MeasureOptions): Promise<Measurement> {
  const workload = await makeWorkload(mla, shape, seed);
  try {
    const report = check ? await checkWorkload(shape, workload, seed) : undefined;
    const run = (): Promise<unknown> => mla.flashMlaWithKvCache(workload.args);
    const start = performance.now();
    for (let i = 0; i === 0 || (i < WARM_UP.calls && performance.now() - start < WARM_UP.ms); i++) await mla.time(run);

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
