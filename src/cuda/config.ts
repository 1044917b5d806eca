/**
 * Problem -> kernels and their grids. Pure.
 *
 * There is one shape of heads: 512 + 64 in blocks of 64 tokens, DeepSeek's. What varies is whether one row tile or a
 * cluster of two shares each KV block, and how the partial results are merged.
 */
import type { DecodeOp } from '../backend.ts';
import { MlaError } from '../errors.ts';
import type { KvDType, ScheduleInfo } from '../mla.ts';

// As in native-cuda/params.cuh and decode.cu.
export const D_QK = 576;
export const D_V = 512;
export const BLOCK_TOKENS = 64;
const TILE_ROWS = 64;
export const DECODE_THREADS = 384;
/** Dynamic shared memory of the decode kernels: all that a block can have, which their struct Shared is asserted to fit in. */
export const DECODE_SHARED_BYTES = 232448;
const CLUSTER = 2;

// As in native-cuda/combine.cu.
const COMBINE_SLICES = 4;
const FEW_SPLITS = 8;
const FEW_ROWS = 4;

const MOST_GRID_Y = 65535;
const MOST_I32 = 2 ** 31 - 1;

export interface DecodeConfig {
  readonly kernel: DecodeKernelName;
  /** Query rows of a KV head. */
  readonly rows: number;
  /** Thread blocks over rows, whole clusters. */
  readonly rowTiles: number;
  readonly grid: readonly [number, number, number];
  /** Undefined when no sequence is split. */
  readonly combine: { readonly kernel: CombineKernelName; readonly grid: readonly [number, number, number] } | undefined;
  /** Rows of a KV head are not contiguous in q: they are gathered first. */
  readonly gatherQ: boolean;
}

export type DecodeKernelName = `decode_${KvDType}${'' | '_pair'}`;
export type CombineKernelName = `combine_${'' | 'few_'}${KvDType}`;

export type DecodeShape = Pick<DecodeOp, 'b' | 'sQ' | 'hQ' | 'hKv' | 'dQk' | 'dV' | 'blockSize' | 'dtype'>;

/** What of a plan decides on kernels. */
export interface PlanFacts {
  readonly parts: number;
  readonly splitSequences: number;
  /** Most splits that a sequence has. */
  readonly mostSplits: number;
}

/** How the scheduler is to cut for a device. */
export function scheduleInfo(multiProcessors: number): ScheduleInfo {
  return { slots: multiProcessors, rowTiles: [TILE_ROWS], rowTileMultiple: CLUSTER, minTokensPerPart: BLOCK_TOKENS };
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
export function chooseDecodeConfig(shape: DecodeShape, plan: PlanFacts): DecodeConfig {
  checkShape(shape);
  const { sQ, hQ, hKv, dtype } = shape;
  const rows = (sQ * hQ) / hKv;
  const tiles = Math.ceil(rows / TILE_ROWS);
  const paired = tiles > 1;
  const rowTiles = paired ? Math.ceil(tiles / CLUSTER) * CLUSTER : 1;
  if (plan.splitSequences > MOST_GRID_Y) {
    throw new MlaError('limit-exceeded', 'too many split sequences for one launch', {
      argument: 'metadata', expected: `at most ${MOST_GRID_Y}`, got: String(plan.splitSequences), fix: 'Use metadata that this instance made',
    });
  }
  const few = plan.mostSplits <= FEW_SPLITS;
  return {
    kernel: paired ? `decode_${dtype}_pair` : `decode_${dtype}`,
    rows, rowTiles,
    grid: [plan.parts * rowTiles, hKv, 1],
    combine:
      plan.splitSequences === 0 ? undefined
      : few ? { kernel: `combine_few_${dtype}`, grid: [Math.ceil((sQ * hQ) / FEW_ROWS), plan.splitSequences, 1] }
      : { kernel: `combine_${dtype}`, grid: [sQ * hQ, plan.splitSequences, COMBINE_SLICES] },
    gatherQ: hKv > 1 && sQ > 1,
  };
}

/** Scratch for partial results: two a part, each s_q * h_q rows of d_v f32; then the LSE of each row. */
export function partialsLayout(parts: number, sQ: number, hQ: number): { readonly lseAt: number; readonly bytes: number } {
  const rows = 2 * parts * sQ * hQ;
  return { lseAt: rows * D_V * 4, bytes: rows * (D_V + 1) * 4 };
}

/** Blocks of threads in a cluster of that kernel. */
export function clusterOf(kernel: DecodeKernelName): number {
  return kernel.endsWith('_pair') ? CLUSTER : 1;
}
