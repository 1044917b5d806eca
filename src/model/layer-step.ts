/** What every layer of a step shares: rows, angles, slots, and the attention groups with their tensors. */
import type { IndexData, TensorId } from '../backend.ts';
import type { MlaMetadata } from '../mla.ts';

/** Sequences that one attention call serves. */
export interface LayerGroup {
  /** Row of its first token. */
  readonly row: number;
  readonly b: number;
  readonly sQ: number;
  /** bf16 [b, sQ, heads, kv_lora_rank + rope]. */
  readonly q: TensorId;
  /** bf16 [b, sQ, heads, kv_lora_rank]. */
  readonly out: TensorId;
  /** f32 [b, heads, sQ]. */
  readonly lse: TensorId;
  readonly blockTable: IndexData;
  readonly maxBlocksPerSeq: number;
  readonly metadata: MlaMetadata;
  readonly metadataId: number;
}

export interface LayerStep {
  readonly tokens: number;
  /** [T, rope / 2, 2]: cosine, sine. */
  readonly angles: Float32Array;
  readonly slots: Int32Array;
  readonly blockSize: number;
  readonly groups: readonly LayerGroup[];
}
