/**
 * Problem -> kernels and their grids. Pure.
 *
 * There is one shape of heads: 512 + 64 in blocks of 64 tokens, DeepSeek's. What varies with the query rows of a KV head
 * is the kernel: up to 16 are the columns of the matrix products where parts are short, up to 64 their rows, more are row
 * tiles, of which a cluster of two shares each KV block; and with the splits, how the partial results are merged.
 */
import type { DecodeShape } from '../backend.ts';
import { MlaError } from '../errors.ts';
import type { KvDType, ScheduleInfo } from '../mla.ts';
import { countRowTiles } from '../schedule.ts';
import type { CubinName } from './cubin.ts';

// As in native-cuda/params.cuh and decode.cu.
export const D_QK = 576;
export const D_V = 512;
export const BLOCK_TOKENS = 64;
const TILE_ROWS = 64;
export const DECODE_THREADS = 384;
// As in native-cuda/decode_few.cu.
export const DECODE_FEW_THREADS = 320;
const FEW_QUERY_ROWS = 16;
/** KV blocks a part, at most, for which it is the faster one: it starts and ends sooner, and is no faster in between. */
const FEW_KV_BLOCKS = 8;
const FEW_STEP_TOKENS = 32;
/** Dynamic shared memory of the decode kernels: all that a block can have, which their structs Shared are asserted to fit in. */
export const DECODE_SHARED_BYTES = 232448;
const CLUSTER = 2;
/** The decode kernels, by how their names end: where they are and how they are launched. */
export const DECODE_KERNELS: Readonly<Record<'' | '_pair' | '_few', { readonly cubin: CubinName; readonly threads: number; readonly cluster: number }>> = {
  '': { cubin: 'decode', threads: DECODE_THREADS, cluster: 1 },
  _pair: { cubin: 'decode', threads: DECODE_THREADS, cluster: CLUSTER },
  _few: { cubin: 'decode_few', threads: DECODE_FEW_THREADS, cluster: 1 },
};
const ROW_TILING = { rowTiles: [TILE_ROWS], rowTileMultiple: CLUSTER } as const;

// As in native-cuda/combine.cu.
export const COMBINE_THREADS = 256;
const COMBINE_WARPS = 8;
const FEW = 7;
const FEW_ROWS = 4;
const MOST_SPLITS = 512;

/** Most splits that a warp merges whole rows of: measured on an H200, 4 against 8. */
const FEW_SPLITS = 4;
/**
 * A merge of few blocks is kept from gathering on the multiprocessors that the decode kernel leaves idle, by asking for
 * shared memory: room for one or two blocks each.
 */
export const COMBINE_ALONE_BYTES = 180_000;
const COMBINE_PAIR_BYTES = 88_000;

const MOST_GRID_Y = 65535;
const MOST_I32 = 2 ** 31 - 1;

export interface DecodeConfig {
  readonly kernel: DecodeKernelName;
  /** What the copy engine fetches at a time: tokens of a KV block, query rows. */
  readonly boxTokens: number;
  readonly boxRows: number;
  /** Query rows of a KV head. */
  readonly rows: number;
  /** Row tiles, in whole clusters; parts; KV heads. */
  readonly grid: readonly [number, number, number];
  /** Undefined when no sequence is split. */
  readonly combine: { readonly kernel: CombineKernelName; readonly blocks: number; readonly sharedBytes: number } | undefined;
  /** Rows of a KV head are not contiguous in q: they are gathered first. */
  readonly gatherQ: boolean;
}

export type DecodeKernelName = `decode_${KvDType}${keyof typeof DECODE_KERNELS}`;
export type CombineKernelName = `combine_${KvDType}`;

/** What of a plan decides on kernels. */
export interface PlanFacts {
  readonly parts: number;
  /** KV blocks of all sequences. */
  readonly kvBlocks: number;
  /** Thread blocks of the merge; 0 when no sequence is split. */
  readonly mergeBlocks: number;
  /** Most splits that a sequence has. */
  readonly mostSplits: number;
}

/** As many partial results of a row as a merge loads at once: 8 warps, 8 loads each in flight. */
const MOST_SMALL_PARTS = 64;
/** What a sequence's Q and end take, in tokens' time: measured on an H200, 0 to 192. */
const SEQUENCE_TOKENS = 192;

/** How the scheduler is to cut for a device. */
export function scheduleInfo(multiProcessors: number): ScheduleInfo {
  return { slots: multiProcessors, ...ROW_TILING, minTokensPerPart: BLOCK_TOKENS, mostSmallParts: MOST_SMALL_PARTS, sequenceTokens: SEQUENCE_TOKENS };
}

/** @throws MlaError limit-exceeded */
export function checkShape({ b, sQ, hQ, hKv, dQk, dV, blockSize }: DecodeShape): void {
  const refuse = (argument: string, summary: string, expected: string, got: string): MlaError =>
    new MlaError('limit-exceeded', summary, { argument, expected, got, fix: "Use backend 'webgpu' or 'cpu'" });
  if (dV !== D_V) throw refuse('headDimV', 'the cuda kernels have one value width', String(D_V), String(dV));
  if (dQk !== D_QK) throw refuse('q.shape[3]', 'the cuda kernels have one head width', String(D_QK), String(dQk));
  if (blockSize !== BLOCK_TOKENS) throw refuse('kvCache.shape[1]', 'the cuda kernels have one block size', String(BLOCK_TOKENS), String(blockSize));
  if (hKv > MOST_GRID_Y) throw refuse('kvCache.shape[2]', 'too many KV heads for one launch', `at most ${MOST_GRID_Y}`, String(hKv));
  if (b * sQ * hQ > MOST_I32) throw refuse('q', 'too many rows', `b * s_q * h_q at most ${MOST_I32}`, String(b * sQ * hQ));
}

/** @throws MlaError limit-exceeded */
export function chooseDecodeConfig(shape: DecodeShape, plan: PlanFacts, multiProcessors: number): DecodeConfig {
  checkShape(shape);
  const { sQ, hQ, hKv, dtype } = shape;
  const rows = (sQ * hQ) / hKv;
  const rowTiles = countRowTiles(ROW_TILING, rows);
  const few = rows <= FEW_QUERY_ROWS && plan.kvBlocks <= FEW_KV_BLOCKS * plan.parts;
  const refuse = (what: string, most: number, got: number): MlaError =>
    new MlaError('limit-exceeded', `too many ${what} for one launch`, { argument: 'metadata', expected: `at most ${most}`, got: String(got), fix: 'Use metadata that this instance made' });
  if (plan.parts > MOST_GRID_Y) throw refuse('parts', MOST_GRID_Y, plan.parts);
  if (plan.mostSplits > MOST_SPLITS) throw refuse('splits of a sequence', MOST_SPLITS, plan.mostSplits);
  const blocks = plan.mergeBlocks;
  return {
    kernel: few ? `decode_${dtype}_few` : rowTiles > 1 ? `decode_${dtype}_pair` : `decode_${dtype}`,
    boxTokens: few ? FEW_STEP_TOKENS : BLOCK_TOKENS,
    boxRows: few ? FEW_QUERY_ROWS : TILE_ROWS,
    rows,
    grid: [rowTiles, plan.parts, hKv],
    combine: blocks === 0 ? undefined : { kernel: `combine_${dtype}`, blocks, sharedBytes: blocks <= multiProcessors ? COMBINE_ALONE_BYTES : blocks <= 2 * multiProcessors ? COMBINE_PAIR_BYTES : 0 },
    gatherQ: hKv > 1 && sQ > 1,
  };
}

/**
 * What the thread blocks of the merge take, four numbers each: the sequence; `first row << 3 | 7` for whole rows of a sequence
 * of few splits, else `first half row << 3 | log2 of the warps that share one`; the index of the sequence's first partial
 * result; its splits.
 *
 * @param sequences a plan's rows of sequences
 * @param rows s_q * h_q
 */
export function mergeItems(sequences: Int32Array, rows: number): { readonly items: Int32Array; readonly mostSplits: number } {
  const items: number[] = [];
  let mostSplits = 0;
  for (let i = 0; i * 4 < sequences.length; i++) {
    const splits = sequences[i * 4 + 2]!;
    const firstPartial = sequences[i * 4 + 3]!;
    mostSplits = Math.max(mostSplits, splits);
    if (splits === 1) continue;
    if (splits <= FEW_SPLITS) {
      for (let row = 0; row < rows; row += COMBINE_WARPS * FEW_ROWS) items.push(i, (row << 3) | FEW, firstPartial, splits);
    } else {
      const sharing = splits <= 8 ? 0 : splits <= 16 ? 1 : splits <= 32 ? 2 : 3;
      for (let half = 0; half < 2 * rows; half += COMBINE_WARPS >> sharing) items.push(i, (half << 3) | sharing, firstPartial, splits);
    }
  }
  return { items: Int32Array.from(items), mostSplits };
}

/** Scratch for partial results: two a part, each s_q * h_q rows of d_v f16; then four f32 of each row. */
export function partialsLayout(parts: number, sQ: number, hQ: number): { readonly infoAt: number; readonly bytes: number } {
  const rows = 2 * parts * sQ * hQ;
  return { infoAt: rows * D_V * 2, bytes: rows * (D_V * 2 + 16) };
}
