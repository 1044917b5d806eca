/** Configurations of the matrix tier's kernel: how rows, keys and columns are laid over subgroup matrices of 16 x 16. Pure. */
import type { MatrixSyntax, MatrixTraits } from './matrix-test.ts';

/** Subgroups whose matrices of O pass through workgroup memory at a time. */
export const SCRATCH_SUBGROUPS = 4;

/** What is chosen; the rest of a configuration follows. Numbers are powers of two. */
export interface MatrixShape {
  /** Query rows a workgroup: a multiple of 16. */
  readonly rows: number;
  /** Keys a step: a multiple of 16 that divides every block size it is used with. */
  readonly tokens: number;
  /** As many as a step's S has matrices of 16 x 16, or a multiple: then the d_qk sum is cut into slices. */
  readonly subgroups: number;
  /** Before which products the next step's rows are asked for. Before the scores: they are converted between the output's products. */
  readonly fetch: 'scores' | 'output';
  /**
   * Whether each subgroup has a branch of its own for its products, whose places in workgroup memory are constants, and the loop a
   * bound: with bounds checks, as in a browser, all that a compiler cannot prove costs several times what the products do.
   */
  readonly fixed: boolean;
}

/** A configuration of shaders/decode_matrix.wgsl. */
export interface MatrixDecodeConfig extends MatrixShape {
  readonly tier: 'matrix';
  /** Names the configuration for good: among all there are, and from one version to the next. */
  readonly key: string;
  readonly syntax: MatrixSyntax;
  readonly threads: number;
  /** Ways the d_qk sum is cut: a subgroup makes one matrix of S over one slice. */
  readonly slices: number;
  /** Elements of workgroup arrays from one row to the next: such that the 8 rows of a matrix load meet different banks. */
  readonly strides: { readonly KV_STRIDE: number; readonly S_STRIDE: number; readonly P_STRIDE: number };
  readonly sizes: { readonly TILE_SIZE: number; readonly PROBS_SIZE: number; readonly SLICES_SIZE: number };
  /** Bytes of workgroup memory. */
  readonly workgroupBytes: number;
}

/**
 * Best guess first within a row tile: what is fast with bounds checks, as in a browser. Without them the others win by a tenth
 * (shaders/README.md), as the tuner finds out.
 */
export const MATRIX_SHAPES: readonly MatrixShape[] = [
  { rows: 32, tokens: 32, subgroups: 8, fetch: 'output', fixed: true },
  { rows: 32, tokens: 32, subgroups: 8, fetch: 'output', fixed: false },
  // For blocks of 16.
  { rows: 32, tokens: 16, subgroups: 8, fetch: 'output', fixed: true },
  { rows: 16, tokens: 16, subgroups: 4, fetch: 'scores', fixed: true },
  { rows: 16, tokens: 16, subgroups: 4, fetch: 'scores', fixed: false },
  { rows: 16, tokens: 32, subgroups: 8, fetch: 'scores', fixed: false },
];

/** @returns the configuration, or `key: reason` where there is none for these widths and this subgroup size */
export function matrixConfig(shape: MatrixShape, { dQk, dV }: { dQk: number; dV: number }, { syntax, subgroupSize }: MatrixTraits): MatrixDecodeConfig | string {
  const { rows, tokens, subgroups, fetch, fixed } = shape;
  const keyTiles = tokens / 16;
  const slices = subgroups / ((rows / 16) * keyTiles);
  const key = `matrix ${rows}x${tokens} ${subgroups}/${slices}${keyTiles === 1 ? '' : `x${keyTiles}`} ${fetch}${fixed ? ' fixed' : ''}`;
  const threads = subgroups * subgroupSize;
  if (dQk % (16 * slices) !== 0) return `${key}: d_qk = ${dQk} is not a multiple of ${16 * slices}`;
  if (dV % (16 * subgroups) !== 0) return `${key}: d_v = ${dV} is not a multiple of ${16 * subgroups}`;
  const stageLanes = threads / tokens;
  if (stageLanes < 1 || stageLanes > subgroupSize || threads < rows) return `${key}: ${threads} threads are not made for ${rows} rows and ${tokens} tokens`;
  const strides = { KV_STRIDE: dQk / 8 + 1, S_STRIDE: tokens / 4, P_STRIDE: tokens / 4 + 2 };
  const sizes = {
    TILE_SIZE: tokens * strides.KV_STRIDE,
    PROBS_SIZE: rows * strides.P_STRIDE,
    SLICES_SIZE: Math.max(slices * rows * strides.S_STRIDE, 64 * Math.min(SCRATCH_SUBGROUPS, subgroups), threads),
  };
  return {
    ...shape, tier: 'matrix', key, syntax, threads, slices, strides, sizes,
    workgroupBytes: 16 * sizes.TILE_SIZE + 8 * sizes.PROBS_SIZE + 16 * sizes.SLICES_SIZE + 8 * rows + 16,
  };
}
