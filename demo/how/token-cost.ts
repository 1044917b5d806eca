/** What a token takes in the cache of one layer: keys and values of every head, or one latent. Pure. */
import { modelInfo } from '../../src/model/info.ts';

/** DeepSeek-V3's sizes. */
export const MODEL = { heads: 128, layers: 61, nope: 128, rope: 64, value: 128, latent: 512 } as const;
const BF16_BYTES = 2;

export interface TokenCost {
  /** Keys and values of all heads. */
  readonly numbers: number;
  readonly bytes: number;
  /** The latent and the RoPE key. */
  readonly latentNumbers: number;
  readonly latentBytes: number;
  /** How many times smaller the latent is. */
  readonly ratio: number;
}

export function tokenCost(heads: number, { nope, rope, value, latent }: Omit<typeof MODEL, 'heads' | 'layers'> = MODEL): TokenCost {
  const { perHeadCacheBytesPerToken: bytes, cacheBytesPerToken: latentBytes, cacheRatio: ratio } = modelInfo({
    modelType: 'deepseek_v3', layers: 1, heads, kvLoraRank: latent, qkNopeHeadDim: nope, qkRopeHeadDim: rope, vHeadDim: value,
  });
  return { numbers: bytes / BF16_BYTES, bytes, latentNumbers: latent + rope, latentBytes, ratio };
}
