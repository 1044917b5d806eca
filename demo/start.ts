/**
 * `npm start`: decodes a small ragged batch on the best backend of this machine, checks it against float64, says how
 * long it took, and serves the demo. `--no-serve` stops before the last.
 */
import { execFileSync } from 'node:child_process';
import { fileURLToPath } from 'node:url';
import type { Mla } from '../src/mla.ts';
import { costOf, BLOCK_SIZE, D_QK, D_V, type Step } from './kernel/shape.ts';
import { bytes, digits, flops, milliseconds, plural, scientific } from './site/format.ts';
import { measure } from './kernel/measure.ts';
import { TokenStore } from './kernel/token-store.ts';
import { COSINE_TOLERANCE, LSE_TOLERANCE, OUT_TOLERANCE, type CheckReport } from './kernel/check.ts';
import { poolBlocks } from './kernel/batch.ts';

const LENGTHS = [1024, 257, 64, 700];
const STEP: Step = { heads: 16, sQ: 1, causal: false };

interface Choice {
  readonly mla: Mla;
  readonly reason: string;
}

const PACKAGE = new URL('../dist/node.js', import.meta.url).href;

/** The best that auto finds; with no GPU, the kernels on a software adapter; else the cpu backend. */
async function choose(): Promise<Choice> {
  const { createMla } = (await import(PACKAGE)) as typeof import('../src/node.ts');
  if (look() !== 'cpu') {
    // Tuning in the background would be in the figures.
    const mla = await createMla({ tune: 'stored' });
    return { mla, reason: mla.info.reason };
  }
  try {
    const { softwareGpu } = await import('../test/software-adapter.ts');
    const mla = await createMla({ backend: 'webgpu', gpu: await softwareGpu() });
    return { mla, reason: 'no GPU found here, so the WGSL kernels run on a software adapter' };
  } catch (error) {
    return { mla: await createMla({ backend: 'cpu' }), reason: `no GPU found here, and no software adapter: ${(error as Error).message}` };
  }
}

/**
 * The backend that auto takes, asked in a process of its own: where there is no GPU, Dawn says so on stderr, and a
 * process that has loaded one Vulkan keeps it.
 */
function look(): string {
  const program = `import { writeSync } from 'node:fs';
    import { createMla } from ${JSON.stringify(PACKAGE)};
    writeSync(1, (await createMla()).info.backend);
    process.exit(0);`;
  try {
    return execFileSync(process.execPath, ['--input-type=module', '--eval', program], { encoding: 'utf8', stdio: ['ignore', 'pipe', 'ignore'], timeout: 60_000 });
  } catch {
    return 'cpu';
  }
}

function say(name: string, text: string): void {
  console.log(`${name.padEnd(10)} ${text}`);
}

/** @returns whether the check passed */
async function decodeSample({ mla, reason }: Choice): Promise<boolean> {
  const { info } = mla;
  say('backend', `${info.backend}${info.tier === undefined ? '' : `, ${info.tier} tier`}${info.software && info.backend !== 'cpu' ? ', software adapter' : ''}`);
  say('device', info.device);
  say('why', reason);

  const store = new TokenStore();
  const cache = await mla.createKvCache({ numBlocks: poolBlocks(LENGTHS), blockSize: BLOCK_SIZE, headDim: D_QK, headDimV: D_V });
  const sequences = LENGTHS.map(() => cache.createSequence());
  const tokens = LENGTHS.reduce((sum, n) => sum + n, 0);
  await cache.append({ sequences, counts: LENGTHS, latent: { data: store.append(sequences, LENGTHS), shape: [tokens, 1, D_QK], dtype: 'bf16' } });
  const cacheSeqlens = cache.cacheSeqlens(sequences);
  const cost = costOf(STEP, LENGTHS);
  say('batch', `${plural(LENGTHS.length, 'sequence')} of ${LENGTHS.join(', ')} tokens, ${plural(STEP.heads, 'head')}, bf16; ${plural(cache.stats().usedBlocks, 'block')} of ${BLOCK_SIZE}, ${flops(cost.flops)} and ${bytes(cost.bytes)} a call`);

  const { heads, sQ, causal } = STEP;
  const q = await mla.tensor({ data: store.query(LENGTHS.length * sQ * heads), shape: [LENGTHS.length, sQ, heads, D_QK], dtype: 'bf16' });
  const metadata = mla.getMlaMetadata({ cacheSeqlens, numQTokensPerHeadK: sQ * heads, numHeadsK: 1, blockSize: BLOCK_SIZE });
  const args = { q, kvCache: cache.tensor(), blockTable: cache.blockTable(sequences), cacheSeqlens, headDimV: D_V, causal, metadata };
  const { out, lse } = await mla.flashMlaWithKvCache(args);
  const check = store.check({ ...STEP, sequences, out: (await out.readBits()) as Uint16Array, lse: (await lse.read()) as Float32Array });
  sayCheck(check);

  const timing = await measure(mla, () => mla.flashMlaWithKvCache({ ...args, out, lse }));
  const repeated = timing.calls > 1 ? ` × ${timing.calls} calls` : '';
  if (timing.ms > 0) {
    say('time', `${milliseconds(timing.ms)} a call (${timing.source} time, median of ${timing.runs}${repeated}): ${digits(cost.bytes / timing.ms / 1e6)} GB/s, ${digits(cost.flops / timing.ms / 1e9)} TFLOP/s`);
  } else {
    say('time', `under one step of the ${timing.source} clock`);
  }
  return check.pass;
}

function sayCheck(check: CheckReport): void {
  say('check', `${check.pass ? 'pass' : 'FAIL'} against float64, ${plural(check.rows, 'row')}: out off by ${scientific(check.outError)} (allowed ${scientific(OUT_TOLERANCE.abs)} or ${digits(OUT_TOLERANCE.rel * 100)} %), `
    + `lse by ${scientific(check.lseError)} (${scientific(LSE_TOLERANCE.abs)} or ${digits(LSE_TOLERANCE.rel * 100)} %), cosine distance ${scientific(check.cosine)} (${scientific(COSINE_TOLERANCE)})`);
  if (check.fault !== undefined) say('', check.fault);
}

async function serveDemo(): Promise<void> {
  const { createServer } = await import('vite');
  const server = await createServer({
    root: fileURLToPath(new URL('.', import.meta.url)),
    configFile: fileURLToPath(new URL('../vite.config.ts', import.meta.url)),
    mode: 'demo', logLevel: 'warn', clearScreen: false,
    server: { host: '127.0.0.1', port: 5173 },
  });
  await server.listen();
  const url = server.resolvedUrls?.local[0] ?? `http://127.0.0.1:${server.config.server.port}/`;
  say('demo', `${url}   (Ctrl-C ends it)`);
  const end = (): void => void server.close().finally(() => process.exit(0));
  process.once('SIGINT', end);
  process.once('SIGTERM', end);
}

const unknown = process.argv.slice(2).find((argument) => argument !== '--no-serve');
if (unknown !== undefined) {
  console.error(`start: unknown argument ${unknown}; there is only --no-serve`);
  process.exit(2);
}
let passed = false;
try {
  const choice = await choose();
  try {
    passed = await decodeSample(choice);
  } finally {
    await choice.mla.destroy();
  }
} catch (error) {
  console.error(`start: ${(error as Error).message}`);
}
if (passed && !process.argv.includes('--no-serve')) await serveDemo();
else await leave(passed ? 0 : 1);

/** Dawn's instance would keep the process; what was printed goes out first. */
async function leave(code: number): Promise<never> {
  await new Promise<void>((resolve) => process.stdout.write('', () => resolve()));
  process.exit(code);
}
