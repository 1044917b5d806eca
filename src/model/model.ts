/**
 * A DeepSeek model on a device: config, tokenizer and weights from a folder, a URL or dropped files, and text out of it.
 *
 * ```ts
 * const model = await loadModel(mla, urlSource('https://example.org/model/'), { onProgress });
 * for await (const text of model.generate('Once upon a time')) show(text);
 * ```
 */
import { MlaError, describe } from '../errors.ts';
import type { Mla } from '../mla.ts';
import { checkRuns } from '../run-ops.ts';
import { Checkpoint, type LoadProgress } from './checkpoint.ts';
import { parseConfig, type DeepSeekConfig } from './config.ts';
import { Decoder } from './decoder.ts';
import { Engine } from './engine.ts';
import { modelInfo, type ModelInfo } from './info.ts';
import { generateText, type GenerateOptions } from './generate.ts';
import { ModelText } from './model-text.ts';
import { decoderShape, loadWeights, type LoadOptions } from './load.ts';
import { readJson, type ModelSource } from './source.ts';
import { Tokenizer } from './tokenizer.ts';
import { decoderWeights, tensorSpecs } from './weights.ts';

export interface ModelOptions extends LoadOptions {
  /** Blocks of 64 tokens that all texts under way share; enough for 4,096 tokens when absent. */
  readonly numBlocks?: number;
  /** Most tokens a step: a prompt's chunk and the running texts' next ones; 128 when absent. */
  readonly maxTokens?: number;
  readonly onProgress?: (progress: LoadProgress) => void;
  readonly signal?: AbortSignal;
}

const NUM_BLOCKS = 64;
const BLOCK_TOKENS = 64;
const MAX_TOKENS = 128;

export class Model {
  readonly config: DeepSeekConfig;
  readonly info: ModelInfo;
  readonly tokenizer: Tokenizer;
  readonly decoder: Decoder;
  readonly engine: Engine;

  constructor(config: DeepSeekConfig, tokenizer: Tokenizer, decoder: Decoder) {
    this.config = config;
    this.info = modelInfo(config);
    this.tokenizer = tokenizer;
    this.decoder = decoder;
    this.engine = new Engine(decoder, decoder.maxTokens);
  }

  /** Pieces of text as they come; several at once share steps. @throws MlaError invalid-argument, pool-exhausted, aborted, device-lost */
  generate(prompt: string, options?: GenerateOptions): AsyncGenerator<string, void, undefined> {
    return generateText(this.engine, this.tokenizer, new Set(this.config.eosTokenIds), prompt, options);
  }

  /** A text that stays in the cache until it is ended, and that can be forked. @throws MlaError invalid-argument, pool-exhausted, aborted, destroyed */
  begin(prompt: string, options?: GenerateOptions): ModelText {
    return ModelText.begin({ engine: this.engine, tokenizer: this.tokenizer, eos: new Set(this.config.eosTokenIds) }, prompt, options);
  }

  /** Ends what is under way and frees all. Idempotent. */
  destroy(): void {
    this.engine.destroy();
    this.decoder.destroy();
  }
}

/**
 * Streams a checkpoint to the device, tensor by tensor.
 *
 * On webgpu and cpu all of a layer runs there. On cuda attention and append do, and the rest on the host (src/cuda/hand-over.ts):
 * right, and slow; where the machine's WebGPU reaches the same GPU, that is the backend for models. Cuda has kernels for
 * DeepSeek's heads only (512 + 64); other models are refused before their weights are read.
 * @throws MlaError invalid-file, unsupported-model, invalid-shape, out-of-memory, limit-exceeded, aborted; nothing stays on the device then
 */
export async function loadModel(mla: Mla, source: ModelSource, options: ModelOptions = {}): Promise<Model> {
  checkOptions(options);
  const config = await readConfig(source, options.signal);
  await checkInstance(mla, config);
  const tokenizer = await Tokenizer.load(source, config.vocabSize, options.signal);
  return new Model(config, tokenizer, await loadDecoder(mla, source, config, options));
}

/** @throws MlaError invalid-file, unsupported-model, aborted */
export async function readConfig(source: ModelSource, signal?: AbortSignal): Promise<DeepSeekConfig> {
  const json = await readJson(source, 'config.json', signal);
  if (json === undefined) throw new MlaError('invalid-file', `there is no such file in ${source.name}`, { argument: 'config.json' });
  return parseConfig(json);
}

/** The model without its tokenizer: ids in, ids or logits out. @throws as `loadModel` */
export async function loadDecoder(mla: Mla, source: ModelSource, config: DeepSeekConfig, options: ModelOptions = {}): Promise<Decoder> {
  checkOptions(options);
  await checkInstance(mla, config);
  const { numBlocks = NUM_BLOCKS, maxTokens = MAX_TOKENS, onProgress, signal } = options;
  const checkpoint = await Checkpoint.open(source, { signal, onProgress, ...(config.fp8Block && { fp8Block: config.fp8Block }) });
  const weights = decoderWeights(config, (name) => checkpoint.has(name));
  checkpoint.expect(tensorSpecs(weights));
  const cache = await mla.createKvCache({
    numBlocks, blockSize: BLOCK_TOKENS, headDim: config.kvLoraRank + config.qkRopeHeadDim, headDimV: config.kvLoraRank, numLayers: config.layers,
  });
  try {
    const loaded = await loadWeights(mla, config, weights, checkpoint, options);
    try {
      return await Decoder.create(mla, decoderShape(config), loaded, cache, maxTokens);
    } catch (error) {
      for (const tensor of loaded.tensors) tensor.destroy();
      throw error;
    }
  } catch (error) {
    cache.destroy();
    throw error;
  }
}

/** @throws MlaError unsupported-model, backend-unavailable, destroyed */
async function checkInstance(mla: Mla, { heads, kvLoraRank, qkRopeHeadDim }: DeepSeekConfig): Promise<void> {
  try {
    await checkRuns(mla, { b: 1, sQ: 1, hQ: heads, hKv: 1, dQk: kvLoraRank + qkRopeHeadDim, dV: kvLoraRank, blockSize: BLOCK_TOKENS, dtype: 'bf16' });
  } catch (cause) {
    if (!(cause instanceof MlaError) || cause.code !== 'limit-exceeded') throw cause;
    const { expected, got } = cause;
    throw new MlaError('unsupported-model', `backend ${mla.info.backend} has no attention for this model: ${cause.message}`, {
      argument: 'mla', ...(expected !== undefined && { expected }), ...(got !== undefined && { got }), cause,
    });
  }
}

function checkOptions({ weights = 'bf16', maxTokens = 1 }: ModelOptions): void {
  if (weights !== 'bf16' && weights !== 'int8') throw new MlaError('invalid-argument', 'no such form of weights', { argument: 'weights', expected: "'bf16' or 'int8'", got: describe(weights) });
  if (!Number.isSafeInteger(maxTokens) || maxTokens < 1) throw new MlaError('invalid-argument', 'out of range', { argument: 'maxTokens', expected: 'an integer >= 1', got: describe(maxTokens) });
}
