/** `flashmla-web tune`: measures kernel configurations and remembers the best, so that nobody has to wait for it later. */
import type { MlaInfo, TuneArgs, TuneReport, TuneTrial } from '../mla.ts';
import { checkTune, shapeClass } from '../shape-class.ts';
import type { Context, MlaChoice } from './context.ts';
import { forEachOn } from './each.ts';
import { EXIT_FAILED, asFailure, usageError } from './failure.ts';
import { MLA_OPTIONS, Options } from './options.ts';
import { checkOutputs, writeOutput } from './output-file.ts';
import { progress } from './progress.ts';
import { readShapes } from './shapes-file.ts';
import { tuneArgs, type BenchShape } from './shapes.ts';
import { figure } from './stats.ts';
import { table } from './table.ts';

export const TUNE_USAGE = `Usage: flashmla-web tune [options]

      --shapes FILE       shapes whose classes to tune, as for bench; a short list when absent
      --only REGEX        only shapes whose name matches
      --json FILE         write what was found as JSON
      --backend NAME      webgpu (default); others have nothing to choose from, and say so
      --tier NAME         webgpu: kernel tier
      --dawn TOGGLES      webgpu: toggles for Dawn in place of the usual ones, as one argument
      --no-cache          neither read nor write what is remembered
      --forget            forget all that is remembered, and do nothing else

Shapes of the same rows, heads, widths and type make three classes, whatever their lengths: one of short loads (up to 32,768 tokens
a call), one of medium (up to 131,072) and one of long ones. Each is measured, though its choice may be remembered: after a new driver, say.
A configuration whose results were wrong once is not tried again until all is forgotten.
FLASHMLA_CACHE_DIR names the directory to remember in. Exit status: 0 done, 2 bad input, 1 when a class failed.
`;

/** A class that could not be tuned, and why. */
interface TuneFailure {
  readonly shapeClass: string;
  readonly code: string;
  readonly message: string;
}

interface TuneSummary {
  readonly device: string;
  readonly backend: string;
  readonly tier: string | null;
  readonly reports: readonly TuneReport[];
  readonly failures: readonly TuneFailure[];
}

/** @throws MlaError */
export async function tune(args: readonly string[], context: Context): Promise<number> {
  const options = new Options(args, {
    ...MLA_OPTIONS,
    shapes: { type: 'string' },
    only: { type: 'string' },
    json: { type: 'string' },
    'no-cache': { type: 'boolean' },
    forget: { type: 'boolean' },
  });
  if (options.flag('help')) {
    context.stdout.write(TUNE_USAGE);
    return 0;
  }
  if (options.positionals.length > 0) throw usageError('takes no arguments', 'tune', 'options', options.positionals.join(' '));
  if (options.flag('forget')) return forget(args, context);
  const asked = options.mla();
  const choice: MlaChoice = { ...asked, backend: asked.backend === 'auto' ? 'webgpu' : asked.backend, tune: options.flag('no-cache') ? 'off' : 'stored' };
  const shapes = await readShapes(options.text('shapes'), options.pattern('only'));
  const json = options.text('json');
  await checkOutputs({ '--json': json }, { '--shapes': options.text('shapes') });

  const summary = await tuneAll(shapes, choice, context);
  if (json !== undefined) await writeOutput(json, [new TextEncoder().encode(`${JSON.stringify(summary, null, 1)}\n`)]);
  context.stdout.write(text(summary));
  return summary.failures.length > 0 ? EXIT_FAILED : 0;
}

async function forget(args: readonly string[], { stdout, tuneStore }: Context): Promise<number> {
  if (args.length > 1) throw usageError('goes with no other option', '--forget', '--forget alone', args.join(' '));
  const refused = await tuneStore.forget();
  if (refused !== undefined) throw new Error(refused);
  stdout.write(`nothing is remembered any more in ${tuneStore.place}\n`);
  return 0;
}

/** Every class in turn. One that fails, and a shape that makes none, is noted and does not keep the others from their turn. */
async function tuneAll(shapes: readonly BenchShape[], choice: MlaChoice, context: Context): Promise<TuneSummary> {
  const reports: TuneReport[] = [];
  const failures: TuneFailure[] = [];
  const note = (shapeClass: string, error: unknown): void => void failures.push({ shapeClass, ...asFailure(error) });
  const classes = new Map<string, TuneArgs>();
  for (const shape of shapes) {
    const args = tuneArgs(shape);
    try {
      for (const op of checkTune(args)) classes.set(shapeClass(op), { ...args, load: op.load });
    } catch (error) {
      note(shape.name, error);
    }
  }
  const bar = progress(context.stderr, classes.size);
  let info: MlaInfo;
  try {
    info = await forEachOn(context, choice, [...classes], async (mla, [name, args]) => {
      bar.label(name);
      reports.push(...(await mla.tune({ ...args, again: true })));
      bar.advance();
    }, ([name], error) => {
      note(name, error);
      bar.advance();
    });
  } finally {
    bar.stop();
  }
  return { device: info.device, backend: info.backend, tier: info.tier ?? null, reports, failures };
}

function text({ device, backend, tier, reports, failures }: TuneSummary): string {
  const failed = failures.map(({ shapeClass: name, code, message }) => `\n${name}: not tuned (${code}): ${message}\n`).join('');
  return `${device} (${backend}${tier === null ? '' : `, ${tier} tier`})\n${reports.map(reportText).join('')}${failed}`;
}

function reportText({ shapeClass, trials, chosen, flops = NaN, bytes = NaN, timing, note }: TuneReport): string {
  const columns = [
    { title: 'configuration', align: 'left' }, { title: 'slots', align: 'right' }, { title: 'ms', align: 'right' }, { title: 'TFLOP/s', align: 'right' },
    { title: 'GB/s', align: 'right' }, { title: '', align: 'left' },
  ] as const;
  const row = ({ config, slots, ms, refused }: TuneTrial): string[] => {
    const times = ms === undefined ? ['', '', ''] : [figure(ms, 4), figure(flops / ms / 1e9), figure(bytes / ms / 1e6)];
    const isChosen = refused === undefined && config === chosen?.config && slots === chosen.slots;
    return [config, slots === undefined ? '' : `${slots}`, ...times, refused ?? (isChosen ? 'chosen' : '')];
  };
  const heading = `\n${shapeClass}${timing === undefined ? '' : `; ${timing} time`}\n`;
  return `${heading}${trials.length === 0 ? '' : table(columns, trials.map(row))}${note}\n`;
}
