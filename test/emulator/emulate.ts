/**
 * `npm run test:cuda:emulated`: compiles the Hopper kernels for the CPU, with the emulated CUDA of this folder in place of
 * the real one, and runs them on tiny problems. Needs g++ (or CXX) on x86-64 Linux, no GPU and no CUDA; fails without.
 *
 * Arguments go to the runs: `--kernel decode_bf16_pair --case big --seeds 50 --loose`; see README.md.
 */
import { execFile, spawn } from 'node:child_process';
import { cp, mkdtemp, readFile, readdir, rm, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { promisify } from 'node:util';

const HERE = import.meta.dirname;
const KERNELS = join(HERE, '..', '..', 'native-cuda');
const SOURCES = ['decode.cu', 'decode_few.cu', 'combine.cu'];
const FLAGS = ['-std=c++20', '-O2', '-g1', '-fno-strict-aliasing', '-ffp-contract=off', '-Wno-unknown-pragmas', '-Wno-psabi'];
/** What is run when nothing else is asked for. */
const RUNS = [
  ['--kernel', 'decode_bf16', '--loose', '--seeds', '1'],
  ['--kernel', 'decode_bf16_pair', '--loose', '--seeds', '1'],
  ['--kernel', 'decode_bf16_few', '--loose', '--seeds', '1'],
  ['--kernel', 'decode_f16'],
  ['--kernel', 'decode_f16_pair'],
  ['--kernel', 'decode_f16_few'],
];

const run = promisify(execFile);
const compiler = process.env['CXX'] ?? 'g++';

const REGISTERS: Readonly<Record<string, string>> = { 'ctaid.x': 'emu::cur->block->idx.x', 'ctaid.y': 'emu::cur->block->idx.y', 'ctaid.z': 'emu::cur->block->idx.z' };

/** Assembly outside of ptx/, and dynamic shared memory, as calls of the emulator. Lines stay where they are. */
function translate(source: string, name: string): string {
  return source
    .replace(/extern __shared__ (\w+) (\w+)\[\];/g, '$1* $2 = static_cast<$1*>(emu::dynamic_shared());')
    .replace(/\basm(?: volatile)?\("((?:[^"\\]|\\.)*)"((?:[^;"]|"[^"]*")*)\);/g, (statement, text: string, operands: string) => {
      if (text === '') return ';';
      const names = [...operands.matchAll(/"[=+]?\w"\(([^()]+)\)/g)].map((match) => match[1]!);
      const register = /^mov\.u32 %0, %%([\w.]+);$/.exec(text)?.[1];
      if (register !== undefined && register in REGISTERS) return `${names[0]} = ${REGISTERS[register]};`;
      const words = text.startsWith('ld.global.nc.b32 ') ? 1 : text.startsWith('ld.global.nc.v4.b32 ') ? 4 : undefined;
      if (words === undefined) throw new Error(`${name}: no emulation of ${statement}`);
      const from = names[words];
      return `emu::check_aligned(${from}, ${words * 4}); ${names.slice(0, words).map((x, i) => `memcpy(&(${x}), reinterpret_cast<const char*>(${from}) + ${i * 4}, 4);`).join(' ')}`;
    });
}

/** @throws with what the compiler said */
async function compile(args: readonly string[]): Promise<void> {
  try {
    await run(compiler, args, { maxBuffer: 1 << 26 });
  } catch (error) {
    throw new Error(`${compiler} ${args.join(' ')}\n${(error as { stderr?: string }).stderr ?? ''}`, { cause: error });
  }
}

async function build(to: string): Promise<string> {
  await cp(join(HERE, 'ptx'), join(to, 'ptx'), { recursive: true });
  for (const name of await readdir(KERNELS)) {
    if (SOURCES.includes(name) || name.endsWith('.cuh')) await writeFile(join(to, name), translate(await readFile(join(KERNELS, name), 'utf8'), name));
  }
  const sources = [...SOURCES.map((name) => join(to, name)), join(HERE, 'emu.cpp'), join(HERE, 'run.cpp')];
  const objects = sources.map((_, i) => join(to, `${i}.o`));
  await Promise.all(sources.map((source, i) => compile([...FLAGS, '-I', to, '-I', HERE, '-x', 'c++', '-c', source, '-o', objects[i]!])));
  const program = join(to, 'run');
  await compile(['-rdynamic', ...objects, '-ldl', '-o', program]);
  return program;
}

function execute(program: string, args: readonly string[]): Promise<number> {
  return new Promise((resolve, reject) => {
    spawn(program, args, { stdio: 'inherit' }).on('error', reject).on('exit', (code) => resolve(code ?? 1));
  });
}

if (process.platform !== 'linux' || process.arch !== 'x64') {
  console.error(`the emulator runs on x86-64 Linux, not ${process.platform} ${process.arch}`);
  process.exit(1);
}
try {
  await run(compiler, ['--version']);
} catch {
  console.error(`${compiler} did not run: install a C++ compiler, or name one in CXX`);
  process.exit(1);
}
const folder = await mkdtemp(join(tmpdir(), 'flashmla-emulator-'));
try {
  const program = await build(folder);
  const asked = process.argv.slice(2);
  for (const args of asked.length > 0 ? [asked] : RUNS) process.exitCode = (await execute(program, args)) || process.exitCode || 0;
} finally {
  await rm(folder, { recursive: true, force: true });
}
