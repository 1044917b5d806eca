/**
 * The configuration of a DeepSeek decoder, from Hugging Face's `config.json` of model_type deepseek_v2 or deepseek_v3.
 *
 * What cannot be run is refused with the field's name; fields that change nothing here are ignored. Where DeepSeek's own code and
 * transformers differ, transformers is followed, and a comment says so.
 */
import { MlaError, describe } from '../errors.ts';
import { Fields } from './fields.ts';

/** YaRN, as transformers' `rope_type: yarn` means it. */
export interface YarnConfig {
  readonly factor: number;
  readonly originalMaxPositionEmbeddings: number;
  readonly betaFast: number;
  readonly betaSlow: number;
  /** 0: not given. */
  readonly mscale: number;
  /** 0: not given. */
  readonly mscaleAllDim: number;
  /** Of cosine and sine, in place of what `mscale` and `mscaleAllDim` say. */
  readonly attentionFactor: number | null;
  /** Whether the ramp's ends are whole dimensions. */
  readonly truncate: boolean;
}

/** The mixture of experts of the layers that have one. */
export interface MoeConfig {
  /** n_routed_experts */
  readonly experts: number;
  /** num_experts_per_tok */
  readonly topK: number;
  /** n_shared_experts; 0 where there are none. */
  readonly sharedExperts: number;
  /** moe_intermediate_size */
  readonly intermediateSize: number;
  readonly scoring: 'softmax' | 'sigmoid';
  readonly topkMethod: 'greedy' | 'group_limited_greedy' | 'noaux_tc';
  /** n_group and topk_group; both 1 where the method knows no groups. */
  readonly groups: number;
  readonly topGroups: number;
  /** How a group counts: see `RouterOp`. */
  readonly groupScore: 'max' | 'top2';
  /** Whether the chosen experts' weights are divided by their sum. */
  readonly normalize: boolean;
  /** routed_scaling_factor */
  readonly scale: number;
  /** Whether the router has `e_score_correction_bias`. */
  readonly bias: boolean;
}

export interface DeepSeekConfig {
  readonly modelType: 'deepseek_v2' | 'deepseek_v3';
  readonly vocabSize: number;
  readonly hiddenSize: number;
  readonly layers: number;
  readonly heads: number;
  /** null: queries come from one projection. */
  readonly qLoraRank: number | null;
  /** d_v of the attention kernels. */
  readonly kvLoraRank: number;
  readonly qkNopeHeadDim: number;
  readonly qkRopeHeadDim: number;
  readonly vHeadDim: number;
  /** Of the dense layers. */
  readonly intermediateSize: number;
  /** null: every layer is dense. */
  readonly moe: MoeConfig | null;
  /** Whether layer i is a mixture of experts: `moeLayers[i]`. */
  readonly moeLayers: readonly boolean[];
  /** Of the layers' norms and the last one. */
  readonly rmsNormEps: number;
  /** Of q_a_layernorm and kv_a_layernorm: the models' code leaves it at its default, whatever rms_norm_eps says. */
  readonly latentNormEps: number;
  readonly ropeTheta: number;
  readonly yarn: YarnConfig | null;
  readonly maxPositionEmbeddings: number;
  readonly tieWordEmbeddings: boolean;
  /** What the weights are said to be stored in; the checkpoint's headers decide. */
  readonly dtype: string | null;
  /** FP8 weights: numbers a scale covers, [rows, columns]. null: not quantised. */
  readonly fp8Block: readonly [number, number] | null;
  readonly bosTokenId: number | null;
  /** Any of them ends a text. */
  readonly eosTokenIds: readonly number[];
}

const LATENT_NORM_EPS = 1e-6;

/**
 * @param json what `config.json` holds
 * @throws MlaError invalid-file: a field is missing or malformed; unsupported-model: a model that is not run here
 */
export function parseConfig(json: unknown): DeepSeekConfig {
  const fields = new Fields(json, 'config');
  const modelType = fields.raw('model_type');
  if (modelType !== 'deepseek_v2' && modelType !== 'deepseek_v3') {
    return fields.refuse('model_type', 'this architecture is not run', '"deepseek_v2" or "deepseek_v3"');
  }
  refuseVariants(fields);
  if (!fields.has('q_lora_rank')) throw new MlaError('invalid-file', 'is missing', { argument: fields.path('q_lora_rank'), expected: 'an integer or null', got: 'nothing' });

  const layers = countUpTo(fields, 'num_hidden_layers', MOST_LAYERS);
  const moe = fields.raw('n_routed_experts') === undefined ? null : parseMoe(fields, modelType);
  const firstMoe = fields.count('first_k_dense_replace', modelType === 'deepseek_v2' ? 0 : 3, 0);
  const frequency = fields.count('moe_layer_freq', 1);
  return {
    modelType,
    vocabSize: fields.count('vocab_size'),
    hiddenSize: fields.count('hidden_size'),
    layers,
    heads: fields.count('num_attention_heads'),
    qLoraRank: fields.raw('q_lora_rank') === undefined ? null : fields.count('q_lora_rank'),
    kvLoraRank: kernelWidth(fields, 'kv_lora_rank', 32, 512),
    qkNopeHeadDim: fields.count('qk_nope_head_dim'),
    qkRopeHeadDim: kernelWidth(fields, 'qk_rope_head_dim', 16, 64),
    vHeadDim: fields.count('v_head_dim'),
    intermediateSize: fields.count('intermediate_size'),
    moe,
    moeLayers: Array.from({ length: layers }, (_, i) => moe !== null && i >= firstMoe && i % frequency === 0),
    rmsNormEps: fields.positive('rms_norm_eps', 1e-6),
    latentNormEps: LATENT_NORM_EPS,
    ...parseRope(fields),
    maxPositionEmbeddings: fields.count('max_position_embeddings'),
    tieWordEmbeddings: fields.flag('tie_word_embeddings', false),
    dtype: fields.text('dtype', fields.text('torch_dtype', '')) || null,
    fp8Block: parseQuantization(fields),
    bosTokenId: fields.raw('bos_token_id') === undefined ? null : fields.count('bos_token_id', undefined, 0),
    eosTokenIds: parseEos(fields),
  };
}

/** Settings that change what the layers compute, in ways that are not run. */
function refuseVariants(fields: Fields): void {
  if (fields.flag('attention_bias', false)) fields.refuse('attention_bias', 'projections with a bias are not run', 'false');
  if (fields.flag('mlp_bias', false)) fields.refuse('mlp_bias', 'projections with a bias are not run', 'false');
  if (fields.text('hidden_act', 'silu') !== 'silu') fields.refuse('hidden_act', 'this activation is not run', '"silu"');
  if (!fields.flag('rope_interleave', true)) fields.refuse('rope_interleave', 'rotation by halves is not run', 'true');
}

/** Several times what any model has: names of tensors are made for all, before it is looked which there are. */
const MOST_LAYERS = 1024;
const MOST_EXPERTS = 4096;

function countUpTo(fields: Fields, name: string, most: number): number {
  const count = fields.count(name);
  if (count > most) fields.refuse(name, 'more than any model has', `at most ${most}`);
  return count;
}

function kernelWidth(fields: Fields, name: string, multiple: number, most: number): number {
  const width = fields.count(name);
  if (width % multiple !== 0 || width > most) fields.refuse(name, 'the attention kernels have no such width', `a multiple of ${multiple} up to ${most}`);
  return width;
}

function parseMoe(fields: Fields, modelType: DeepSeekConfig['modelType']): MoeConfig {
  const v3 = modelType === 'deepseek_v3';
  const experts = countUpTo(fields, 'n_routed_experts', MOST_EXPERTS);
  const topK = fields.count('num_experts_per_tok');
  const scoring = v3 ? 'sigmoid' : 'softmax';
  if (fields.text('scoring_func', scoring) !== scoring) fields.refuse('scoring_func', `not run for ${modelType}`, JSON.stringify(scoring));
  const methods = v3 ? ['noaux_tc'] : ['greedy', 'group_limited_greedy'];
  const topkMethod = fields.text('topk_method', methods[0]);
  if (!methods.includes(topkMethod)) fields.refuse('topk_method', `not run for ${modelType}`, methods.map((m) => JSON.stringify(m)).join(' or '));

  const grouped = topkMethod !== 'greedy';
  const groups = grouped ? fields.count('n_group') : 1;
  const topGroups = grouped ? fields.count('topk_group') : 1;
  if (experts % groups !== 0) fields.refuse('n_group', 'experts do not divide into so many groups', `a divisor of ${experts}`);
  if (v3 && experts / groups < 2) fields.refuse('n_group', 'a group counts by its two best experts', `at most ${experts / 2} groups of ${experts} experts`);
  if (topGroups > groups) fields.refuse('topk_group', 'more groups than there are', `at most ${groups}`);
  const selectable = topGroups * (experts / groups);
  if (topK > selectable) fields.refuse('num_experts_per_tok', 'more experts than can be chosen', `at most ${selectable}`);
  return {
    experts, topK, scoring, groups, topGroups,
    sharedExperts: fields.count('n_shared_experts', 0, 0),
    intermediateSize: fields.count('moe_intermediate_size'),
    topkMethod: topkMethod as MoeConfig['topkMethod'],
    groupScore: v3 ? 'top2' : 'max',
    // transformers' deepseek_v2 has no normalisation, whatever norm_topk_prob says; every released V2 says false.
    normalize: v3 && fields.flag('norm_topk_prob', true),
    scale: fields.number('routed_scaling_factor', v3 ? 2.5 : 1),
    bias: v3,
  };
}

/** `rope_scaling` with `type` or `rope_type`, or transformers 5's `rope_parameters`; the former goes first, as there. */
function parseRope(fields: Fields): Pick<DeepSeekConfig, 'ropeTheta' | 'yarn'> {
  const rope = fields.object('rope_scaling') ?? fields.object('rope_parameters');
  const ropeTheta = rope?.raw('rope_theta') === undefined ? fields.positive('rope_theta', 10_000) : rope.positive('rope_theta');
  if (rope === undefined) return { ropeTheta, yarn: null };
  const key = rope.raw('rope_type') === undefined && rope.raw('type') !== undefined ? 'type' : 'rope_type';
  const type = rope.text(key, 'default');
  if (rope.positive('partial_rotary_factor', 1) !== 1) rope.refuse('partial_rotary_factor', 'partial rotation is not run', '1');
  if (type === 'default') return { ropeTheta, yarn: null };
  if (type !== 'yarn') rope.refuse(key, 'this scaling of positions is not run', '"yarn" or "default"');
  return {
    ropeTheta,
    yarn: {
      factor: rope.positive('factor'),
      originalMaxPositionEmbeddings: rope.count('original_max_position_embeddings', fields.count('max_position_embeddings')),
      // 0 counts as absent, as in transformers.
      betaFast: rope.number('beta_fast', 32) || 32,
      betaSlow: rope.number('beta_slow', 1) || 1,
      mscale: rope.number('mscale', 0),
      mscaleAllDim: rope.number('mscale_all_dim', 0),
      attentionFactor: rope.raw('attention_factor') === undefined ? null : rope.positive('attention_factor'),
      truncate: rope.flag('truncate', true),
    },
  };
}

function parseQuantization(fields: Fields): readonly [number, number] | null {
  const quantization = fields.object('quantization_config');
  if (quantization === undefined) return null;
  if (quantization.raw('quant_method') !== 'fp8') quantization.refuse('quant_method', 'weights quantised this way are not read', '"fp8"');
  if (quantization.text('fmt', 'e4m3') !== 'e4m3') quantization.refuse('fmt', 'weights quantised this way are not read', '"e4m3"');
  const block = quantization.raw('weight_block_size');
  if (!Array.isArray(block) || block.length !== 2 || !block.every((n) => Number.isSafeInteger(n) && n > 0)) {
    return quantization.refuse('weight_block_size', 'scales are read by blocks only', 'two integers above 0');
  }
  return block as [number, number];
}

function parseEos(fields: Fields): number[] {
  const value = fields.raw('eos_token_id');
  const ids: unknown[] = value === undefined ? [] : Array.isArray(value) ? value : [value];
  if (!ids.every((id) => Number.isSafeInteger(id) && (id as number) >= 0)) {
    throw new MlaError('invalid-file', 'has a bad value', { argument: fields.path('eos_token_id'), expected: 'a token id or an array of them', got: describe(value) });
  }
  return ids as number[];
}
