/**
 * README.md and demo/docs: every TypeScript example compiles, those marked `<!-- run -->` run on the cpu backend, and every link,
 * script, option, path and error code that is named exists. `<!-- given mla -->` declares what an example takes as there.
 */
import { execFile } from 'node:child_process';
import { existsSync, readFileSync, readdirSync } from 'node:fs';
import { mkdtemp, readFile, rm, writeFile } from 'node:fs/promises';
import { dirname, join, relative } from 'node:path';
import { fileURLToPath } from 'node:url';
import { promisify } from 'node:util';
import { afterAll, beforeAll, describe, expect, test, vi } from 'vitest';
import { BENCH_USAGE } from '../src/cli/bench.ts';
import { DECODE_USAGE } from '../src/cli/decode.ts';
import { DOCTOR_USAGE } from '../src/cli/doctor.ts';
import { GENERATE_USAGE } from '../src/cli/generate.ts';
import { TUNE_USAGE } from '../src/cli/tune.ts';
import { serveFiles, type FileServer } from './model/file-server.ts';

const root = fileURLToPath(new URL('..', import.meta.url));
const USAGES: Readonly<Record<string, string>> = { bench: BENCH_USAGE, decode: DECODE_USAGE, doctor: DOCTOR_USAGE, generate: GENERATE_USAGE, tune: TUNE_USAGE };
const GIVEN: Readonly<Record<string, string>> = {
  mla: "import('../src/index.ts').Mla", model: "import('../src/index.ts').Model", device: 'GPUDevice', gpuBuffer: 'GPUBuffer', files: 'FileList',
};
const ENTRIES: Readonly<Record<string, string>> = { 'flashmla-web': '../src/index.ts', 'flashmla-web/node': '../src/node.ts', 'flashmla-web/worker': '../src/worker/index.ts' };
const MODEL_URL = 'https://example.org/model/';

const read = (path: string): string => readFileSync(join(root, path), 'utf8');
const documents = ['README.md', ...readdirSync(join(root, 'demo/docs')).filter((name) => name.endsWith('.md')).sort().map((name) => `demo/docs/${name}`)].map((path) => ({ path, text: read(path) }));
const all = documents.map(({ text }) => text).join('\n');

interface Example {
  readonly name: string;
  readonly run: boolean;
  readonly code: string;
}

/** As a module that imports the sources. */
const examples: Example[] = documents.flatMap(({ path, text }) =>
  [...text.matchAll(/(?:<!-- (run|given .+?) -->\n)?```ts\n([^]*?)```/g)].map(([, mark = '', code], i) => {
    const given = mark.startsWith('given ') ? mark.slice(6).split(', ') : [];
    const declared = given.map((name) => `declare const ${name}: ${GIVEN[name]!};`);
    const imported = code!.replace(/from '(flashmla-web[^']*)'/g, (_, entry: string) => `from '${ENTRIES[entry]!}'`);
    return { name: `${path.replace(/\W+/g, '-')}-${i + 1}.ts`, run: mark === 'run', code: [...declared, imported, 'export {};', ''].join('\n') };
  }));

describe('examples', () => {
  let dir: string;
  let server: FileServer;

  beforeAll(async () => {
    dir = await mkdtemp(join(root, '.examples-'));
    for (const { name, code } of examples) await writeFile(join(dir, name), code);
    await writeFile(join(dir, 'tsconfig.json'), JSON.stringify({ extends: '../tsconfig.json', compilerOptions: { noUnusedLocals: false }, include: ['*.ts'] }));
    const model = join(root, 'test/fixtures/models/tiny-v2');
    const files = await Promise.all(readdirSync(model).map(async (name) => [name, await readFile(join(model, name))] as const));
    server = await serveFiles(new Map([...files, ['tokenizer.json', await readFile(join(root, 'test/model/tokenizer.json'))]]));
  });
  afterAll(async () => {
    if (dir) await rm(dir, { recursive: true, force: true });
    await server?.close();
  });

  test('there are some of each kind', () => {
    expect(examples.length).toBeGreaterThan(10);
    expect(examples.filter(({ run }) => run).length).toBeGreaterThan(5);
  });

  test('compile against the sources', async () => {
    const tsc = join(root, 'node_modules/typescript/bin/tsc');
    const said = await promisify(execFile)(process.execPath, [tsc, '-p', dir], { cwd: root }).then(({ stdout }) => stdout, ({ stdout }: { stdout: string }) => stdout);
    expect(said).toBe('');
  });

  test.each(examples.filter(({ run }) => run).map(({ name }) => name))('%s runs', async (name) => {
    const lines: unknown[][] = [];
    const log = vi.spyOn(console, 'log').mockImplementation((...words) => void lines.push(words));
    const { fetch } = globalThis;
    vi.stubGlobal('fetch', (input: string, init?: RequestInit) => fetch(input.replace(MODEL_URL, `${server.url}/`), init));
    try {
      await import(/* @vite-ignore */ join(dir, name));
    } finally {
      log.mockRestore();
      vi.unstubAllGlobals();
    }
    expect(lines.length).toBeGreaterThan(0);
    for (const [, printed] of examples.find((e) => e.name === name)!.code.matchAll(/console\.log\(.*\); +\/\/ ([\d ]+)$/gm)) expect(lines.map((words) => words.join(' '))).toContain(printed);
  });
});

describe('what is named exists', () => {
  /** Headings as GitHub makes anchors of them. */
  const anchors = (text: string): string[] => [...text.matchAll(/^#+ (.+)$/gm)].map(([, title]) => title!.toLowerCase().replace(/[^\w\- ]/g, '').replaceAll(' ', '-'));

  test.each(documents)('links of $path', ({ path, text }) => {
    const links = [...text.matchAll(/\]\(((?!https?:)[^)]+)\)/g)].map(([, link]) => link!.split('#') as [string, string?]);
    for (const [file, anchor] of links) {
      const target = file === '' ? path : relative(root, join(root, dirname(path), file));
      expect(existsSync(join(root, target)), `${path}: ${file}`).toBe(true);
      if (anchor !== undefined) expect(anchors(read(target)), `${path}: ${file}#${anchor}`).toContain(anchor);
    }
  });

  test('every document is linked from the README', () => {
    for (const { path } of documents.slice(1)) expect(documents[0]!.text).toContain(`](${path}`);
  });

  test('the two commands that come first', () => {
    const [, start, tests] = /## Start[^]*?```sh\n(.+)\n```[^]*?```sh\n(.+)\n```/.exec(documents[0]!.text)!;
    expect([start, tests]).toEqual(['npm ci && npm start', 'npm ci && npm test']);
  });

  test('npm scripts', () => {
    const { scripts } = JSON.parse(read('package.json')) as { scripts: Record<string, string> };
    const named = new Set([...all.matchAll(/npm run (?:--\w+ )?([\w:]+)/g)].map(([, name]) => name!));
    expect(named.size).toBeGreaterThan(5);
    for (const name of [...named, 'start', 'test']) expect(Object.keys(scripts)).toContain(name);
  });

  test('options of the command line', () => {
    const uses = [...all.matchAll(/flashmla-web ([a-z]+)((?: [^\n`#]*)?)/g)].filter(([, command]) => command! in USAGES);
    expect(new Set(uses.map(([, command]) => command))).toEqual(new Set(Object.keys(USAGES)));
    for (const [use, command, rest] of uses) {
      for (const [option] of rest!.matchAll(/(?<![\w-])--?[a-z][a-z-]*/g)) expect(USAGES[command!], use).toMatch(new RegExp(`${option}\\b`));
    }
  });

  test('every other option', () => {
    const sources = [...Object.values(USAGES), ...['src/cli/run.ts', 'demo/start.ts', 'test/software-adapter.ts', 'test/bench/hardware.ts', 'test/bench/peers.ts'].map(read)].join('\n');
    for (const [option] of all.matchAll(/(?<=[`\s])--[a-z][a-z-]*(?:=\w+)?/g)) expect(sources, option).toContain(option);
  });

  test('paths and variables of the environment', () => {
    for (const [, path] of all.matchAll(/`((?:src|test|demo|shaders|native-cuda|\.ci)\/[\w./-]*)`/g)) {
      if (!path!.includes('NAME')) expect(existsSync(join(root, path!)), path).toBe(true);
    }
    const sources = ['test/software-adapter.ts', 'src/tune-file.ts', 'test/gpu/tier.ts'].map(read).join('\n');
    for (const [name] of all.matchAll(/FLASHMLA_[A-Z_]+/g)) expect(sources, name).toContain(name);
  });

  test('every error code, with what to do', () => {
    const codes = [...read('src/errors.ts').matchAll(/^ {2}\| '([a-z-]+)'/gm)].map(([, code]) => code!);
    expect(codes.length).toBeGreaterThan(10);
    const rows = [...read('demo/docs/troubleshooting.md').matchAll(/^\| `([a-z-]+)` \| \S/gm)].map(([, code]) => code!);
    expect(rows).toEqual(codes);
  });
});
