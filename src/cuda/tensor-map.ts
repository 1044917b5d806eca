/**
 * Tensor maps: how the copy engine finds its boxes in q and the KV cache. A row of 576 numbers is 9 groups of 64, since a
 * swizzled box is 128 B wide; two maps over the same bytes, for boxes of 5 groups and of 4.
 *
 * A map depends on an address and dimensions alone, so those of memory that is used again and again are kept.
 */
import type { KvDType } from '../mla.ts';
import { BLOCK_TOKENS, D_QK } from './config.ts';
import type { CudaContext } from './context.ts';
import { HostBlock } from './driver.ts';
import { TENSOR_MAP_BYTES } from './params.ts';

const ROW_BYTES = D_QK * 2;
const GROUP_DIMS = 64;
const GROUP_BYTES = GROUP_DIMS * 2;
const GROUPS = D_QK / GROUP_DIMS;
/** Groups of a box: low and high. */
const LOW_GROUPS = 5;
const HIGH_GROUPS = 4;

// CUtensorMapDataType and the other enumerations of cuTensorMapEncodeTiled
const DATA_TYPE = { f16: 6, bf16: 9 } as const;
const NO_INTERLEAVE = 0;
const SWIZZLE_128B = 3;
const L2_PROMOTION_128B = 2;
const FILL_ZEROS = 0;

const KEPT = 256;

interface Kept {
  readonly dtype: KvDType;
  readonly hKv: number;
  readonly rows: number;
  readonly maps: Uint8Array;
}

export class TensorMaps {
  readonly #context: CudaContext;
  readonly #scratch: HostBlock;
  /** By address and rows of a box. */
  readonly #kept = new Map<string, Kept>();

  constructor(context: CudaContext) {
    this.#context = context;
    this.#scratch = new HostBlock(context.driver, SCRATCH.bytes);
  }

  /** Of a cache [numBlocks, 64, hKv, 576], a box having `tokens` of a block. */
  cache(address: number, dtype: KvDType, hKv: number, numBlocks: number, tokens: number): Uint8Array {
    return this.#get(address, dtype, hKv, numBlocks, tokens, () => ({
      dimensions: [GROUP_DIMS, BLOCK_TOKENS, GROUPS, hKv, numBlocks],
      strides: [hKv * ROW_BYTES, GROUP_BYTES, ROW_BYTES, BLOCK_TOKENS * hKv * ROW_BYTES],
      box: [GROUP_DIMS, tokens, GROUPS, 1, 1],
    }));
  }

  /** Of queries [rows, 576], a box having `boxRows`. */
  queries(address: number, dtype: KvDType, rows: number, boxRows: number): Uint8Array {
    return this.#get(address, dtype, 0, rows, boxRows, () => ({
      dimensions: [GROUP_DIMS, rows, GROUPS], strides: [ROW_BYTES, GROUP_BYTES], box: [GROUP_DIMS, boxRows, GROUPS],
    }));
  }

  #get(address: number, dtype: KvDType, hKv: number, rows: number, boxRows: number, layout: () => Layout): Uint8Array {
    const key = `${address}/${boxRows}`;
    const known = this.#kept.get(key);
    if (known !== undefined && known.rows === rows && known.hKv === hKv && known.dtype === dtype) return known.maps;
    const maps = new Uint8Array(2 * TENSOR_MAP_BYTES);
    this.#encode(address, dtype, layout(), LOW_GROUPS);
    maps.set(this.#scratch.bytes.subarray(0, TENSOR_MAP_BYTES));
    this.#encode(address, dtype, layout(), HIGH_GROUPS);
    maps.set(this.#scratch.bytes.subarray(0, TENSOR_MAP_BYTES), TENSOR_MAP_BYTES);
    if (known === undefined && this.#kept.size >= KEPT) this.#kept.delete(this.#kept.keys().next().value!);
    this.#kept.set(key, { dtype, hKv, rows, maps });
    return maps;
  }

  #encode(address: number, dtype: KvDType, { dimensions, strides, box }: Layout, groups: number): void {
    const s = this.#scratch;
    dimensions.forEach((n, i) => s.setPointer(SCRATCH.dimensions + 8 * i, n));
    strides.forEach((n, i) => s.setPointer(SCRATCH.strides + 8 * i, n));
    box.forEach((n, i) => (s.u32[SCRATCH.box / 4 + i] = i === 2 ? groups : n));
    dimensions.forEach((_, i) => (s.u32[SCRATCH.steps / 4 + i] = 1));
    const at = s.address;
    this.#context.check(
      this.#context.driver.calls.cuTensorMapEncodeTiled(
        at, DATA_TYPE[dtype], dimensions.length, address, at + SCRATCH.dimensions, at + SCRATCH.strides, at + SCRATCH.box, at + SCRATCH.steps,
        NO_INTERLEAVE, SWIZZLE_128B, L2_PROMOTION_128B, FILL_ZEROS,
      ),
      'describing a tensor to the copy engine',
    );
  }
}

interface Layout {
  /** Innermost first, as the strides (bytes, from the second on) and the box. */
  readonly dimensions: readonly number[];
  readonly strides: readonly number[];
  readonly box: readonly number[];
}

/** The map, then the arrays that describe it: u64 and u32, up to five dimensions. */
const SCRATCH = { dimensions: 128, strides: 168, box: 200, steps: 220, bytes: 240 } as const;
