/** Configurations as they are published, without the fields that nothing here depends on. */

/** deepseek-ai/DeepSeek-V2-Lite */
export const V2_LITE = {
  architectures: ['DeepseekV2ForCausalLM'], model_type: 'deepseek_v2', attention_bias: false, attention_dropout: 0, aux_loss_alpha: 0.001,
  bos_token_id: 100000, eos_token_id: 100001, first_k_dense_replace: 1, hidden_act: 'silu', hidden_size: 2048, intermediate_size: 10944,
  kv_lora_rank: 512, max_position_embeddings: 163840, moe_intermediate_size: 1408, moe_layer_freq: 1, n_group: 1, n_routed_experts: 64,
  n_shared_experts: 2, norm_topk_prob: false, num_attention_heads: 16, num_experts_per_tok: 6, num_hidden_layers: 27, num_key_value_heads: 16,
  q_lora_rank: null, qk_nope_head_dim: 128, qk_rope_head_dim: 64, rms_norm_eps: 1e-6,
  rope_scaling: { beta_fast: 32, beta_slow: 1, factor: 40, mscale: 0.707, mscale_all_dim: 0.707, original_max_position_embeddings: 4096, type: 'yarn' },
  rope_theta: 10000, routed_scaling_factor: 1, scoring_func: 'softmax', tie_word_embeddings: false, topk_group: 1, topk_method: 'greedy',
  torch_dtype: 'bfloat16', v_head_dim: 128, vocab_size: 102400,
};

/** deepseek-ai/DeepSeek-V3 */
export const V3 = {
  architectures: ['DeepseekV3ForCausalLM'], model_type: 'deepseek_v3', attention_bias: false, bos_token_id: 0, eos_token_id: 1, ep_size: 1,
  first_k_dense_replace: 3, hidden_act: 'silu', hidden_size: 7168, intermediate_size: 18432, kv_lora_rank: 512, max_position_embeddings: 163840,
  moe_intermediate_size: 2048, moe_layer_freq: 1, n_group: 8, n_routed_experts: 256, n_shared_experts: 1, norm_topk_prob: true,
  num_attention_heads: 128, num_experts_per_tok: 8, num_hidden_layers: 61, num_nextn_predict_layers: 1, q_lora_rank: 1536, qk_nope_head_dim: 128,
  qk_rope_head_dim: 64, quantization_config: { activation_scheme: 'dynamic', fmt: 'e4m3', quant_method: 'fp8', weight_block_size: [128, 128] },
  rms_norm_eps: 1e-6, rope_scaling: { beta_fast: 32, beta_slow: 1, factor: 40, mscale: 1, mscale_all_dim: 1, original_max_position_embeddings: 4096, type: 'yarn' },
  rope_theta: 10000, routed_scaling_factor: 2.5, scoring_func: 'sigmoid', tie_word_embeddings: false, topk_group: 4, topk_method: 'noaux_tc',
  torch_dtype: 'bfloat16', v_head_dim: 128, vocab_size: 129280,
};

/** A V3 of a few numbers: a dense layer and a mixture of experts. */
export const TINY = {
  ...V3, hidden_size: 8, intermediate_size: 12, kv_lora_rank: 32, moe_intermediate_size: 4, n_group: 2, topk_group: 1, n_routed_experts: 4,
  num_experts_per_tok: 2, num_attention_heads: 2, num_hidden_layers: 2, first_k_dense_replace: 1, q_lora_rank: 6, qk_nope_head_dim: 4,
  qk_rope_head_dim: 16, v_head_dim: 4, vocab_size: 20, max_position_embeddings: 256, rope_scaling: null, quantization_config: undefined,
};
