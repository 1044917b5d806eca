/** The model dimensions of the demo, DeepSeek V2/V3's, and what a decode call costs. */
export const D_V = 512;
export const D_QK = D_V + 64;
export const BLOCK_SIZE = 64;
/** Bytes of a cached token. */
export const TOKEN_BYTES = 2 * D_QK;

export interface Step {
  /** Query heads, all of which share one KV head. */
  readonly heads: number;
  /** Query tokens a sequence. */
  readonly sQ: number;
  readonly causal: boolean;
}

export interface Cost {
  readonly flops: number;
  readonly bytes: number;
}

/** Both products, and every number of Q, out and the cache moved once. */
export function costOf({ heads, sQ }: Step, lengths: ArrayLike<number>): Cost {
  let tokens = 0;
  for (let i = 0; i < lengths.length; i++) tokens += lengths[i]!;
  return {
    flops: 2 * heads * sQ * (D_QK + D_V) * tokens,
    bytes: 2 * (lengths.length * sQ * heads * (D_QK + D_V) + tokens * D_QK),
  };
}
