/**
 * Builds: `vite build` the library, `vite build --mode demo` the site. Tests: vitest reads `test` here; with
 * `--mode cuda` or `--mode gpu` it runs the suite that needs a Hopper GPU or any GPU, and only that.
 */
import { createHash } from 'node:crypto';
import { readFileSync } from 'node:fs';
import { readFile, readdir } from 'node:fs/promises';
import { builtinModules } from 'node:module';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import type { Plugin } from 'vite';
import { defineConfig } from 'vitest/config';
import { PAGES } from './demo/site/pages.ts';
import { serviceWorker } from './demo/site/service-worker.ts';
import { shell } from './demo/site/shell.ts';

const CUBINS = join(import.meta.dirname, 'native-cuda/bin');
/** The model that the site ships. */
const MODEL = join(import.meta.dirname, 'demo/model');
const MODEL_FILE = /^((config|generation_config|tokenizer|tokenizer_config)\.json|model[\w.-]*\.(safetensors|safetensors\.index\.json))$/;

/** The compiled kernels, which `npm run build:cuda` makes, beside the JavaScript that loads them. */
function cubins(): Plugin {
  return {
    name: 'cubins',
    async generateBundle() {
      for (const file of await readdir(CUBINS)) this.emitFile({ type: 'asset', fileName: `cuda/${file}`, source: await readFile(join(CUBINS, file)) });
    },
  };
}

/** The model's files as they are, below model/; the pages know their names, sizes and hashes as MODEL_FILES. */
function modelFiles(): Plugin {
  const files = new Map<string, Buffer>();
  return {
    name: 'model-files',
    async config() {
      for (const name of await readdir(MODEL)) if (MODEL_FILE.test(name)) files.set(name, await readFile(join(MODEL, name)));
      const list = [...files].map(([name, data]) => ({ name, bytes: data.length, hash: createHash('sha256').update(data).digest('hex').slice(0, 16) }));
      // A folder without weights is no model.
      return { define: { MODEL_FILES: JSON.stringify(list.some(({ name }) => name.endsWith('.safetensors')) ? list : []) } };
    },
    generateBundle() {
      for (const [name, source] of files) this.emitFile({ type: 'asset', fileName: `model/${name}`, source });
    },
  };
}

const library = {
  plugins: [cubins()],
  build: {
    target: 'es2022',
    outDir: 'dist',
    emptyOutDir: true,
    minify: false,
    sourcemap: true,
    lib: {
      entry: { index: 'src/index.ts', node: 'src/node.ts', worker: 'src/worker/index.ts', cli: 'src/cli/main.ts' },
      formats: ['es' as const],
    },
    rollupOptions: {
      // What a user installs, or Node brings; everything else is bundled.
      external: [/^node:/, ...builtinModules, 'webgpu', 'koffi', 'comlink'],
      output: { chunkFileNames: 'chunks/[name]-[hash].js' },
    },
  },
};

const demo = {
  root: 'demo',
  base: './',
  publicDir: false as const,
  plugins: [shell(), modelFiles(), serviceWorker()],
  build: {
    target: 'es2022',
    outDir: '../dist/demo',
    emptyOutDir: true,
    rollupOptions: { input: PAGES.map(({ file }) => join(import.meta.dirname, 'demo', file)) },
  },
  worker: { format: 'es' as const },
  // The dev server: sources lie beside the site, and comlink is first met in a worker, too late to be found by itself.
  server: { fs: { allow: ['..'] } },
  optimizeDeps: { include: ['comlink'] },
};

const { version } = JSON.parse(readFileSync(join(import.meta.dirname, 'package.json'), 'utf8')) as { version: string };

export default defineConfig(({ mode }) => ({
  ...(mode === 'demo' ? demo : library),
  define: { PACKAGE_VERSION: JSON.stringify(version) },
  test: {
    include: [mode === 'cuda' || mode === 'gpu' ? `test/${mode}/*.test.ts` : 'test/*.test.ts'],
    // Two at a time: most of a suite's time is a browser's start and a software adapter's compiler, which take one core. GPU suites compute
    // their references on all cores.
    ...(mode !== 'cuda' && mode !== 'gpu' && { maxWorkers: 2 }),
    // What this machine's user has tuned is none of the tests' concern.
    env: { FLASHMLA_CACHE_DIR: join(tmpdir(), `flashmla-test-cache-${process.pid}`) },
    // For machines four times as slow, or busy with something else: a test ends by itself, this ends one that hangs.
    testTimeout: 300_000,
    hookTimeout: 300_000,
  },
}));
