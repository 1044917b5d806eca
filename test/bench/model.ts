/**
 * `npm run bench:model -- MODEL`: tokens a second of a DeepSeek model in a folder: the wall time of a greedy decode step of one
 * text, chosen id read back, at each of some contexts. Medians. Exit 2 for bad arguments.
 *
 *   --backend NAME         webgpu (default), cuda or cpu
 *   --contexts 64,4096     tokens in the cache, the step's own included
 *   --adapter system       webgpu: the machine's own GPU in place of SwiftShader
 *   --weights FORM         bf16 (default) or int8
 *   --runs N               timed steps at each context (15)
 *   --json FILE
 *
 * Prompts are ids without meaning, fed in chunks; after each step the sequence is cut back, so that all of them see the same
 * context. Attention is measured by itself: the time of one call at that context (`Mla.time`) times the layers.
 * A model without a tokenizer gets that of the tests: no text is made here.
 */
import { existsSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { parseArgs } from 'node:util';
import { median } from '../../src/median.ts';
import type { BackendName, Mla } from '../../src/mla.ts';
import type { Model } from '../../src/model/model.ts';
import type { ModelSource } from '../../src/model/source.ts';
import { adapterChoice, softwareGpu } from '../software-adapter.ts';

type Package = typeof import('../../src/node.ts');

interface Row {
  readonly context: number;
  /** Milliseconds of a step. */
  readonly ms: number;
  readonly tokensPerSecond: number;
  /** Milliseconds of a token of the prompt before. */
  readonly promptMsPerToken: number;
  /** Milliseconds of attention in all layers; `Mla.time` says how it is measured. */
  readonly attentionMs: number;
  readonly attentionSource: 'device' | 'wall';
}

const WARM_UP = 3;
const GREEDY = { temperature: 0, topK: 0, topP: 1, repetitionPenalty: 1, random: 0, seen: [] } as const;

const { values: options, positionals } = readArguments();

function readArguments() {
  try {
    return parseArgs({
      allowPositionals: true,
      options: {
        backend: { type: 'string', default: 'webgpu' }, contexts: { type: 'string', default: '64,4096' }, adapter: { type: 'string' },
        weights: { type: 'string', default: 'bf16' }, runs: { type: 'string', default: '15' }, json: { type: 'string' },
      },
    });
  } catch (error) {
    return usage((error as Error).message);
  }
}

function usage(problem: string): never {
  console.error(`bench:model: ${problem}`);
  process.exit(2);
}

function positive(name: string, text: string): number {
  const n = Number(text);
  return Number.isInteger(n) && n > 0 ? n : usage(`${name}: expected a positive integer, got ${text}`);
}

function oneOf<T extends string>(name: string, text: string, choices: readonly T[]): T {
  return choices.find((choice) => choice === text) ?? usage(`${name}: expected ${choices.join(' or ')}, got ${text}`);
}

/** The built package, as a user has it. Its types come from the source, so that type checks need no build. */
async function builtPackage(): Promise<Package> {
  const url = new URL('../../dist/node.js', import.meta.url);
  if (!existsSync(fileURLToPath(url))) usage('dist/node.js is missing: run npm run build first');
  return import(url.href) as Promise<Package>;
}

/** The folder, with the tests' tokenizer where it has none. */
function sourceOf({ folderSource }: Package, folder: string): ModelSource {
  const own = folderSource(folder);
  if (existsSync(join(folder, 'tokenizer.json'))) return own;
  const tests = folderSource(join(import.meta.dirname, '../model'));
  const of = (file: string): ModelSource => (file === 'tokenizer.json' ? tests : own);
  return { name: own.name, size: (file, signal) => of(file).size(file, signal), read: (file, range) => of(file).read(file, range) };
}

async function instance({ createMla }: Package, backend: BackendName): Promise<Mla> {
  // What flashmla-web tune has found is used; nothing is measured in the background.
  return createMla({ backend, tune: 'stored', ...(backend === 'webgpu' && adapterChoice() === 'swiftshader' && { gpu: await softwareGpu() }) });
}

/** Median of what `once` gives, after rounds that warm up. */
async function medianOf(runs: number, once: () => Promise<number>): Promise<number> {
  const all: number[] = [];
  for (let i = -WARM_UP; i < runs; i++) {
    const taken = await once();
    if (i >= 0) all.push(taken);
  }
  return median(all);
}

async function wallOf(run: () => Promise<unknown>): Promise<number> {
  const start = performance.now();
  await run();
  return performance.now() - start;
}

async function measure(mla: Mla, { decoder, config }: Model, context: number, runs: number): Promise<Row> {
  const { cache, maxTokens } = decoder;
  const sequence = cache.createSequence();
  const id = (at: number): number => (at * 7919 + 13) % config.vocabSize;
  const prompt = context - 1;
  const promptMs = await wallOf(async () => {
    for (let at = 0; at < prompt; at += maxTokens) {
      const ids = Array.from({ length: Math.min(maxTokens, prompt - at) }, (_, i) => id(at + i));
      await decoder.step([{ sequence, ids }], [undefined]);
    }
    await mla.finished();
  });
  let last = id(prompt);
  const ms = await medianOf(runs, () => wallOf(async () => {
    cache.truncate(sequence, prompt);
    const [chosen] = await decoder.step([{ sequence, ids: [last] }], [GREEDY]);
    last = chosen!;
  }));
  const attention = await attentionOf(mla, decoder, sequence, runs);
  cache.free(sequence);
  return {
    context, ms, tokensPerSecond: 1000 / ms, promptMsPerToken: prompt === 0 ? 0 : promptMs / prompt,
    attentionMs: attention.ms * config.layers, attentionSource: attention.source,
  };
}

/** One layer's attention of a step, alone. */
async function attentionOf(mla: Mla, { cache, shape: { dims } }: Model['decoder'], sequence: number, runs: number): Promise<{ ms: number; source: 'device' | 'wall' }> {
  const { heads, kvLoraRank, rope, softmaxScale } = dims;
  const q = await mla.tensor({ data: new Float32Array(heads * (kvLoraRank + rope)).fill(0.1), shape: [1, 1, heads, kvLoraRank + rope], dtype: 'bf16' });
  const blockTable = await mla.tensor(cache.blockTable([sequence]));
  const cacheSeqlens = cache.cacheSeqlens([sequence]);
  const metadata = mla.getMlaMetadata({ cacheSeqlens, numQTokensPerHeadK: heads, numHeadsK: 1, blockSize: cache.blockSize });
  const args = { q, kvCache: cache.tensor(), blockTable, cacheSeqlens, metadata, headDimV: kvLoraRank, softmaxScale };
  const { out, lse } = await mla.flashMlaWithKvCache(args);
  let source: 'device' | 'wall' = 'wall';
  const ms = await medianOf(runs, async () => {
    const timed = await mla.time(() => mla.flashMlaWithKvCache({ ...args, out, lse }));
    source = timed.source;
    return timed.ms;
  });
  for (const tensor of [q, blockTable, out, lse]) tensor.destroy();
  return { ms, source };
}

function printTable(rows: readonly Row[]): void {
  const table = [
    ['context', 'ms/step', 'tokens/s', `attention ms (${rows[0]!.attentionSource})`, 'share', 'prompt ms/token'],
    ...rows.map((r) => [String(r.context), r.ms.toFixed(3), r.tokensPerSecond.toFixed(2), r.attentionMs.toFixed(3), `${((100 * r.attentionMs) / r.ms).toFixed(0)} %`, r.promptMsPerToken.toFixed(3)]),
  ];
  const widths = table[0]!.map((_, i) => Math.max(...table.map((cells) => cells[i]!.length)));
  for (const cells of table) console.log(cells.map((cell, i) => cell.padStart(widths[i]!)).join('  '));
}

async function main(): Promise<void> {
  const [folder, ...rest] = positionals;
  if (folder === undefined || rest.length > 0) usage('expected one folder of a model');
  const backend = oneOf('--backend', options.backend, ['webgpu', 'cuda', 'cpu']);
  const weights = oneOf('--weights', options.weights, ['bf16', 'int8']);
  const contexts = options.contexts.split(',').map((text) => positive('--contexts', text));
  const runs = positive('--runs', options.runs);
  if (options.adapter !== undefined) process.env['FLASHMLA_ADAPTER'] = oneOf('--adapter', options.adapter, ['system', 'swiftshader']);

  const built = await builtPackage();
  const mla = await instance(built, backend);
  const model = await built.loadModel(mla, sourceOf(built, folder), { weights, numBlocks: Math.ceil(Math.max(...contexts) / 64) });
  const { device, tier } = mla.info;
  console.log(`${folder}, ${weights}: ${device}, ${backend}${tier === undefined ? '' : `, tier ${tier}`}; medians of ${runs} steps`);
  const rows: Row[] = [];
  for (const context of contexts) rows.push(await measure(mla, model, context, runs));
  printTable(rows);
  if (options.json !== undefined) {
    writeFileSync(options.json, `${JSON.stringify({ model: folder, info: model.info, weights, backend, device, tier, runs, rows }, null, 2)}\n`);
  }
  model.destroy();
  await mla.destroy();
}

await main();
// Dawn keeps the process alive otherwise.
process.exit(0);
