/** `flashmla-web bench`: time, TFLOP/s and GB/s of decode shapes. */
import type { Mla, MlaInfo } from '../mla.ts';
import { loadOf } from '../schedule.ts';
import type { Context, MlaChoice } from './context.ts';
import { forEachOn } from './each.ts';
import { EXIT_FAILED, asFailure, usageError } from './failure.ts';
import { measure, type Measurement } from './measure.ts';
import { MLA_OPTIONS, Options } from './options.ts';
import { checkOutputs, writeOutput } from './output-file.ts';
import { plotSvg } from './plot-svg.ts';
import { progress } from './progress.ts';
import { readShapes } from './shapes-file.ts';
import { tuneArgs, type BenchShape } from './shapes.ts';
import { figure } from './stats.ts';
import { table } from './table.ts';

export const BENCH_USAGE = `Usage: flashmla-web bench [options]

      --shapes FILE       shapes to run, as JSON: [{"name":"a","b":1,"h_q":16,"seqlens":[1024]}], one
                          length a sequence; s_q, h_kv, d_qk, d_v, block_size, causal and dtype as in DeepSeek-V3
                          when absent; a short list without the option
      --only REGEX        only shapes whose name matches
      --runs N            runs a shape, of which the median counts; 15 when absent
      --check             compare sampled rows with attention in double precision
      --json FILE         write the figures as JSON
      --plot FILE         write them as a chart (SVG)
      --backend NAME      auto (default), cuda, webgpu or cpu
      --tier NAME         webgpu: kernel tier
      --dawn TOGGLES      webgpu: toggles for Dawn in place of the usual ones, as one argument
      --no-tune           webgpu: the fixed choice of kernel configuration; else each shape's is tuned before, once a
                          machine (see tune), except on software adapters

The device's cache is flushed before each run. Times are the device's own where it has timestamps, else wall time.
Data are random, the same every time. Exit status: 0 done, 2 bad input, 1 when a shape failed or its check did.
`;

const SEED = 20260;

/** A shape that did not run, and why. */
export interface BenchFailure {
  readonly name: string;
  readonly code: string;
  readonly message: string;
}

export interface BenchReport {
  readonly device: string;
  readonly backend: string;
  readonly tier: string | null;
  readonly reason: string;
  /** Where times come from; null when no shape ran. */
  readonly source: 'device' | 'wall' | null;
  readonly runs: number;
  /** Shapes that other kernels served than the tier's first choice, and why. */
  readonly notes: readonly string[];
  readonly results: readonly Measurement[];
  readonly failures: readonly BenchFailure[];
}

/** @throws MlaError */
export async function bench(args: readonly string[], context: Context): Promise<number> {
  const options = new Options(args, {
    ...MLA_OPTIONS,
    shapes: { type: 'string' },
    only: { type: 'string' },
    runs: { type: 'string' },
    check: { type: 'boolean' },
    json: { type: 'string' },
    plot: { type: 'string' },
    'no-tune': { type: 'boolean' },
  });
  if (options.flag('help')) {
    context.stdout.write(BENCH_USAGE);
    return 0;
  }
  if (options.positionals.length > 0) throw usageError('takes no arguments', 'bench', 'options', options.positionals.join(' '));
  const tune = !options.flag('no-tune');
  // Nothing may be measured behind the benchmark's back.
  const choice: MlaChoice = { ...options.mla(), tune: tune ? 'stored' : 'off' };
  const runs = options.integer('runs', 1) ?? 15;
  const shapes = await readShapes(options.text('shapes'), options.pattern('only'));
  const [json, plot] = [options.text('json'), options.text('plot')];
  await checkOutputs({ '--json': json, '--plot': plot }, { '--shapes': options.text('shapes') });

  const report = await runShapes(shapes, { runs, check: options.flag('check'), tune }, choice, context);
  if (json !== undefined) await writeText(json, `${JSON.stringify(report, null, 1)}\n`);
  if (plot !== undefined) await writeText(plot, chart(report, shapes));
  context.stdout.write(textReport(report));
  const unchecked = report.results.some((result) => result.check?.ok === false);
  return report.failures.length > 0 || unchecked ? EXIT_FAILED : 0;
}

/** Every shape in turn. One that fails is noted and does not keep the others from running. */
async function runShapes(
  shapes: readonly BenchShape[], { runs, check, tune }: { runs: number; check: boolean; tune: boolean }, choice: MlaChoice, context: Context,
): Promise<BenchReport> {
  const results: Measurement[] = [];
  const failures: BenchFailure[] = [];
  const notes = new Set<string>();
  const bar = progress(context.stderr, shapes.length * runs);
  let done = 0;
  const runShape = async (mla: Mla, shape: BenchShape): Promise<void> => {
    bar.label(shape.name);
    const onRun = (): void => {
      done++;
      bar.advance();
    };
    try {
      // A software adapter takes minutes over what a GPU does in one.
      if (tune && !mla.info.software) await mla.tune({ ...tuneArgs(shape), load: loadOf(shape.seqlens) });
      results.push(await measure(mla, shape, { runs, check, seed: SEED, onRun }));
    } finally {
      for (const note of mla.info.kernelNotes ?? []) notes.add(note);
    }
    done = 0;
  };
  let info: MlaInfo;
  try {
    info = await forEachOn(context, choice, shapes, runShape, ({ name }, error) => {
      failures.push({ name, ...asFailure(error) });
      bar.advance(runs - done);
      done = 0;
    });
  } finally {
    bar.stop();
  }
  return {
    device: info.device, backend: info.backend, tier: info.tier ?? null, reason: info.reason,
    source: results[0]?.source ?? null, runs, notes: [...notes], results, failures,
  };
}

function textReport({ results, failures, notes, ...report }: BenchReport): string {
  const checked = results.some((result) => result.check !== undefined);
  const columns = [
    { title: 'shape', align: 'left' }, { title: 'ms', align: 'right' }, { title: 'TFLOP/s', align: 'right' },
    { title: 'GB/s', align: 'right' }, ...(checked ? [{ title: 'check', align: 'left' } as const] : []),
  ] as const;
  const rows = results.map(({ name, ms, tflops, GBps, check }) => [name, figure(ms, 4), figure(tflops), figure(GBps), check === undefined ? '' : check.ok ? 'ok' : `FAILED: ${check.fault}`]);
  const failed = failures.map(({ name, code, message }) => `${name}: not run (${code}): ${message}\n`).join('');
  const other = notes.map((note) => `${note}\n`).join('');
  return `${heading(report)}\n${results.length === 0 ? '' : table(columns, rows)}${other}${failed}`;
}

function heading({ device, backend, tier, source, runs }: Omit<BenchReport, 'results' | 'failures' | 'notes'>): string {
  const time = source === null ? '' : `; ${source} time, median of ${runs}, cache flushed`;
  return `${device} (${backend}${tier === null ? '' : `, ${tier} tier`})${time}`;
}

function chart(report: BenchReport, shapes: readonly BenchShape[]): string {
  const byName = new Map(report.results.map((result) => [result.name, result]));
  const { device, backend, tier, source, runs } = report;
  return plotSvg({
    title: `MLA decode on ${device}`,
    subtitle: [`backend ${backend}`, ...(tier === null ? [] : [`${tier} tier`]), `median of ${runs} runs`, 'cache flushed before each', ...(source === null ? [] : [`${source} time`])].join(', '),
    panels: [{ label: 'ms', better: 'lower' }, { label: 'TFLOP/s', better: 'higher' }, { label: 'GB/s', better: 'higher' }],
    rows: shapes.map(({ name }) => {
      const result = byName.get(name);
      return result ? { name, values: [result.ms, result.tflops, result.GBps] } : { name, values: [], note: 'did not run' };
    }),
  });
}

function writeText(path: string, text: string): Promise<void> {
  return writeOutput(path, [new TextEncoder().encode(text)]);
}
