/** The package as users get it: packed, installed into bare projects outside this repository, and used there. */
import { mkdtemp, readFile, readdir, rename, rm } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { chromium } from 'playwright-core';
import { preview } from 'vite';
import { afterAll, beforeAll, describe, expect, test } from 'vitest';
import type { BackendReport } from '../src/node.ts';
import { decodeArgs, makeCase } from './cases.ts';
import { expectRight } from './check.ts';
import { checkBuilt } from './package/built.ts';
import { Project, npm, root, type Ended } from './package/project.ts';
import { adapterChoice, chromiumLaunchOptions } from './software-adapter.ts';
import { unpack } from './unpack.ts';

/** What the projects' programs print or return. */
interface Decoded {
  readonly backend: string;
  readonly reason: string;
  readonly out: number[];
  readonly lse: number[];
}
interface Refused {
  readonly code: string;
  readonly message: string;
}

const c = makeCase({ b: 2, sQ: 1, sK: 0, seqlens: [37, 20], hQ: 3, dV: 32, rope: 16, blockSize: 16 });
const args = decodeArgs(c);
/** The case as plain data. */
const plainCase = {
  q: [...c.q], qShape: [...args.q.shape], kvCache: [...c.kvCache], kvShape: [...args.kvCache.shape], dtype: c.dtype,
  blockTable: [...c.blockTable], cacheSeqlens: [...c.cacheSeqlens], headDimV: c.dV,
};

interface Packed {
  readonly filename: string;
  readonly size: number;
  readonly unpackedSize: number;
  readonly files: readonly { readonly path: string }[];
}

let packDir: string;
let packed: Packed;
let tarball: string;

beforeAll(async () => {
  checkBuilt();
  packDir = await mkdtemp(join(tmpdir(), 'flashmla-pack-'));
  // Without its scripts: one of them is the build.
  [packed] = JSON.parse(await npm(root, 'pack', '--ignore-scripts', '--json', '--pack-destination', packDir)) as [Packed];
  tarball = join(packDir, packed.filename);
});

afterAll(async () => {
  if (packDir) await rm(packDir, { recursive: true, force: true });
});

describe('the tarball', () => {
  test('holds what it should and nothing else', async () => {
    const files = packed.files.map((file) => file.path);
    const allowed = /^(LICENSE|README\.md|package\.json|dist\/(index|node|worker|cli)\.js(\.map)?|dist\/chunks\/[^/]+\.js(\.map)?|dist\/cuda\/([a-z_]+\.cubin|manifest\.json)|dist\/types\/.+\.d\.ts|demo\/docs\/\w+\.(md|svg)|(shaders|native-cuda)\/README\.md)$/;
    expect(files.filter((file) => !allowed.test(file))).toEqual([]);
    expect(files).toEqual(expect.arrayContaining(['LICENSE', 'README.md', 'package.json']));
    // What the README points to comes with it.
    const links = [...(await readFile(join(root, 'README.md'), 'utf8')).matchAll(/\]\(([\w./-]+)(?:#[\w-]*)?\)/g)].map(([, path]) => path!);
    expect(links.length).toBeGreaterThan(5);
    expect(files).toEqual(expect.arrayContaining(links));

    const { exports, bin } = JSON.parse(await readFile(join(root, 'package.json'), 'utf8')) as { exports: Record<string, string | Record<string, string>>; bin: Record<string, string> };
    const named = [...Object.values(exports), bin].flatMap((value) => (typeof value === 'string' ? value : Object.values(value)));
    expect(files).toEqual(expect.arrayContaining(named.map((path) => path.replace('./', ''))));
  });

  test('is small', () => {
    expect(packed.size).toBeLessThan(1e6);
    expect(packed.unpackedSize).toBeLessThan(3e6);
  });
});

describe('in a plain Node project', () => {
  let project: Project;

  beforeAll(async () => {
    project = await Project.create(tarball, 'plain');
    await project.write('case.json', JSON.stringify(plainCase));
    await rename(join(project.dir, 'consumer.ts.txt'), join(project.dir, 'consumer.ts'));
  });
  afterAll(() => project?.remove());

  /** Runs main.mjs; a program that does not end by itself fails. */
  async function decode(entry: string, backend: string, vulkan?: Vulkan): Promise<Decoded | Refused> {
    const ended = await project.node([...(vulkan?.options ?? []), 'main.mjs', entry, backend], vulkan?.env);
    expect(ended).toMatchObject({ status: 0, stderr: '' });
    return JSON.parse(ended.stdout) as Decoded | Refused;
  }

  test('brings comlink and nothing else', async () => {
    const installed = await readdir(join(project.dir, 'node_modules'));
    expect(installed.filter((name) => !name.startsWith('.')).sort()).toEqual(['comlink', 'flashmla-web']);
  });

  test.each(['flashmla-web', 'flashmla-web/node', 'flashmla-web/worker'])('%s decodes on the cpu', async (entry) => {
    const decoded = (await decode(entry, 'cpu')) as Decoded;
    expect(decoded).toMatchObject({ backend: 'cpu', reason: 'asked for' });
    expectRight(c, decoded);
  });

  test('webgpu names the package that is missing; auto goes on without it', async () => {
    const refused = (await decode('flashmla-web/node', 'webgpu')) as Refused;
    expect(refused.code).toBe('missing-dependency');
    expect(refused.message).toMatch(/"webgpu".*npm install webgpu/);
    const decoded = (await decode('flashmla-web/node', 'auto')) as Decoded;
    expect(decoded.backend).toBe('cpu');
    expect(decoded.reason).toMatch(/auto took cpu.*no webgpu.*npm install webgpu/);
    expectRight(c, decoded);
  });

  test('npx flashmla-web runs', async () => {
    const report = JSON.parse(await npm(project.dir, 'exec', '--no', '--', 'flashmla-web', 'doctor', '--json')) as Report;
    expect(report.auto.backend).toBe('cpu');
    expect(report.backends.find((b) => b.backend === 'webgpu')).toMatchObject({ available: false, reason: expect.stringContaining('npm install webgpu') as string });
    expect(report.backends.find((b) => b.backend === 'cpu')).toMatchObject({ available: true });
  });

  describe('strict TypeScript', () => {
    const always = { strict: true, target: 'es2022', noEmit: true, types: [] };
    test.each([
      ['module nodenext', { module: 'nodenext' }],
      ['moduleResolution bundler', { module: 'esnext', moduleResolution: 'bundler' }],
    ])('compiles with %s', async (name, options) => {
      const config = `tsconfig.${name.replace(' ', '-')}.json`;
      await project.write(config, JSON.stringify({ compilerOptions: { ...always, ...options, skipLibCheck: false }, files: ['consumer.ts'] }));
      const tsc = join(root, 'node_modules', 'typescript', 'bin', 'tsc');
      expect(await project.node([tsc, '-p', config])).toEqual({ status: 0, stdout: '', stderr: '' });
    });
  });

  // Last: what it links stays.
  describe('with npm webgpu', () => {
    let vulkan: Vulkan;

    beforeAll(async () => {
      await project.link('webgpu');
      vulkan = await vulkanFor(project);
    });

    test.each(['flashmla-web/node', 'flashmla-web/worker'])('%s decodes on webgpu', async (entry) => {
      const decoded = (await decode(entry, 'webgpu', vulkan)) as Decoded;
      expect(decoded).toMatchObject({ backend: 'webgpu', reason: 'asked for' });
      expectRight(c, decoded);
    });

    test('doctor finds it', async () => {
      const ended: Ended = await project.node([...vulkan.options, join('node_modules', 'flashmla-web', 'dist', 'cli.js'), 'doctor', '--json'], vulkan.env);
      expect(ended).toMatchObject({ status: 0, stderr: '' });
      const report = JSON.parse(ended.stdout) as Report;
      expect(report.backends.find((b) => b.backend === 'webgpu')).toMatchObject({ available: true });
    });
  });
});

interface Report {
  readonly backends: readonly BackendReport[];
  readonly auto: { readonly backend: string };
}

/** What Node needs so that Dawn finds an adapter in a process of its own; see software-adapter.ts. */
interface Vulkan {
  readonly options: readonly string[];
  readonly env: Readonly<Record<string, string>>;
}

async function vulkanFor(project: Project): Promise<Vulkan> {
  if (adapterChoice() === 'system') return { options: [], env: {} };
  await project.link('koffi');
  const dir = await unpack('swiftshader', ['swiftshader.tar.br']);
  const driver = join(dir, 'vk_swiftshader_icd.json');
  return { options: ['--import', './vulkan.mjs'], env: { VK_ICD_FILENAMES: driver, VK_DRIVER_FILES: driver, FLASHMLA_LIBVULKAN: join(dir, 'libvulkan.so.1') } };
}

describe('in a Vite project', () => {
  let project: Project;
  let said: Ended;

  beforeAll(async () => {
    project = await Project.create(tarball, 'vite');
    await project.link('vite');
    // As `vite build` with no configuration; the maps tell which modules are in it.
    said = await project.node([join('node_modules', 'vite', 'bin', 'vite.js'), 'build', '--sourcemap']);
  });
  afterAll(() => project?.remove());

  test('builds, with nothing in it that only Node has', async () => {
    expect(said).toMatchObject({ status: 0, stderr: '' });
    expect(said.stdout).not.toMatch(/warn|externalized/i);

    const assets = join(project.dir, 'dist', 'assets');
    const names = await readdir(assets);
    const read = (name: string): Promise<string> => readFile(join(assets, name), 'utf8');
    const maps = await Promise.all(names.filter((n) => n.endsWith('.map')).map(read));
    const modules = maps.flatMap((map) => (JSON.parse(map) as { sources: string[] }).sources).map((path) => path.replace(/^(\.\.\/)+/, ''));
    expect(modules).toEqual(expect.arrayContaining(['main.js', 'worker.js', 'node_modules/flashmla-web/dist/worker.js']));
    // Vite puts modules of its own (`__vite-...`) in the places of Node's and of optional peers that are missing.
    const known = /^(main\.js|worker\.js|decode-case\.js|node_modules\/(comlink|flashmla-web\/dist)\/.+)$/;
    expect(modules.filter((path) => !known.test(path))).toEqual([]);
    for (const name of names.filter((n) => n.endsWith('.js'))) {
      const code = await read(name);
      expect(code).not.toMatch(/\b(from|import|require)\s*\(?\s*["'`](node:|koffi|webgpu)/);
    }
  });

  test('decodes on webgpu in Chromium, on the page and in a worker', async () => {
    const server = await preview({ root: project.dir, configFile: false, logLevel: 'error', preview: { host: '127.0.0.1', port: 0 } });
    const browser = await chromium.launch(await chromiumLaunchOptions());
    try {
      const page = await browser.newPage();
      page.setDefaultTimeout(250_000);
      const errors: string[] = [];
      page.on('pageerror', (error) => errors.push(error.message));
      page.on('console', (message) => message.type() === 'error' && errors.push(message.text()));
      await page.goto(server.resolvedUrls!.local[0]!);
      await page.locator('body', { hasText: 'ready' }).waitFor();
      for (const where of ['page', 'worker'] as const) {
        const decoded = await page.evaluate(([place, data]) => decodeOn(place, data), [where, plainCase] as const);
        expect(decoded).toMatchObject({ backend: 'webgpu', reason: 'asked for' });
        expectRight(c, decoded);
      }
      expect(errors).toEqual([]);
    } finally {
      await browser.close();
      await server.close();
    }
  });
});

declare global {
  /** vite/main.js puts it there. */
  var decodeOn: (where: 'page' | 'worker', c: typeof plainCase) => Promise<Decoded>;
}
