/**
 * `npm run test:hardware [-- --shapes FILE] [--only RE] [--no-suites]`: everything that CI cannot run for want of a GPU. The suites of the
 * hardware at hand (cuda on a Hopper GPU, webgpu on every tier of the adapter), then the benchmark on each, as one table.
 *
 * Exit status: 0; 1 when a suite failed or a shape did not run; 2 without a GPU.
 */
import { spawnSync } from 'node:child_process';
import { existsSync, mkdtempSync, readFileSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { parseArgs } from 'node:util';
import { figure } from '../../src/cli/stats.ts';
import { table } from '../../src/cli/table.ts';

const ROOT = join(import.meta.dirname, '../..');
const CLI = join(ROOT, 'dist/cli.js');
const VITEST = join(ROOT, 'node_modules/vitest/vitest.mjs');
/** As a page gets it: bounds checks in shaders. */
const AS_IN_A_BROWSER = 'enable-dawn-features=allow_unsafe_apis,vulkan_enable_f16_on_nvidia disable-dawn-features=timestamp_quantization';

interface Column {
  readonly title: string;
  readonly args: readonly string[];
}

interface Report {
  readonly results: readonly { readonly name: string; readonly ms: number; readonly tflops: number; readonly GBps: number }[];
  readonly failures: readonly { readonly name: string; readonly message: string }[];
}

function node(args: readonly string[], quiet = false): number {
  return spawnSync(process.execPath, args, { cwd: ROOT, stdio: ['ignore', quiet ? 'ignore' : 'inherit', 'inherit'] }).status ?? 1;
}

/** What `doctor` says of this machine. */
function backends(): { backend: string; available: boolean; software?: boolean; device?: string; tier?: string; reason: string }[] {
  const { stdout } = spawnSync(process.execPath, [CLI, 'doctor', '--json'], { cwd: ROOT, encoding: 'utf8' });
  return (JSON.parse(stdout) as { backends: ReturnType<typeof backends> }).backends;
}

function bench(column: Column, shapes: readonly string[], folder: string): Report | undefined {
  const file = join(folder, 'report.json');
  rmSync(file, { force: true });
  console.error(`\n${column.title}: bench ${column.args.join(' ')}`);
  node([CLI, 'bench', ...column.args, ...shapes, '--json', file], true);
  return existsSync(file) ? (JSON.parse(readFileSync(file, 'utf8')) as Report) : undefined;
}

function main(): number {
  const { values } = parseArgs({ options: { shapes: { type: 'string' }, only: { type: 'string' }, 'no-suites': { type: 'boolean' } } });
  const found = backends();
  const cuda = found.find(({ backend }) => backend === 'cuda');
  const webgpu = found.find(({ backend }) => backend === 'webgpu');
  for (const b of [cuda, webgpu]) if (b) console.log(`${b.backend}: ${b.available ? `${b.device}${b.software ? ' (software)' : ''}` : b.reason}`);
  const hopper = cuda?.available === true;
  const gpu = webgpu?.available === true && webgpu.software !== true;
  if (!hopper && !gpu) {
    console.error('test:hardware: no GPU here');
    return 2;
  }
  let failed = false;
  if (!values['no-suites']) {
    for (const mode of [...(hopper ? ['cuda'] : []), ...(gpu ? ['gpu'] : [])]) failed = node([VITEST, 'run', '--mode', mode]) !== 0 || failed;
  }

  const tiers = ['matrix', 'subgroup', 'base'];
  const columns: Column[] = [
    ...(hopper ? [{ title: 'cuda', args: ['--backend', 'cuda'] }] : []),
    ...(gpu ? tiers.slice(tiers.indexOf(webgpu.tier ?? 'base')).map((tier) => ({ title: tier, args: ['--backend', 'webgpu', '--tier', tier] })) : []),
    ...(gpu ? [{ title: 'as in a browser', args: ['--backend', 'webgpu', '--dawn', AS_IN_A_BROWSER] }] : []),
  ];
  const shapes = [...(values.shapes ? ['--shapes', values.shapes] : []), ...(values.only ? ['--only', values.only] : [])];
  const folder = mkdtempSync(join(tmpdir(), 'hardware-'));
  const reports = columns.map((column) => bench(column, shapes, folder));
  rmSync(folder, { recursive: true });
  failed ||= reports.some((report) => !report || report.failures.length > 0);

  const names = [...new Set(reports.flatMap((report) => report?.results.map(({ name }) => name) ?? []))];
  const cell = (name: string, report: Report | undefined): string => {
    const result = report?.results.find((r) => r.name === name);
    return result ? `${figure(result.ms, 4)} (${figure(result.tflops)}, ${figure(result.GBps)})` : 'did not run';
  };
  console.log(`\nms (TFLOP/s, GB/s)\n${table(
    [{ title: 'shape', align: 'left' }, ...columns.map(({ title }) => ({ title, align: 'right' as const }))],
    names.map((name) => [name, ...reports.map((report) => cell(name, report))]),
  )}`);
  return failed ? 1 : 0;
}

process.exit(main());
