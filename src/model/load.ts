/**
 * A checkpoint's tensors onto the device, a segment at a time: what is read is uploaded and let go of before the next is read.
 * kv_b_proj arrives as the two halves that absorbed attention uses.
 */
import { MlaError } from '../errors.ts';
import { elementCount } from '../backend.ts';
import type { Mla, MlaTensor } from '../mla.ts';
import type { Weight } from '../ops.ts';
import type { DeepSeekConfig, MoeConfig } from './config.ts';
import { idOf } from '../tensor.ts';
import type { Checkpoint, Piece } from './checkpoint.ts';
import type { DecoderShape, LoadedLayer, LoadedWeights } from './decoder.ts';
import type { DenseWeights, MoeWeights } from './ffn.ts';
import type { MlaWeights } from './mla-layer.ts';
import { decode16 } from '../bf16.ts';
import { quantizeRows } from './quantize.ts';
import { splitEvenly, whole, type SplitWeight, type WeightSegment } from './split-weight.ts';
import { splitKvB, type DecoderWeights, type LayerWeights, type MlpWeights, type Stack } from './weights.ts';
import { arrayFor, type ReadArrays, type ReadAs } from './convert.ts';
import { makeRope, ropeAngles } from './yarn.ts';

export interface LoadOptions {
  /** How projections are held: as they are (bf16, default) or int8 with a scale a row. Embeddings, norms and routers stay as they are. */
  readonly weights?: 'bf16' | 'int8';
}

/** @throws MlaError invalid-file, aborted, out-of-memory, limit-exceeded; nothing stays on the device then */
export async function loadWeights(mla: Mla, config: DeepSeekConfig, weights: DecoderWeights, checkpoint: Checkpoint, { weights: form = 'bf16' }: LoadOptions = {}): Promise<LoadedWeights> {
  const upload = new Upload(mla, checkpoint, form);
  try {
    const embed = await upload.table(weights.embed);
    const layers: LoadedLayer[] = [];
    for (const layer of weights.layers) layers.push(await loadLayer(upload, config, layer));
    const norm = await upload.vector(weights.norm);
    const head = weights.lmHead === weights.embed ? embed : await upload.matrix(weights.lmHead);
    return { embed, layers, norm, head, tensors: upload.tensors };
  } catch (error) {
    for (const tensor of upload.tensors) tensor.destroy();
    throw error;
  }
}

/** What a decoder computes with besides weights. */
export function decoderShape(config: DeepSeekConfig): DecoderShape {
  const rope = makeRope(config);
  return {
    vocab: config.vocabSize,
    dims: {
      hidden: config.hiddenSize, heads: config.heads, qLoraRank: config.qLoraRank, kvLoraRank: config.kvLoraRank, nope: config.qkNopeHeadDim,
      rope: config.qkRopeHeadDim, value: config.vHeadDim, eps: config.rmsNormEps, latentEps: config.latentNormEps, softmaxScale: rope.softmaxScale,
    },
    angles: (positions) => ropeAngles(rope, positions),
  };
}

async function loadLayer(upload: Upload, config: DeepSeekConfig, layer: LayerWeights): Promise<LoadedLayer> {
  return {
    attention: await loadAttention(upload, config, layer),
    norm: await upload.vector(layer.postNorm),
    ffn: layer.mlp.kind === 'dense'
      ? { kind: 'dense', weights: await loadMlp(upload, layer.mlp) }
      : { kind: 'moe', weights: await loadMoe(upload, config.moe!, layer.mlp) },
  };
}

async function loadAttention(upload: Upload, { heads, qkNopeHeadDim: nope, vHeadDim: v, kvLoraRank: lora }: DeepSeekConfig, { inputNorm, query, kvA, kvANorm, kvB, o }: LayerWeights): Promise<MlaWeights> {
  const qA = query.kind === 'lora' ? { weight: await upload.matrix(query.a), norm: await upload.vector(query.aNorm) } : undefined;
  const { name } = kvB.parts[0]!;
  const { uk, uv } = splitKvB(await upload.read(kvB, 'bf16'), { heads, nope, v, lora });
  return {
    inputNorm: await upload.vector(inputNorm), qA, q: await upload.matrix(query.kind === 'lora' ? query.b : query.q),
    kvA: await upload.matrix(kvA), kvNorm: await upload.vector(kvANorm),
    uk: await upload.made(uk, [heads, lora, nope], name), uv: await upload.made(uv, [heads, v, lora], name), o: await upload.matrix(o),
  };
}

async function loadMlp(upload: Upload, { gateUp, down }: MlpWeights): Promise<DenseWeights> {
  return { gateUp: await upload.matrix(gateUp), down: await upload.matrix(down), width: down.shape[1]! };
}

async function loadMoe(upload: Upload, moe: MoeConfig, { router, bias, gateUp, down, shared }: LayerWeights['mlp'] & { kind: 'moe' }): Promise<MoeWeights> {
  const { experts, topK, scoring, groups, topGroups, groupScore, normalize, scale } = moe;
  return {
    routing: { experts, topK, scoring, groups, topGroups, groupScore, normalize, scale },
    gate: await upload.exact(router), bias: bias ? await upload.vector(bias) : undefined,
    gateUp: await upload.matrix(gateUp), down: await upload.matrix(down), width: moe.intermediateSize,
    shared: shared ? await loadMlp(upload, shared) : undefined,
  };
}

class Upload {
  readonly tensors: MlaTensor[] = [];
  readonly #mla: Mla;
  readonly #checkpoint: Checkpoint;
  readonly #form: 'bf16' | 'int8';

  constructor(mla: Mla, checkpoint: Checkpoint, form: 'bf16' | 'int8') {
    this.#mla = mla;
    this.#checkpoint = checkpoint;
    this.#form = form;
  }

  /** A stack whole. */
  async read<A extends ReadAs>({ shape, parts }: Stack, as: A): Promise<ReadArrays[A]> {
    if (parts.length === 1) return this.#checkpoint.readTensor(parts[0]!.name, as);
    const all = arrayFor(as, elementCount(shape));
    let at = 0;
    for await (const { values } of this.#checkpoint.pieces({ shape, parts }, as)) {
      all.set(values, at);
      at += values.length;
    }
    return all;
  }

  /** f32 [n]. */
  async vector(stack: Stack): Promise<number> {
    return this.#put(await this.read(stack, 'f32'), stack.shape, 'f32');
  }

  /** bf16 [rows, n], never quantised. */
  async table(stack: Stack): Promise<SplitWeight> {
    return this.#split(stack.shape, 'bf16', (from, to) => this.#checkpoint.pieces(stack, 'bf16', { from, to }));
  }

  /** A projection: [n, k], or [experts, n, k]. */
  async matrix(stack: Stack): Promise<SplitWeight> {
    return this.#split(stack.shape, this.#form, (from, to) => this.#checkpoint.pieces(stack, 'bf16', { from, to }));
  }

  /** A matrix that decides, and so is not rounded: f32. */
  async exact(stack: Stack): Promise<SplitWeight> {
    const data = await this.#put(await this.read(stack, 'f32'), stack.shape, 'f32');
    return whole('rows', stack.shape[0]!, { form: 'f32', data, scales: undefined });
  }

  /** A projection [groups, n, k] whose numbers, bf16, are made of those of the tensor `name`; errors count the rows of what is made. */
  async made(bits: Uint16Array<ArrayBuffer>, shape: readonly number[], name: string): Promise<SplitWeight> {
    const k = shape.at(-1)!;
    return this.#split(shape, this.#form, async function* (from, to) {
      yield { row: from, rows: to - from, tensor: name, tensorRow: from, values: bits.subarray(from * k, to * k) };
    });
  }

  /** @param pieces those of rows `from` to `to` */
  async #split(shape: readonly number[], form: 'bf16' | 'int8', pieces: (from: number, to: number) => AsyncIterable<Piece<'bf16'>>): Promise<SplitWeight> {
    const k = shape.at(-1)!;
    const int8 = form === 'int8' && k % 4 === 0;
    /** Of what is split. */
    const rows = elementCount(shape.slice(1, -1));
    const segments: WeightSegment[] = [];
    for (const { first, count } of splitEvenly(shape[0]!, rows * k * (int8 ? 1 : 2), this.#mla.info.limits)) {
      const [from, to] = [first * rows, (first + count) * rows];
      const part = [count, ...shape.slice(1)];
      segments.push({ first, count, weight: await (int8 ? this.#int8(pieces(from, to), from, part) : this.#bf16(pieces(from, to), from, part)) });
    }
    return { by: shape.length === 2 ? 'rows' : 'groups', segments };
  }

  async #bf16(pieces: AsyncIterable<Piece<'bf16'>>, from: number, shape: readonly number[]): Promise<Weight> {
    const bits = new Uint16Array(elementCount(shape));
    for await (const { row, values } of pieces) bits.set(values, (row - from) * shape.at(-1)!);
    return { form: 'bf16', data: await this.#put(bits, shape, 'bf16'), scales: undefined };
  }

  /** @throws MlaError invalid-argument: a number is not finite, naming the checkpoint's tensor */
  async #int8(pieces: AsyncIterable<Piece<'bf16'>>, from: number, shape: readonly number[]): Promise<Weight> {
    const k = shape.at(-1)!;
    const rows = shape.slice(0, -1);
    const words = new Int32Array(elementCount(shape) / 4);
    const factors = new Float32Array(elementCount(rows));
    for await (const { row, values, tensor, tensorRow } of pieces) {
      const { data, scales } = quantizeRows(decode16('bf16', values), k, tensor, tensorRow);
      words.set(data, ((row - from) * k) / 4);
      factors.set(scales, row - from);
    }
    // Of three dimensions: the host keeps copies of tables of integers, which have fewer.
    const data = await this.#put(words, [shape.length === 2 ? 1 : shape[0]!, ...rows.slice(-1), k / 4], 'i32');
    return { form: 'int8', data, scales: await this.#put(factors, rows, 'f32') };
  }

  async #put(data: Uint16Array | Float32Array | Int32Array, shape: readonly number[], dtype: 'bf16' | 'f32' | 'i32'): Promise<number> {
    const count = elementCount(shape);
    if (data.length !== count) throw new MlaError('internal', 'weights of another size', { argument: 'weights', expected: String(count), got: String(data.length) });
    const tensor = await this.#mla.tensor({ data, shape, dtype });
    this.tensors.push(tensor);
    return idOf(tensor);
  }
}
