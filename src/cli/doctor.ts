/** `flashmla-web doctor`: what this machine can run, and what `auto` would take. */
import { MlaError } from '../errors.ts';
import type { MlaInfo, TuneChoice } from '../mla.ts';
import type { BackendReport } from '../node.ts';
import { VERSION } from '../version.ts';
import type { Context } from './context.ts';
import { EXIT_FAILED, oneLine, usageError } from './failure.ts';
import { Options } from './options.ts';

export const DOCTOR_USAGE = `Usage: flashmla-web doctor [--json]

Shows every backend, whether it runs here and why, with its device, features, limits and kernel tier, which one \`auto\`
would take, and what tuning has found. Exit status: 0, or 1 when no backend runs.
`;

type Choice = Pick<MlaInfo, 'backend' | 'device' | 'tier' | 'reason'>;

/** @throws MlaError invalid-argument */
export async function doctor(args: readonly string[], context: Context): Promise<number> {
  const options = new Options(args, { json: { type: 'boolean' } });
  if (options.flag('help')) {
    context.stdout.write(DOCTOR_USAGE);
    return 0;
  }
  if (options.positionals.length > 0) throw usageError('takes no arguments', 'doctor', '--json or nothing', options.positionals.join(' '));
  const backends = await context.listBackends();
  const { auto, error } = await tryAuto(context);
  const tuned = { place: context.tuneStore.place, choices: Object.fromEntries(await context.tuneStore.load()) };
  const system = { version: VERSION, node: process.version, platform: process.platform, arch: process.arch };
  if (options.flag('json')) {
    context.stdout.write(`${JSON.stringify({ ...system, backends, auto: auto ?? null, ...(error !== undefined && { error }), tuned }, null, 1)}\n`);
  } else {
    context.stdout.write(`flashmla-web ${system.version}, Node ${system.node}, ${system.platform} ${system.arch}\n`);
    for (const backend of backends) context.stdout.write(`\n${describeBackend(backend)}`);
    context.stdout.write(auto ? `\nauto would take ${auto.backend}${auto.tier === undefined ? '' : `, ${auto.tier} tier`}: ${auto.reason}\n` : `\nauto finds nothing: ${error}\n`);
    context.stdout.write(`\n${describeTuned(tuned)}`);
  }
  return auto ? 0 : EXIT_FAILED;
}

/** Only a backend that was made is known to work. */
async function tryAuto(context: Context): Promise<{ auto?: Choice; error?: string }> {
  try {
    const mla = await context.createMla({ backend: 'auto' });
    const { backend, device, tier, reason } = mla.info;
    await mla.destroy();
    return { auto: { backend, device, reason, ...(tier !== undefined && { tier }) } };
  } catch (error) {
    if (error instanceof MlaError) return { error: oneLine(error) };
    throw error;
  }
}

function describeTuned({ place, choices }: { place: string; choices: Readonly<Record<string, TuneChoice>> }): string {
  const lines = Object.entries(choices).map(([key, { config, slots }]) => `  ${key}: ${config}, ${slots} slots\n`);
  return lines.length === 0 ? `tuned: nothing is remembered in ${place}\n` : `tuned, as remembered in ${place}:\n${lines.join('')}`;
}

function describeBackend({ backend, available, reason, device, tier, tierNotes = [], features, limits, software }: BackendReport): string {
  const lines = [`${backend}: ${available ? 'available' : 'not available'}: ${reason}`];
  if (device !== undefined) lines.push(`device    ${device}${software === true ? ' (software)' : ''}`);
  if (tier !== undefined) lines.push(`tier      ${tier}`);
  for (const note of tierNotes) lines.push(`          not ${note}`);
  if (features && features.length > 0) lines.push(...wrap('features  ', features));
  const entries = Object.entries(limits ?? {});
  const width = Math.max(0, ...entries.map(([name]) => name.length));
  entries.forEach(([name, value], i) => lines.push(`${i === 0 ? 'limits' : ''}`.padEnd(10) + `${name.padEnd(width)}  ${amount(name, value)}`));
  return `${lines.join('\n  ')}\n`;
}

/** A limit; sizes in bytes also in a unit that reads well. */
function amount(name: string, value: number): string {
  const units = ['KiB', 'MiB', 'GiB', 'TiB'];
  if (!/Size$|Storage|Bytes/.test(name) || value < 1024) return `${value}`;
  let scaled = value / 1024;
  let unit = 0;
  for (; scaled >= 1024 && unit < units.length - 1; unit++) scaled /= 1024;
  return `${value} (${Number(scaled.toFixed(1))} ${units[unit]})`;
}

/** Words after a label, in lines of about 100 characters. */
function wrap(label: string, words: readonly string[]): string[] {
  const lines: string[] = [];
  let line = label;
  for (const word of words) {
    if (line.length > label.length && line.length + word.length > 100) {
      lines.push(line.trimEnd());
      line = ' '.repeat(label.length);
    }
    line += `${word} `;
  }
  return [...lines, line.trimEnd()];
}
