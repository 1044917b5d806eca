/** Configurations of the matrix tier's kernel: how rows, keys and columns are laid over subgroup matrices of 16 x 16. Pure. */
import type { MatrixSyntax } from './matrix-syntax.ts';
import type { MatrixTraits } from './matrix-test.ts';

/** The share of Q's columns in workgroup memory, where they are split: as much as there is room for beside 64 rows. */
const SPLIT_Q = 2 / 9;

/** What is chosen; the rest of a configuration follows. Numbers are powers of two. */
export interface MatrixShape {
  /** Query rows a workgroup: a multiple of 16. */
  readonly rows: number;
  /** Keys a step: a multiple of 16 that divides every block size it is used with. */
  readonly tokens: number;
  /** As many as a step's S has matrices of 16 x 16, or a multiple: then the d_qk sum is cut into slices. */
  readonly subgroups: number;
  /**
   * Steps whose keys are in workgroup memory. With two, which there is room for with steps of 16, a step's scores do not wait until all
   * have made the output of the step before.
   */
  readonly tiles: 1 | 2;
  /** When the rows to be staged next are asked for: before the scores, or once they are made, before they are stored. */
  readonly fetch: 'scores' | 'scored';
  /**
   * Whether some of Q's columns stay in workgroup memory: where O takes 128 registers a thread, Q's 72 beside them leave too few to
   * load ahead with. There is no room for them beside two tiles.
   */
  readonly splitQ: boolean;
  /**
   * Whether each subgroup has a branch of its own for its products, whose places in workgroup memory are constants: with bounds checks, as
   * in a browser, all that a compiler cannot prove costs several times what the products do.
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
  /** Rows of Q at a time that go by way of the KV tiles. */
  readonly qRows: number;
  /** Ways the d_qk sum is cut: a subgroup makes one matrix of S over one slice. */
  readonly slices: number;
  /** Matrices of Q, 16 columns each, that a slice has, and how many of them a subgroup holds in registers. */
  readonly sliceSteps: number;
  readonly qHeld: number;
  /** Elements of workgroup arrays from one row to the next: such that the 8 rows of a matrix load meet different banks. */
  readonly strides: { readonly KV_STRIDE: number; readonly S_STRIDE: number; readonly P_STRIDE: number; readonly Q_STRIDE: number };
  readonly sizes: { readonly TILE_SIZE: number; readonly PROBS_SIZE: number; readonly Q_SIZE: number; readonly SLICES_SIZE: number };
  /**
   * How O leaves: where to, and as how many matrices of a row tile a subgroup at a time, whose rows lie O_STRIDE elements apart there. The
   * fewer rounds, the fewer barriers at a sequence's end. Only the newer syntax has room for numbers of f32 where the keys are.
   */
  readonly leaving: { readonly array: 'kv_tile' | 'slices'; readonly O_ROUND: number; readonly O_STRIDE: number };
  /** Bytes of workgroup memory. */
  readonly workgroupBytes: number;
}

/** 64 rows cost more than they save where loads are small (shaders/README.md): the tuner finds out. */
export const MATRIX_SHAPES: readonly MatrixShape[] = [
  { rows: 64, tokens: 16, subgroups: 8, tiles: 1, fetch: 'scores', splitQ: true, fixed: true },
  { rows: 64, tokens: 16, subgroups: 8, tiles: 2, fetch: 'scored', splitQ: false, fixed: false },
  { rows: 32, tokens: 32, subgroups: 8, tiles: 1, fetch: 'scored', splitQ: false, fixed: true },
  { rows: 32, tokens: 32, subgroups: 8, tiles: 1, fetch: 'scores', splitQ: false, fixed: false },
  // For blocks of 16.
  { rows: 32, tokens: 16, subgroups: 8, tiles: 1, fetch: 'scored', splitQ: false, fixed: true },
  { rows: 16, tokens: 16, subgroups: 4, tiles: 1, fetch: 'scores', splitQ: false, fixed: true },
  { rows: 16, tokens: 16, subgroups: 4, tiles: 1, fetch: 'scores', splitQ: false, fixed: false },
];

/** All, best guess first within a row tile: without bounds checks those that are not `fixed` win. */
export function matrixShapes({ unchecked = false }: { readonly unchecked?: boolean }): readonly MatrixShape[] {
  return [...MATRIX_SHAPES].sort((a, b) => Number(a.fixed === unchecked) - Number(b.fixed === unchecked));
}

/** @returns the configuration, or `key: reason` where there is none for these widths and this subgroup size */
export function matrixConfig(shape: MatrixShape, { dQk, dV }: { dQk: number; dV: number }, { syntax, subgroupSize }: MatrixTraits): MatrixDecodeConfig | string {
  const { rows, tokens, subgroups, tiles, fetch, splitQ, fixed } = shape;
  const keyTiles = tokens / 16;
  const slices = subgroups / ((rows / 16) * keyTiles);
  const key = `matrix ${rows}x${tokens} ${subgroups}/${slices}${keyTiles === 1 ? '' : `x${keyTiles}`}${tiles === 1 ? '' : ` ${tiles} tiles ahead`} ${fetch}${splitQ ? ' split' : ''}${fixed ? ' fixed' : ''}`;
  const threads = subgroups * subgroupSize;
  const qRows = Math.min(rows, tokens * tiles);
  if (dQk % (16 * slices) !== 0) return `${key}: d_qk = ${dQk} is not a multiple of ${16 * slices}`;
  if (dV % (16 * subgroups) !== 0) return `${key}: d_v = ${dV} is not a multiple of ${16 * subgroups}`;
  if (threads < tokens || threads / qRows > subgroupSize || threads < rows) return `${key}: ${threads} threads are not made for ${rows} rows and ${tokens} tokens`;
  const sliceSteps = dQk / 16 / slices;
  const qHeld = sliceSteps - (splitQ ? Math.ceil(sliceSteps * SPLIT_Q) : 0);
  const strides = { KV_STRIDE: dQk / 8 + 1, S_STRIDE: tokens / 4, P_STRIDE: tokens / 4 + 2, Q_STRIDE: 2 * slices * (sliceSteps - qHeld) + 1 };
  const sizes = {
    TILE_SIZE: tokens * strides.KV_STRIDE,
    PROBS_SIZE: rows * strides.P_STRIDE,
    Q_SIZE: splitQ ? rows * strides.Q_STRIDE : 0,
    SLICES_SIZE: Math.max(slices * rows * strides.S_STRIDE, 64 * subgroups, threads),
  };
  // A padded row apart, so that not all rows of a matrix meet the same banks.
  const round = [4, 2, 1].find((n) => syntax === 'new' && (dV / 16 / subgroups) % n === 0 && 16 * subgroups * (4 * n + 1) <= tiles * sizes.TILE_SIZE);
  return {
    ...shape, tier: 'matrix', key, syntax, threads, qRows, slices, sliceSteps, qHeld, strides, sizes,
    leaving: round === undefined ? { array: 'slices', O_ROUND: 1, O_STRIDE: 4 } : { array: 'kv_tile', O_ROUND: round, O_STRIDE: 4 * round + 1 },
    workgroupBytes: 16 * (tiles * sizes.TILE_SIZE + sizes.Q_SIZE + sizes.SLICES_SIZE) + 8 * sizes.PROBS_SIZE + (syntax === 'old' ? 16 * rows : 0) + 4 * rows + 16,
  };
}
