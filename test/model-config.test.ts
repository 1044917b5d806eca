/** Configurations of DeepSeek models: what is read, what is refused, and the rotation that follows. */
import { describe, expect, test } from 'vitest';
import { parseConfig } from '../src/model/config.ts';
import { makeRope, ropeAngles } from '../src/model/yarn.ts';
import { expectRefusal } from './check.ts';
import { TINY, V2_LITE, V3 } from './model/configs.ts';

describe('what is read', () => {
  test('DeepSeek-V2-Lite', () => {
    const config = parseConfig(V2_LITE);
    expect(config).toMatchObject({
      modelType: 'deepseek_v2', vocabSize: 102400, hiddenSize: 2048, layers: 27, heads: 16, qLoraRank: null, kvLoraRank: 512, qkNopeHeadDim: 128,
      qkRopeHeadDim: 64, vHeadDim: 128, intermediateSize: 10944, rmsNormEps: 1e-6, ropeTheta: 10000, maxPositionEmbeddings: 163840,
      tieWordEmbeddings: false, dtype: 'bfloat16', fp8Block: null, bosTokenId: 100000, eosTokenIds: [100001],
    });
    expect(config.moe).toEqual({
      experts: 64, topK: 6, sharedExperts: 2, intermediateSize: 1408, scoring: 'softmax', topkMethod: 'greedy', groups: 1, topGroups: 1,
      groupScore: 'max', normalize: false, scale: 1, bias: false,
    });
    expect(config.moeLayers).toEqual([false, ...Array<boolean>(26).fill(true)]);
    expect(config.yarn).toMatchObject({ factor: 40, originalMaxPositionEmbeddings: 4096, betaFast: 32, betaSlow: 1, mscale: 0.707, mscaleAllDim: 0.707 });
  });

  test('DeepSeek-V3', () => {
    const config = parseConfig(V3);
    expect(config).toMatchObject({ modelType: 'deepseek_v3', layers: 61, heads: 128, qLoraRank: 1536, fp8Block: [128, 128], eosTokenIds: [1] });
    expect(config.moe).toEqual({
      experts: 256, topK: 8, sharedExperts: 1, intermediateSize: 2048, scoring: 'sigmoid', topkMethod: 'noaux_tc', groups: 8, topGroups: 4,
      groupScore: 'top2', normalize: true, scale: 2.5, bias: true,
    });
    expect(config.moeLayers.indexOf(true)).toBe(3);
  });

  test('group_limited_greedy, and no norm_topk_prob in V2', () => {
    const { moe } = parseConfig({ ...V2_LITE, topk_method: 'group_limited_greedy', n_group: 8, topk_group: 3, norm_topk_prob: true });
    expect(moe).toMatchObject({ topkMethod: 'group_limited_greedy', groups: 8, topGroups: 3, groupScore: 'max', normalize: false });
  });

  test('the spellings of transformers 5', () => {
    const { rope_scaling: { type, ...yarn }, rope_theta, torch_dtype, ...rest } = V2_LITE;
    const now = parseConfig({ ...rest, dtype: torch_dtype, rope_parameters: { ...yarn, rope_type: type, rope_theta } });
    expect(now).toEqual(parseConfig(V2_LITE));
    expect(parseConfig({ ...rest, rope_parameters: { rope_type: 'default', rope_theta: 5e5 } })).toMatchObject({ ropeTheta: 5e5, yarn: null });
  });

  test('several ends of text, none, and an unknown field', () => {
    expect(parseConfig({ ...V3, eos_token_id: [1, 128], something_new: {} }).eosTokenIds).toEqual([1, 128]);
    expect(parseConfig({ ...V3, eos_token_id: null, bos_token_id: null })).toMatchObject({ eosTokenIds: [], bosTokenId: null });
  });

  test('dense models, layers in turn, no shared experts', () => {
    expect(parseConfig({ ...V2_LITE, n_routed_experts: null })).toMatchObject({ moe: null, moeLayers: Array<boolean>(27).fill(false) });
    expect(parseConfig({ ...TINY, num_hidden_layers: 5, moe_layer_freq: 2 }).moeLayers).toEqual([false, false, true, false, true]);
    expect(parseConfig({ ...TINY, n_shared_experts: null }).moe?.sharedExperts).toBe(0);
  });
});

describe('what is refused', () => {
  const yarn = V3.rope_scaling;
  test.each<[field: string, change: object]>([
    ['config.model_type', { model_type: 'llama' }],
    ['config.model_type', { model_type: undefined }],
    ['config.attention_bias', { attention_bias: true }],
    ['config.mlp_bias', { mlp_bias: true }],
    ['config.hidden_act', { hidden_act: 'gelu' }],
    ['config.rope_interleave', { rope_interleave: false }],
    ['config.rope_scaling.type', { rope_scaling: { ...yarn, type: 'linear' } }],
    ['config.rope_scaling.rope_type', { rope_scaling: { ...yarn, rope_type: 'llama3' } }],
    ['config.rope_parameters.rope_type', { rope_scaling: null, rope_parameters: { rope_type: 'dynamic' } }],
    ['config.rope_scaling.partial_rotary_factor', { rope_scaling: { ...yarn, partial_rotary_factor: 0.5 } }],
    ['config.kv_lora_rank', { kv_lora_rank: 1024 }],
    ['config.kv_lora_rank', { kv_lora_rank: 40 }],
    ['config.qk_rope_head_dim', { qk_rope_head_dim: 128 }],
    ['config.scoring_func', { scoring_func: 'softmax' }],
    ['config.topk_method', { topk_method: 'greedy' }],
    ['config.n_group', { n_group: 7 }],
    ['config.n_group', { n_group: 256 }],
    ['config.topk_group', { topk_group: 9 }],
    ['config.num_experts_per_tok', { num_experts_per_tok: 129 }],
    ['config.num_hidden_layers', { num_hidden_layers: 1e8 }],
    ['config.n_routed_experts', { n_routed_experts: 2 ** 32 }],
    ['config.quantization_config.quant_method', { quantization_config: { quant_method: 'awq' } }],
    ['config.quantization_config.fmt', { quantization_config: { ...V3.quantization_config, fmt: 'e5m2' } }],
    ['config.quantization_config.weight_block_size', { quantization_config: { quant_method: 'fp8' } }],
  ])('%s: %j', async (field, change) => {
    await expectRefusal(() => parseConfig({ ...V3, ...change }), 'unsupported-model', field);
  });

  test.each<[field: string, change: object]>([
    ['config.hidden_size', { hidden_size: undefined }],
    ['config.hidden_size', { hidden_size: '7168' }],
    ['config.hidden_size', { hidden_size: 0 }],
    ['config.num_attention_heads', { num_attention_heads: 1.5 }],
    ['config.q_lora_rank', { q_lora_rank: -1 }],
    ['config.rms_norm_eps', { rms_norm_eps: 0 }],
    ['config.tie_word_embeddings', { tie_word_embeddings: 'yes' }],
    ['config.eos_token_id', { eos_token_id: ['</s>'] }],
    ['config.rope_scaling', { rope_scaling: 40 }],
    ['config.rope_scaling.factor', { rope_scaling: { type: 'yarn' } }],
  ])('%s: %j', async (field, change) => {
    await expectRefusal(() => parseConfig({ ...V3, ...change }), 'invalid-file', field);
  });

  test('an absent q_lora_rank: null means something else', async () => {
    const { q_lora_rank: _, ...rest } = V3;
    await expectRefusal(() => parseConfig(rest), 'invalid-file', 'config.q_lora_rank');
  });

  test.each([[null], [[]], ['{}'], [3]])('%j in place of an object', async (json) => {
    await expectRefusal(() => parseConfig(json), 'invalid-file', 'config');
  });
});

describe('rotation', () => {
  test('softmax scales of the published models', () => {
    expect(makeRope(parseConfig(V2_LITE)).softmaxScale).toBeCloseTo(0.1147213867929261, 14);
    expect(makeRope(parseConfig(V3)).softmaxScale).toBeCloseTo(0.1352337788608801, 14);
    expect(makeRope(parseConfig({ ...V3, rope_scaling: null })).softmaxScale).toBe(192 ** -0.5);
    // Without mscale_all_dim only cosine and sine grow.
    const { mscale_all_dim: _, ...yarn } = V3.rope_scaling;
    const rope = makeRope(parseConfig({ ...V3, rope_scaling: yarn }));
    expect(rope.softmaxScale).toBe(192 ** -0.5);
    expect(rope.multiplier).toBeCloseTo(1 + 0.1 * Math.log(40), 14);
  });

  test('the multiplier of cosine and sine', () => {
    const multiplier = (change: object): number => makeRope(parseConfig({ ...V3, rope_scaling: { ...V3.rope_scaling, ...change } })).multiplier;
    expect(multiplier({})).toBe(1);
    expect(multiplier({ mscale: 0.707, mscale_all_dim: 0.5 })).toBeCloseTo((0.0707 * Math.log(40) + 1) / (0.05 * Math.log(40) + 1), 14);
    expect(multiplier({ mscale: 0 })).toBeCloseTo(0.1 * Math.log(40) + 1, 14);
    expect(multiplier({ mscale: 0, factor: 1 })).toBe(1);
    expect(multiplier({ attention_factor: 1.25 })).toBe(1.25);
  });

  test('frequencies of DeepSeek: the ramp runs from pair 10 to pair 23', () => {
    const { frequencies } = makeRope(parseConfig(V3));
    // From the paper: pair i turns r = 4096 theta_i / 2 pi times; kept above beta_fast turns, stretched below beta_slow.
    expect(frequencies).toHaveLength(32);
    for (let i = 0; i < 32; i++) {
      const plain = 1 / 10000 ** (i / 32);
      const stretched = i <= 10 ? 0 : i >= 23 ? 1 : (i - 10) / 13;
      expect(frequencies[i]).toBeCloseTo(plain * (1 - stretched) + (plain / 40) * stretched, 15);
    }
    const turns = (i: number): number => (4096 * 10000 ** (-i / 32)) / (2 * Math.PI);
    expect([turns(10) > 32, turns(11) > 32, turns(22) > 1, turns(23) > 1]).toEqual([true, false, true, false]);
  });

  test('a ramp without whole ends, and one of no length', () => {
    const frequencies = (change: object): Float64Array => makeRope(parseConfig({ ...V3, rope_scaling: { ...V3.rope_scaling, ...change } })).frequencies;
    const dimension = (turns: number): number => (32 * Math.log(4096 / (2 * Math.PI * turns))) / Math.log(10000);
    const ramp = (15 - dimension(32)) / (dimension(1) - dimension(32));
    expect(frequencies({ truncate: false })[15]).toBeCloseTo(10000 ** (-15 / 32) * (1 - ramp + ramp / 40), 15);
    expect(frequencies({ beta_fast: 1, beta_slow: 1, truncate: false }).every(Number.isFinite)).toBe(true);
  });

  test('angles are exact far out', () => {
    const rope = { frequencies: Float64Array.of(1, 0.01), multiplier: 2, softmaxScale: 1 };
    const positions = Int32Array.of(0, 3, 163839);
    const angles = ropeAngles(rope, positions);
    expect(angles).toHaveLength(3 * 2 * 2);
    expect([...angles.subarray(0, 4)]).toEqual([2, 0, 2, 0]);
    expect(angles[4]).toBe(Math.fround(2 * Math.cos(3)));
    expect(angles[11]).toBe(Math.fround(2 * Math.sin(1638.39)));
  });
});
