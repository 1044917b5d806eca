/**
 * The tensors of a DeepSeek decoder in a checkpoint: their names and shapes for a configuration, and the rearrangements that
 * happen on the way to the device.
 *
 * A matrix may be stored in several tensors whose rows follow one another (gate and up, an expert each): a `Stack`. Experts come
 * one tensor an expert, as DeepSeek publishes them, or all in one, as transformers 5 can save them; the stack hides which.
 */
import type { DeepSeekConfig, MoeConfig } from './config.ts';

/** A tensor that a checkpoint must have. */
export interface TensorSpec {
  readonly name: string;
  readonly shape: readonly number[];
}

/** Tensors whose rows (of the last dimension), one after the other, make one matrix of `shape`. */
export interface Stack {
  readonly shape: readonly number[];
  readonly parts: readonly TensorSpec[];
}

export type QueryWeights =
  | { readonly kind: 'plain'; /** [heads * (nope + rope), hidden] */ readonly q: Stack }
  | {
    readonly kind: 'lora';
    /** [qLoraRank, hidden] */
    readonly a: Stack;
    /** [qLoraRank] */
    readonly aNorm: Stack;
    /** [heads * (nope + rope), qLoraRank] */
    readonly b: Stack;
  };

/** A gated feed-forward of `size` inner numbers. */
export interface MlpWeights {
  /** [2 * size, hidden]: gate, then up. */
  readonly gateUp: Stack;
  /** [hidden, size] */
  readonly down: Stack;
}

export interface MoeWeights {
  /** [experts, hidden] */
  readonly router: Stack;
  /** [experts]: e_score_correction_bias. */
  readonly bias: Stack | null;
  /** [experts, 2 * size, hidden]: gate, then up, of each. */
  readonly gateUp: Stack;
  /** [experts, hidden, size] */
  readonly down: Stack;
  /** Of sharedExperts * size inner numbers. */
  readonly shared: MlpWeights | null;
}

export interface LayerWeights {
  /** [hidden] */
  readonly inputNorm: Stack;
  readonly query: QueryWeights;
  /** [kvLoraRank + rope, hidden] */
  readonly kvA: Stack;
  /** [kvLoraRank] */
  readonly kvANorm: Stack;
  /** [heads * (nope + v), kvLoraRank]; see `splitKvB`. */
  readonly kvB: Stack;
  /** [hidden, heads * v] */
  readonly o: Stack;
  /** [hidden] */
  readonly postNorm: Stack;
  readonly mlp: ({ readonly kind: 'dense' } & MlpWeights) | ({ readonly kind: 'moe' } & MoeWeights);
}

export interface DecoderWeights {
  /** [vocab, hidden] */
  readonly embed: Stack;
  readonly layers: readonly LayerWeights[];
  /** [hidden] */
  readonly norm: Stack;
  /** [vocab, hidden]; the embedding itself where the two are tied. */
  readonly lmHead: Stack;
}

/**
 * What a decoder is made of.
 * @param has whether the checkpoint has a tensor of that name: tells how it stores experts
 */
export function decoderWeights(config: DeepSeekConfig, has: (name: string) => boolean): DecoderWeights {
  const { vocabSize, hiddenSize, tieWordEmbeddings, moeLayers } = config;
  const embed = one('model.embed_tokens.weight', [vocabSize, hiddenSize]);
  return {
    embed,
    layers: moeLayers.map((_, layer) => layerWeights(config, layer, has)),
    norm: one('model.norm.weight', [hiddenSize]),
    lmHead: tieWordEmbeddings ? embed : one('lm_head.weight', [vocabSize, hiddenSize]),
  };
}

/** Every tensor that those weights are read from, each once. */
export function tensorSpecs(weights: DecoderWeights): TensorSpec[] {
  const specs = new Map<string, TensorSpec>();
  const visit = (node: object | null): void => {
    if (node === null) return;
    if ('parts' in node) for (const spec of (node as Stack).parts) specs.set(spec.name, spec);
    else for (const child of Object.values(node) as unknown[]) if (typeof child === 'object') visit(child);
  };
  visit(weights);
  return [...specs.values()];
}

function layerWeights(config: DeepSeekConfig, layer: number, has: (name: string) => boolean): LayerWeights {
  const { hiddenSize: hidden, heads, kvLoraRank, qkNopeHeadDim: nope, qkRopeHeadDim: rope, vHeadDim: v, moe } = config;
  const prefix = `model.layers.${layer}.`;
  const at = (name: string, ...shape: number[]): Stack => one(`${prefix}${name}.weight`, shape);
  return {
    inputNorm: at('input_layernorm', hidden),
    query: queryWeights(config, at),
    kvA: at('self_attn.kv_a_proj_with_mqa', kvLoraRank + rope, hidden),
    kvANorm: at('self_attn.kv_a_layernorm', kvLoraRank),
    kvB: at('self_attn.kv_b_proj', heads * (nope + v), kvLoraRank),
    o: at('self_attn.o_proj', hidden, heads * v),
    postNorm: at('post_attention_layernorm', hidden),
    mlp: moe !== null && config.moeLayers[layer]!
      ? { kind: 'moe', ...moeWeights(`${prefix}mlp.`, hidden, moe, has) }
      : { kind: 'dense', ...mlpWeights(`${prefix}mlp.`, hidden, config.intermediateSize) },
  };
}

function queryWeights({ heads, qkNopeHeadDim, qkRopeHeadDim, qLoraRank, hiddenSize }: DeepSeekConfig, at: (name: string, ...shape: number[]) => Stack): QueryWeights {
  const rows = heads * (qkNopeHeadDim + qkRopeHeadDim);
  if (qLoraRank === null) return { kind: 'plain', q: at('self_attn.q_proj', rows, hiddenSize) };
  return {
    kind: 'lora',
    a: at('self_attn.q_a_proj', qLoraRank, hiddenSize),
    aNorm: at('self_attn.q_a_layernorm', qLoraRank),
    b: at('self_attn.q_b_proj', rows, qLoraRank),
  };
}

function mlpWeights(prefix: string, hidden: number, size: number): MlpWeights {
  const gate = { name: `${prefix}gate_proj.weight`, shape: [size, hidden] };
  const up = { name: `${prefix}up_proj.weight`, shape: [size, hidden] };
  return { gateUp: { shape: [2 * size, hidden], parts: [gate, up] }, down: one(`${prefix}down_proj.weight`, [hidden, size]) };
}

function moeWeights(prefix: string, hidden: number, moe: MoeConfig, has: (name: string) => boolean): MoeWeights {
  const { experts, intermediateSize: size, sharedExperts } = moe;
  const gateUp = one(`${prefix}experts.gate_up_proj`, [experts, 2 * size, hidden]);
  const down = one(`${prefix}experts.down_proj`, [experts, hidden, size]);
  const apart = has(gateUp.parts[0]!.name) ? null : Array.from({ length: experts }, (_, e) => mlpWeights(`${prefix}experts.${e}.`, hidden, size));
  return {
    router: one(`${prefix}gate.weight`, [experts, hidden]),
    bias: moe.bias ? one(`${prefix}gate.e_score_correction_bias`, [experts]) : null,
    gateUp: apart === null ? gateUp : { ...gateUp, parts: apart.flatMap((expert) => expert.gateUp.parts) },
    down: apart === null ? down : { ...down, parts: apart.flatMap((expert) => expert.down.parts) },
    shared: sharedExperts === 0 ? null : mlpWeights(`${prefix}shared_experts.`, hidden, sharedExperts * size),
  };
}

function one(name: string, shape: readonly number[]): Stack {
  return { shape, parts: [{ name, shape }] };
}

type Numbers = Uint16Array<ArrayBuffer> | Float32Array<ArrayBuffer>;

/**
 * The two halves of kv_b_proj [heads * (nope + v), lora], as absorbed attention uses them: q_latent[h] = uk[h] q_nope[h], with uk
 * [heads, lora, nope], and o[h] = uv[h] o_latent[h], with uv [heads, v, lora].
 */
export function splitKvB<T extends Numbers>(kvB: T, sizes: { readonly heads: number; readonly nope: number; readonly v: number; readonly lora: number }): { uk: T; uv: T } {
  const { heads, nope, v, lora } = sizes;
  const make = kvB.constructor as new (length: number) => T;
  const uk = new make(heads * lora * nope);
  const uv = new make(heads * v * lora);
  for (let h = 0; h < heads; h++) {
    const rows = h * (nope + v) * lora;
    for (let i = 0; i < nope; i++) {
      for (let j = 0; j < lora; j++) uk[(h * lora + j) * nope + i] = kvB[rows + i * lora + j]!;
    }
    uv.set(kvB.subarray(rows + nope * lora, rows + (nope + v) * lora), h * v * lora);
  }
  return { uk, uv };
}
