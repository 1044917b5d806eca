/**
 * `npm run build:cuda`: compiles every kernel with nvcc into native-cuda/bin, with a manifest of what they were made from.
 *
 * The results are committed: machines without nvcc build and publish the package from them, and a test holds the
 * manifest against the sources. Fails where ptxas says that a kernel is slower than it was written to be: spilled
 * registers, serialised wgmma, ignored setmaxnreg.
 */
import { execFile } from 'node:child_process';
import { mkdir, mkdtemp, readFile, rename, rm, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { promisify } from 'node:util';
import { CUBINS, sha256, type CubinName, type Manifest } from '../src/cuda/cubin.ts';
import { BIN, FLAGS, HERE, sourceHashes } from './sources.ts';

const LOWEST_NVCC = [12, 8] as const;
/** setmaxnreg ignored, and wgmma serialised for one reason or another. */
const REFUSED_WARNINGS = ['C7504', 'C7508', 'C7510', 'C7511', 'C7512', 'C7515', 'C7518'];

const run = promisify(execFile);

interface Report {
  readonly name: CubinName;
  readonly image: Uint8Array;
  /** What must not be, a line each. */
  readonly spills: readonly string[];
  readonly warnings: readonly string[];
}

if (process.argv.length > 2) fail(`build:cuda takes no arguments, not ${process.argv.slice(2).join(' ')}`);

const nvcc = await nvccVersion();
const scratch = await mkdtemp(join(tmpdir(), 'flashmla-cuda-'));
try {
  const sources = await sourceHashes();
  const reports = await Promise.all(CUBINS.map(compile));
  if (JSON.stringify(await sourceHashes()) !== JSON.stringify(sources)) fail('sources changed while they were compiled');
  const spills = reports.flatMap((report) => report.spills);
  const warnings = reports.flatMap((report) => report.warnings);
  for (const line of [...warnings, ...spills]) console.error(line);
  if (warnings.length > 0) fail('ptxas gave warnings that stand for slow code');
  if (spills.length > 0) fail('registers were spilled');
  await write(reports, sources);
} finally {
  await rm(scratch, { recursive: true, force: true });
}

async function nvccVersion(): Promise<string> {
  let output: string;
  try {
    output = (await run('nvcc', ['--version'])).stdout;
  } catch (cause) {
    return fail(`nvcc did not run: ${(cause as Error).message.trim()}. Install the CUDA toolkit ${LOWEST_NVCC.join('.')} or newer; without it the committed native-cuda/bin is used`);
  }
  const version = /release [\d.]+, V([\d.]+)/.exec(output)?.[1] ?? '';
  const [major = 0, minor = 0] = version.split('.').map(Number);
  if (major < LOWEST_NVCC[0] || (major === LOWEST_NVCC[0] && minor < LOWEST_NVCC[1])) fail(`nvcc ${version || 'of an unknown version'} is too old: ${LOWEST_NVCC.join('.')} or newer is needed`);
  return version;
}

async function compile(name: CubinName): Promise<Report> {
  const to = join(scratch, `${name}.cubin`);
  let output: string;
  try {
    const { stdout, stderr } = await run('nvcc', [...FLAGS, '-o', to, join(HERE, `${name}.cu`)], { cwd: HERE, maxBuffer: 1 << 26 });
    output = stdout + stderr;
  } catch (error) {
    const { stdout = '', stderr = '' } = error as { stdout?: string; stderr?: string };
    return fail(`${name}.cu does not compile:\n${stdout}${stderr}`);
  }
  return { name, image: await readFile(to), ...judge(name, output) };
}

/** Reads what `-Xptxas -v` printed; tells of each kernel's registers on the way. */
function judge(name: CubinName, output: string): Pick<Report, 'spills' | 'warnings'> {
  const spills: string[] = [];
  const warnings = output.split('\n').filter((line) => REFUSED_WARNINGS.some((code) => line.includes(code))).map((line) => `${name}.cu: ${line.trim()}`);
  let kernel = '';
  for (const line of output.split('\n')) {
    kernel = /(?:Compiling entry function|Function properties for) '?([\w]+)'?/.exec(line)?.[1] ?? kernel;
    const spilled = /(\d+) bytes spill stores, (\d+) bytes spill loads/.exec(line);
    if (spilled && (Number(spilled[1]) > 0 || Number(spilled[2]) > 0)) spills.push(`${name}.cu: ${kernel}: ${spilled[0]}`);
    const used = /Used \d+ registers.*/.exec(line);
    if (used) console.log(`${name}.cu: ${kernel}: ${used[0]}`);
  }
  return { spills, warnings };
}

async function write(reports: readonly Report[], sources: Manifest['sources']): Promise<void> {
  // Cubins run on drivers of their own major version and later ones.
  const driver = Number(nvcc.split('.')[0]) * 1000;
  const manifest: Manifest = {
    nvcc, driver, sources,
    cubins: Object.fromEntries(reports.map(({ name, image }) => [name, { bytes: image.length, sha256: sha256(image) }])) as Manifest['cubins'],
  };
  await mkdir(BIN, { recursive: true });
  for (const { name, image } of reports) await replace(join(BIN, `${name}.cubin`), image);
  await replace(join(BIN, 'manifest.json'), `${JSON.stringify(manifest, null, 1)}\n`);
  console.log(`${reports.length} cubins from nvcc ${nvcc}, for drivers of CUDA ${driver / 1000}.0 and later, in ${BIN}`);
}

/** Whole or not at all. */
async function replace(path: string, data: Uint8Array | string): Promise<void> {
  await writeFile(`${path}.new`, data);
  await rename(`${path}.new`, path);
}

function fail(message: string): never {
  console.error(message);
  process.exit(1);
}
