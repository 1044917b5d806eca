/** What a model's cache takes, and what it would take if every head had keys and values of its own. Pure. */
import type { DeepSeekConfig } from './config.ts';

export interface ModelInfo {
  readonly modelType: DeepSeekConfig['modelType'];
  readonly layers: number;
  /** Bytes of cache that a token takes in a layer: a latent and a RoPE key (kv_lora_rank + qk_rope_head_dim) for all heads, bf16. */
  readonly cacheBytesPerTokenAndLayer: number;
  /** The same for all layers. */
  readonly cacheBytesPerToken: number;
  /** Bytes that keys (qk_nope_head_dim + qk_rope_head_dim) and values (v_head_dim) of every head would take, a token, all layers, bf16. */
  readonly perHeadCacheBytesPerToken: number;
  /** How many times as large that is. */
  readonly cacheRatio: number;
}

type ModelSizes = Pick<DeepSeekConfig, 'modelType' | 'layers' | 'heads' | 'kvLoraRank' | 'qkNopeHeadDim' | 'qkRopeHeadDim' | 'vHeadDim'>;

const BF16_BYTES = 2;

export function modelInfo({ modelType, layers, heads, kvLoraRank, qkNopeHeadDim: nope, qkRopeHeadDim: rope, vHeadDim: v }: ModelSizes): ModelInfo {
  const latent = (kvLoraRank + rope) * BF16_BYTES;
  const perHead = heads * (nope + rope + v) * BF16_BYTES;
  return {
    modelType, layers, cacheBytesPerTokenAndLayer: latent, cacheBytesPerToken: layers * latent, perHeadCacheBytesPerToken: layers * perHead, cacheRatio: perHead / latent,
  };
}
