/** `flashmla-web generate`: text from a DeepSeek model, as it comes. */
import { MlaError, describe, type MlaErrorCode } from '../errors.ts';
import { checkGenerateOptions, type GenerateOptions } from '../model/generate.ts';
import { folderSource } from '../model/folder-source.ts';
import type { ModelInfo } from '../model/info.ts';
import { loadModel, type Model } from '../model/model.ts';
import type { ModelSource } from '../model/source.ts';
import { hubSource, urlSource } from '../model/url-source.ts';
import type { Mla } from '../mla.ts';
import { openMla, type Context, type MlaChoice, type Output } from './context.ts';
import { oneLine, usageError } from './failure.ts';
import { MLA_OPTIONS, Options } from './options.ts';
import { progress, type Progress } from './progress.ts';
import { figure } from './stats.ts';

export const GENERATE_USAGE = `Usage: flashmla-web generate MODEL --prompt TEXT [options]

MODEL is a Hugging Face folder of a deepseek_v2 or deepseek_v3 model (config.json, safetensors, tokenizer.json): a path, a URL,
or hub:owner/name for the hub.

      --prompt TEXT       what the text begins with
      --max-tokens N      64 when absent
      --temperature T     0 (default): always the most likely token
      --top-k N           only the N most likely
      --top-p P           only the most likely that together have this probability
      --repetition-penalty R  above 1: tokens that came already are less likely
      --seed N            of the random numbers
      --stop TEXT         ends the text when it comes
      --weights FORM      bf16 (default) or int8
      --context N         tokens that there is room for; 4096 when absent
      --backend NAME      auto (default: webgpu, else cpu), webgpu, cpu, or cuda, which runs attention and leaves the rest to the host
      --tier NAME         webgpu: kernel tier
      --dawn TOGGLES      webgpu: toggles for Dawn in place of the usual ones, as one argument
      --json              text and figures as JSON

Exit status: 0 done, 2 bad input, 1 any other failure.
`;

/** What says that a backend does not exist here. */
const UNAVAILABLE: readonly MlaErrorCode[] = ['backend-unavailable', 'missing-dependency'];

/** Loading is shown in thousandths. */
const STEPS = 1000;

/** @throws MlaError */
export async function generate(args: readonly string[], context: Context): Promise<number> {
  const options = new Options(args, {
    ...MLA_OPTIONS,
    prompt: { type: 'string' }, 'max-tokens': { type: 'string' }, temperature: { type: 'string' }, 'top-k': { type: 'string' }, 'top-p': { type: 'string' },
    'repetition-penalty': { type: 'string' }, seed: { type: 'string' }, stop: { type: 'string' }, weights: { type: 'string' }, context: { type: 'string' }, json: { type: 'boolean' },
  });
  if (options.flag('help')) {
    context.stdout.write(GENERATE_USAGE);
    return 0;
  }
  const [name, ...rest] = options.positionals;
  if (name === undefined || rest.length > 0) throw usageError('takes one model', 'generate', 'MODEL --prompt TEXT', describe(options.positionals));
  const prompt = options.text('prompt');
  if (prompt === undefined) throw usageError('is missing', '--prompt', 'a text');
  const weights = options.text('weights') ?? 'bf16';
  if (weights !== 'bf16' && weights !== 'int8') throw usageError('is not a form of weights', '--weights', 'bf16 or int8', describe(weights));
  const numBlocks = Math.ceil((options.integer('context', 1) ?? 4096) / 64);
  const sampling = readSampling(options);
  const choice = options.mla();
  const json = options.flag('json');

  const { mla, reason } = await openForModel(context, choice);
  let model: Model | undefined;
  try {
    const started = performance.now();
    model = await load(mla, sourceOf(name), { weights, numBlocks }, context);
    const loadMs = performance.now() - started;
    const { text, tokens, promptMs, ms } = await run(model, prompt, sampling, json ? undefined : context.stdout);
    if (context.stdout.refused) return 0;
    const perSecond = tokens > 1 ? (1000 * (tokens - 1)) / ms : NaN;
    if (json) {
      const { backend, device, tier } = mla.info;
      const { cacheBytesPerToken, perHeadCacheBytesPerToken, cacheRatio } = model.info;
      context.stdout.write(`${JSON.stringify({ model: name, backend, reason, device, tier: tier ?? null, cacheBytesPerToken, perHeadCacheBytesPerToken, cacheRatio, prompt, text, tokens, loadMs, firstTokenMs: promptMs, tokensPerSecond: Number.isFinite(perSecond) ? perSecond : null }, null, 1)}\n`);
    } else {
      context.stdout.write('\n');
      context.stderr.write(`${tokens} tokens; the first after ${figure(promptMs)} ms${Number.isFinite(perSecond) ? `, then ${figure(perSecond)} tokens a second` : ''} (${mla.info.device}, ${mla.info.backend}: ${reason})\n`);
      context.stderr.write(`${cacheLine(model.info)}\n`);
    }
    return 0;
  } finally {
    model?.destroy();
    await mla.destroy();
  }
}

/** `auto` means another order here than elsewhere: cuda's kernels are attention's alone. @throws MlaError */
async function openForModel(context: Context, choice: MlaChoice): Promise<{ mla: Mla; reason: string }> {
  if (choice.backend !== 'auto') return { mla: await openMla(context, choice), reason: 'asked for' };
  try {
    return { mla: await openMla(context, { ...choice, backend: 'webgpu' }), reason: 'auto took webgpu, which runs all of a layer on the device; cuda runs attention alone' };
  } catch (error) {
    // A tier is one of webgpu's.
    if (choice.tier !== undefined || !(error instanceof MlaError) || !UNAVAILABLE.includes(error.code)) throw error;
    return { mla: await openMla(context, { ...choice, backend: 'cpu' }), reason: `auto took cpu; no webgpu: ${oneLine(error)}` };
  }
}

function cacheLine({ cacheBytesPerToken, cacheBytesPerTokenAndLayer, perHeadCacheBytesPerToken, cacheRatio }: ModelInfo): string {
  const bytes = (count: number): string => `${count.toLocaleString('en-US')} B`;
  return `cache: ${bytes(cacheBytesPerToken)} a token (${bytes(cacheBytesPerTokenAndLayer)} a layer); keys and values of every head would take ${bytes(perHeadCacheBytesPerToken)}, ${figure(cacheRatio)} times that`;
}

function readSampling(options: Options): GenerateOptions {
  const [temperature, topP, repetitionPenalty] = [options.number('temperature'), options.number('top-p'), options.number('repetition-penalty')];
  const [topK, seed, stop] = [options.integer('top-k', 0), options.integer('seed', 0), options.text('stop')];
  const sampling: GenerateOptions = {
    maxTokens: options.integer('max-tokens', 1) ?? 64,
    ...(temperature !== undefined && { temperature }), ...(topP !== undefined && { topP }), ...(repetitionPenalty !== undefined && { repetitionPenalty }),
    ...(topK !== undefined && { topK }), ...(seed !== undefined && { seed }), ...(stop !== undefined && { stop: [stop] }),
  };
  // Here already: a model that is fetched first may be of many gigabytes.
  checkGenerateOptions(sampling, (name) => `--${name.replace(/[A-Z]/g, (letter) => `-${letter.toLowerCase()}`)}`);
  return sampling;
}

function sourceOf(name: string): ModelSource {
  if (/^https?:\/\//.test(name)) return urlSource(name);
  return name.startsWith('hub:') ? hubSource(name.slice(4)) : folderSource(name);
}

async function load(mla: Mla, source: ModelSource, options: { weights: 'bf16' | 'int8'; numBlocks: number }, { stderr }: Context): Promise<Model> {
  let bar: Progress | undefined;
  let shown = 0;
  try {
    return await loadModel(mla, source, {
      ...options,
      onProgress: ({ loadedBytes, totalBytes, tensor }) => {
        bar ??= progress(stderr, STEPS);
        bar.label(tensor);
        const at = Math.floor((STEPS * loadedBytes) / totalBytes);
        bar.advance(at - shown);
        shown = at;
      },
    });
  } finally {
    bar?.stop();
  }
}

async function run(model: Model, prompt: string, sampling: GenerateOptions, shown: Output | undefined): Promise<{ text: string; tokens: number; promptMs: number; ms: number }> {
  const started = performance.now();
  let first = started;
  let last = started;
  let tokens = 0;
  let text = '';
  const onToken = (): void => {
    last = performance.now();
    if (tokens++ === 0) first = last;
  };
  for await (const piece of model.generate(prompt, { ...sampling, onToken })) {
    text += piece;
    shown?.write(piece);
    if (shown?.refused) break;
  }
  return { text, tokens, promptMs: first - started, ms: last - first };
}
