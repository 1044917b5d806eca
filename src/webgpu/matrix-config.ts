/** Configurations of the matrix tier's kernel: how rows, keys and columns are laid over subgroup matrices of 16 x 16. Pure. */
import type { MatrixSyntax, MatrixTraits } from './matrix-test.ts';

/** Subgroups whose matrices of O pass through workgroup memory at a time. */
export const SCRATCH_SUBGROUPS = 4;

/** What is chosen; the rest of a configuration follows. */
export interface MatrixShape {
  /** Query rows a workgroup: a multiple of 16. */
  readonly rows: number;
  /** Keys a step: a multiple of 16 that divides every block size it is used with. */
  readonly tokens: number;
  readonly subgroups: number;
  /** Ways the d_qk sum is cut, each a subgroup of its own: 1, 2 or 4. */
  readonly slices: number;
  /** Whether the step after the next one's rows are touched, so that they come from the processor's own cache. */
  readonly touch: boolean;
  /** Of 32 keys: softmax and output take 16 at a time, for workgroup memory to hold the rest. All at once when absent. */
  readonly halves?: 2;
}

/** A configuration of shaders/decode_matrix.wgsl. */
export interface MatrixDecodeConfig extends MatrixShape {
  readonly tier: 'matrix';
  /** Names the configuration for good: among all there are, and from one version to the next. */
  readonly key: string;
  readonly syntax: MatrixSyntax;
  readonly threads: number;
  /** Keys that softmax and output take at a time. */
  readonly half: number;
  /**
   * Whether S lies in workgroup memory token by token, which takes less of it. The older syntax's stores by column came out wrong
   * on an NVIDIA driver.
   */
  readonly scoresByToken: boolean;
  /** Matrices of 16 rows of S that a subgroup makes. */
  readonly sliceTiles: number;
  /** Elements of workgroup arrays from one row to the next: such that the 8 rows of a matrix load meet different banks. */
  readonly strides: { readonly KV_STRIDE: number; readonly S_STRIDE: number; readonly P_STRIDE: number };
  readonly sizes: { readonly TILE_SIZE: number; readonly PROBS_SIZE: number; readonly SLICES_SIZE: number };
  /** Bytes of workgroup memory. */
  readonly workgroupBytes: number;
}

/**
 * Best guess first within a row tile: measured on an H200 without bounds checks in shaders. With them, as in a browser, halves win from
 * 16 rows on (shaders/README.md): the tuner finds that out.
 */
export const MATRIX_SHAPES: readonly MatrixShape[] = [
  { rows: 64, tokens: 16, subgroups: 8, slices: 2, touch: true },
  { rows: 64, tokens: 16, subgroups: 8, slices: 4, touch: true },
  { rows: 32, tokens: 32, subgroups: 8, slices: 4, touch: true, halves: 2 },
  { rows: 32, tokens: 16, subgroups: 8, slices: 4, touch: true },
  { rows: 16, tokens: 16, subgroups: 4, slices: 4, touch: false },
  { rows: 16, tokens: 16, subgroups: 4, slices: 4, touch: true },
  { rows: 16, tokens: 32, subgroups: 8, slices: 4, touch: true, halves: 2 },
];

/** @returns the configuration, or `key: reason` where there is none for these widths and this subgroup size */
export function matrixConfig(shape: MatrixShape, { dQk, dV }: { dQk: number; dV: number }, { syntax, subgroupSize }: MatrixTraits): MatrixDecodeConfig | string {
  const { rows, tokens, subgroups, slices, touch, halves = 1 } = shape;
  const key = `matrix ${rows}x${tokens} ${subgroups}/${slices}${halves === 2 ? ' halves' : ''}${touch ? ' touch' : ''}`;
  const threads = subgroups * subgroupSize;
  if (dQk % (16 * slices) !== 0) return `${key}: d_qk = ${dQk} is not a multiple of ${16 * slices}`;
  if (dV % (16 * subgroups) !== 0) return `${key}: d_v = ${dV} is not a multiple of ${16 * subgroups}`;
  const stageLanes = threads / tokens;
  if (stageLanes < 1 || stageLanes > subgroupSize || threads < rows) return `${key}: ${threads} threads are not made for ${rows} rows and ${tokens} tokens`;
  const half = tokens / halves;
  const scoresByToken = syntax === 'new';
  const strides = { KV_STRIDE: dQk / 8 + 1, S_STRIDE: (scoresByToken ? rows : half) / 4 + 1, P_STRIDE: half / 4 };
  const sizes = {
    TILE_SIZE: Math.max(16, tokens) * strides.KV_STRIDE,
    PROBS_SIZE: rows * strides.P_STRIDE,
    SLICES_SIZE: Math.max(slices * (scoresByToken ? half : rows) * strides.S_STRIDE, 64 * Math.min(SCRATCH_SUBGROUPS, subgroups), threads),
  };
  return {
    ...shape, tier: 'matrix', key, syntax, threads, half, scoresByToken,
    // More subgroups than there are slices and row tiles repeat what others do.
    sliceTiles: Math.max(1, (rows / 16) * (slices / subgroups)),
    strides, sizes,
    workgroupBytes: 16 * sizes.TILE_SIZE + 8 * sizes.PROBS_SIZE + 16 * sizes.SLICES_SIZE + 8 * rows + 16,
  };
}
