/** Launcher of shaders/decode_matrix.wgsl and decode_exact.wgsl: the split-KV kernel on subgroup matrices. */
import bf16Source from '../../shaders/bf16.wgsl?raw';
import exactSource from '../../shaders/decode_exact.wgsl?raw';
import matrixSource from '../../shaders/decode_matrix.wgsl?raw';
import type { KernelProblem, Segmentation } from './config.ts';
import { constants, expand, kvBindings, loadKv, type Kernels } from './kernel.ts';
import type { MatrixDecodeConfig } from './matrix-config.ts';
import { MATRIX_ARRAYS, MATRIX_ENABLES, older } from './matrix-syntax.ts';
import { PLAN_LAYOUT } from '../plan.ts';

/** Bindings: q, plan, partials, out, lse, then the cache's segments. */
export function decodeMatrixKernel<Result>(kernels: Kernels<Result>, op: KernelProblem, config: MatrixDecodeConfig, kv: Segmentation): Result {
  return kernels.get(
    `decode ${op.dtype} d${op.dQk}/${op.dV} h${op.hKv} ${config.key} kv${kv.segments}/${kv.blocksPerSegment}`,
    () => [
      { name: 'q', access: 'read', element: 'vec4<u32>' },
      { name: 'plan', access: 'read', element: 'u32' },
      { name: 'partials', access: 'read_write', element: 'vec2<f32>' },
      { name: 'out', access: 'read_write', element: 'vec2<u32>' },
      { name: 'lse', access: 'read_write', element: 'u32' },
      ...kvBindings(kv.segments, 'read'),
    ],
    () => decodeMatrixShader(op, config, kv),
    [MATRIX_ENABLES, 'diagnostic(off, subgroup_uniformity);'],
  );
}

/** With two tiles: matrices of V that are loaded while all wait for the softmax of all. More cost registers that others are short of. */
const VALUES_AHEAD = 1;
/** Likewise: products of the next step's scores that are made while rows are converted and stored. */
const PRODUCTS_AHEAD = 4;

/** What follows the bindings. */
function decodeMatrixShader({ dtype, dQk, dV, hKv }: KernelProblem, config: MatrixDecodeConfig, { segments, blocksPerSegment }: Segmentation): string {
  const { rows, tokens, threads, qRows, subgroups, slices, sliceSteps, qHeld, tiles, fetch, splitQ, fixed, leaving, syntax } = config;
  const vecs = dQk / 8;
  const ownVecs = dV / 8 / subgroups;
  const restVecs = (dQk - dV) / 8;
  const lanes = threads / subgroups;
  const qLanes = threads / qRows;
  const rowThreads = Math.min(threads / rows, tokens / 4);
  const outTiles = dV / 16 / subgroups;
  // Steps that have no event are a loop by themselves: elsewhere it costs more than it brings.
  const innerLoop = fixed || rows > 16;
  // There are registers for what is ahead where the loop has nothing rare in it.
  const ahead = tiles === 2 && innerLoop;
  const valuesAhead = ahead ? Math.min(VALUES_AHEAD, outTiles) : 0;
  const productsAhead = ahead ? Math.min(PRODUCTS_AHEAD, sliceSteps) : 0;
  const values = {
    ...PLAN_LAYOUT, IS_BF16: dtype === 'bf16', H_KV: hKv, SEGMENTS: segments, BLOCKS_PER_SEGMENT: blocksPerSegment, VECS: vecs, V_VECS: dV / 8, V_QUADS: dV / 4,
    ROWS: rows, ROW_TILES: rows / 16, TOKENS: tokens, TILES: tiles, TWO_TILES: tiles === 2, KEY_TILES: tokens / 16, THREADS: threads, SUBGROUPS: subgroups,
    SLICES: slices, SLICE_STEPS: sliceSteps, S_SLICE: rows * config.strides.S_STRIDE, OUT_TILES: outTiles,
    LANES: lanes, OWN_VECS: ownVecs, OWN_LOADS: Math.ceil((tokens * ownVecs) / lanes), REST_VECS: restVecs,
    REST_LOADS: Math.ceil((tokens * restVecs) / threads), Q_ROWS: qRows, Q_ROUNDS: rows / qRows, Q_LANES: qLanes, Q_SHUFFLES: Math.log2(qLanes), Q_LOADS: Math.ceil(vecs / qLanes),
    FETCH_FIRST: fetch === 'scores',
    // Where the next rows are is worked out at a step's end, not when they are asked for: where there are registers to keep it in.
    AHEAD: !splitQ,
    INNER_LOOP: innerLoop,
    O_IN_TILE: leaving.array === 'kv_tile', O_QUADS: 4 * leaving.O_ROUND, O_STRIDE: leaving.O_STRIDE, SPLIT_Q: splitQ, Q_HELD: qHeld, Q_LEFT: 2 * (sliceSteps - qHeld),
    ROW_THREADS: rowThreads, ROW_SHUFFLES: Math.log2(rowThreads), LANE_QUADS: tokens / 4 / rowThreads, ALL_OWN: rowThreads * rows === threads,
    EXACT_ITEMS: Math.ceil((4 * dV) / 8 / threads), ...config.strides, ...config.sizes,
  };
  // With bounds checks compilers also count the turns of a loop that may not end, in every thread. Without, a bound slows down one tile, and
  // has a loop of few instructions unrolled.
  const bounded = 'for (var turn = 0u; turn < 0x7fffffffu; turn++)';
  const source = matrixSource
    .replaceAll(/^ *FETCH_NEXT$/gm, `{\nlet fetched = token0 + TILES * TOKENS;\n${fetchNext(values, segments, fixed)}\n}`)
    .replace(/^ *SCORES_AHEAD$/m, scoresAhead(values, productsAhead, 'here').join('\n'))
    .replaceAll(/^ *NEXT$/gm, next(values, productsAhead))
    .replaceAll(/^ *FETCH_Q$/gm, fetchQ(values))
    .replace(/^ *FETCH$/m, fetchFirst(values, segments))
    .replace(/^ *FETCH_SECOND$/m, fetchFirst(values, segments, '2'))
    .replaceAll(/^ *STAGE$/gm, stage(values))
    .replace(/^ *STAGE_SECOND$/m, stage(values, '2'))
    .replace(/^ *LEAVE$/m, leave(values, leaving))
    .replace(/^ *SCORES$/m, scores(values, fixed, productsAhead))
    .replaceAll(/^ *V_AHEAD$/gm, all(valuesAhead, (c) => loadV(0, c, 'me')).join('\n'))
    .replaceAll(/^ *OUTPUT_AHEAD$/gm, output(values, fixed, valuesAhead))
    .replaceAll(/^ *OUTPUT$/gm, output(values, fixed, 0))
    .replaceAll(/\bTURNS\b(?= \{)/g, fixed || tiles === 2 ? bounded : 'loop')
    .replaceAll(/\bSTEPS\b(?= \{)/g, fixed ? bounded : 'loop');
  const body = expand([source, exactSource].join('\n'), values);
  return [constants(values), expand(MATRIX_ARRAYS[syntax], values), loadKv(segments), bf16Source, syntax === 'old' ? older(body) : body].join('\n');
}

type Counts = Readonly<
  Record<'SUBGROUPS' | 'SLICES' | 'SLICE_STEPS' | 'Q_HELD' | 'KEY_TILES' | 'OUT_TILES' | 'ROW_TILES' | 'TOKENS' | 'LANES' | 'Q_LOADS' | 'Q_LANES', number>
  & Record<'OWN_VECS' | 'OWN_LOADS' | 'REST_VECS' | 'REST_LOADS' | 'KV_STRIDE' | 'VECS' | 'H_KV', number> & Record<'TWO_TILES' | 'AHEAD', boolean>
>;

function all<T>(count: number, line: (i: number) => T): T[] {
  return Array.from({ length: count }, (_, i) => line(i));
}

/** One vector of a step's rows that a thread sees to. */
interface Share {
  readonly name: string;
  /** Where it is in the cache, in vectors from that of the thread's `own_row` on. */
  readonly from: string;
  /** Where it goes in a tile. */
  readonly to: string;
  /** Before what only one of those does who have it: that a share is nobody's would be a branch, at whose end all loads were waited for. */
  readonly mine: string;
}

/**
 * A thread's shares of a step's rows: of the columns of V that its subgroup alone reads, then of those behind V, which are dealt to the
 * subgroups in turn. Where lanes and vectors divide, shares differ by constants and by what a subgroup has in common.
 *
 * @param tile the second one's have names of their own where both are under way
 */
function shares({ TOKENS, SUBGROUPS, LANES, OWN_VECS, OWN_LOADS, REST_VECS, REST_LOADS, KV_STRIDE, VECS, H_KV }: Counts, tile: '' | '2'): Share[] {
  const stride = H_KV * VECS;
  const owned = TOKENS * OWN_VECS;
  const rest = TOKENS * REST_VECS;
  /** Where they do not: the `hand`th LANES of `items`, `width` of which are a row, from column `first` on. */
  const uneven = (name: string, hand: string, items: number, width: 'OWN_VECS' | 'REST_VECS', first: string, whole: boolean): Share => {
    const item = `${hand} * LANES + subgroup_lane`;
    const share = `min(${item}, ${items - 1}u)`;
    const vec = `${first} + ${share} % ${width}`;
    return {
      name, from: `(${share} / ${width} - own_row) * ${stride}u + ${vec}`, to: `${share} / ${width} * KV_STRIDE + ${vec}`,
      mine: whole ? '' : `if (${item} < ${items}u) `,
    };
  };
  return [
    ...all(OWN_LOADS, (v): Share => {
      const name = `x${tile}_${v}`;
      if ((LANES % OWN_VECS !== 0 && OWN_VECS % LANES !== 0) || owned % LANES !== 0) return uneven(name, `${v}u`, owned, 'OWN_VECS', 'me * OWN_VECS', (v + 1) * LANES <= owned);
      const [row, vec] = [Math.floor((v * LANES) / OWN_VECS), (v * LANES) % OWN_VECS];
      return { name, from: `me * OWN_VECS + own_vec + ${row * stride + vec}u`, to: `me * OWN_VECS + own_to + ${row * KV_STRIDE + vec}u`, mine: '' };
    }),
    ...all(REST_LOADS, (v): Share => {
      const name = `z${tile}_${v}`;
      const hand = `${v * SUBGROUPS}u + me`;
      const whole = (v + 1) * SUBGROUPS * LANES <= rest;
      if (LANES % REST_VECS !== 0 || rest % LANES !== 0) return uneven(name, `(${hand})`, rest, 'REST_VECS', 'V_VECS', whole);
      const hands = rest / LANES;
      const row = `${whole ? `(${hand})` : `min(${hand}, ${hands - 1}u)`} * ${LANES / REST_VECS}u`;
      return { name, from: `${row} * ${stride}u + V_VECS + rest_from`, to: `${row} * KV_STRIDE + V_VECS + rest_to`, mine: whole ? '' : `if (${hand} < ${hands}u) ` };
    }),
  ];
}

/** This thread's shares of the rows where `row_at` says, under way from here on. */
function fetch(counts: Counts, segment: number, tile: '' | '2' = ''): string[] {
  return shares(counts, tile).map(({ name, from }) => `${name} = kv${segment}[row_at.y + ${from}];`);
}

/** The block of the step after that of `fetched`. */
const NEXT_BLOCK = 'next_block = block_of(w, fetched + TOKENS + own_row);';

/** One of a sequence's first steps, of which it may have none, and the next step's block. */
function fetchFirst(counts: Counts, segments: number, tile: '' | '2' = ''): string {
  return [
    ...all(segments, (segment) => [`if (fetched < w.end${segments === 1 ? '' : ` && row_at.x == ${segment}u`}) {`, ...fetch(counts, segment, tile), '}'].join('\n')),
    NEXT_BLOCK,
  ].join('\n');
}

/**
 * The rows of the step at `fetched`, and the next step's block. Past the sequence's end rows of its last block, which nobody sees: where there are
 * none, a compiler would keep those of the step before. In a branch loads stay where they are; without one they may be put off until they are
 * waited for, which costs 16 and 32 rows a quarter, but else less than the branch. Not in a branch of a branch, at whose end they would be waited for.
 */
function fetchNext(counts: Counts, segments: number, fixed: boolean): string {
  const rows = fetch(counts, 0);
  return [
    ...(counts.AHEAD ? [] : ['row_at = row_in(w, next_block, fetched + own_row);']),
    ...(segments > 1 ? [choose('row_at.x', segments, (segment) => [NEXT_BLOCK, ...fetch(counts, segment)])]
      : fixed ? [NEXT_BLOCK, ...rows]
      : counts.TWO_TILES ? [...rows, NEXT_BLOCK]
      : ['if (fetched < w.end) {', ...rows, '} else {', ...shares(counts, '').map(({ name }) => `${name} = vec4<u32>();`), '}', NEXT_BLOCK]),
  ].join('\n');
}

/** This thread's share of Q_ROWS rows of Q from `rows_at` on, under way from here on. */
function fetchQ({ Q_LOADS, Q_LANES, VECS }: Counts): string {
  // Past the row's end its last vector again.
  const vecOf = (v: number): string => ((v + 1) * Q_LANES <= VECS ? `q_vec + ${v * Q_LANES}u` : `min(q_vec + ${v * Q_LANES}u, VECS - 1u)`);
  return [
    'let at = q_at(w, rows_at + q_row);',
    ...all(Q_LOADS, (v) => `y_$t_${v} = q[at + ${vecOf(v)}];`),
  ].join('\n');
}

/** The first products of the next step's scores, the rows that are under way into the tile that this subgroup has made its output of, and on to the next step. */
function next(counts: Counts, productsAhead: number): string {
  const { TWO_TILES, AHEAD } = counts;
  return [
    ...scoresAhead(counts, productsAhead, 'TILE_SIZE - here'),
    'STAGE', ...(AHEAD ? [`row_at = row_in(w, next_block, token0 + ${TWO_TILES ? 3 : 2}u * TOKENS + own_row);`] : []),
    'token0 += TOKENS;', TWO_TILES ? 'here = TILE_SIZE - here;' : 'workgroupBarrier();',
  ].join('\n');
}

/** This thread's shares as f16 into the tile at `here`. */
function stage(counts: Counts, tile: '' | '2' = ''): string {
  return shares(counts, tile).map(({ name, to, mine }) => `${mine}{ tile_put(here + ${to}, halves(${name})); }`).join('\n');
}

/** `body` for whichever of `count` values from 0 on `value` has. */
function choose(value: string, count: number, body: (i: number) => string[]): string {
  return [`switch ${value} {`, ...all(count, (i) => [i === count - 1 ? 'default: {' : `case ${i}u: {`, ...body(i), '}'].join('\n')), '}'].join('\n');
}

/** `body` for the value of `me`, this subgroup, or in a branch for each of the last bits that it may have: `count` values. */
function branches(fixed: boolean, count: number, body: (me: string) => string[]): string {
  return fixed ? choose(`me & ${count - 1}u`, count, (i) => body(`${i}u`)) : body('me').join('\n');
}

/** The products of Q and K number `from` to `to` of a slice, with K from the tile at `tile`. */
function products({ Q_HELD }: Counts, from: number, to: number, tile: string): string[] {
  return all(to - from, (i) => {
    const k = from + i;
    return [
      `let k_${k} = subgroupMatrixLoad<Right, col_major>(&kv_tile, ${tile} + slice * 2u * SLICE_STEPS + key_tile * 16u * KV_STRIDE + ${2 * k}u, KV_STRIDE);`,
      ...(k < Q_HELD ? [] : [`let q_${k} = subgroupMatrixLoad<Left, row_major>(&q_tile, row_tile * 16u * Q_STRIDE + slice * Q_LEFT + ${2 * (k - Q_HELD)}u, Q_STRIDE);`]),
      `s = subgroupMatrixMultiplyAccumulate(q_${k}, k_${k}, s);`,
    ].join('\n');
  });
}

/** S of the step whose keys are in the tile at `tile`, of which the first `count` products are made. */
function scoresAhead(counts: Counts, count: number, tile: string): string[] {
  return count === 0 ? [] : ['s = Result();', '{', ...products(counts, 0, count, tile), '}'];
}

/** S, of which the first `ahead` products have been made. */
function scores(counts: Counts, fixed: boolean, ahead: number): string {
  const { SUBGROUPS, SLICES, KEY_TILES, SLICE_STEPS, Q_HELD } = counts;
  // Only what is loaded of Q depends on the row tile.
  const split = Q_HELD < SLICE_STEPS;
  return [
    ...(ahead === 0 ? ['s = Result();'] : []),
    branches(fixed, split ? SUBGROUPS : SLICES * KEY_TILES, (me) => [
      ...(fixed ? [`const slice = ${me} & (SLICES - 1u);`, `const key_tile = (${me} / SLICES) & (KEY_TILES - 1u);`] : []),
      ...(fixed && split ? [`const row_tile = ${me} / (SLICES * KEY_TILES);`] : []),
      ...products(counts, ahead, SLICE_STEPS, 'here'),
    ]),
  ].join('\n');
}

/** The `c`th matrix of V, of the `n`th 16 keys, that subgroup `me`'s output takes. */
function loadV(n: number, c: number, me: string): string {
  return `let v_${n}_${c} = subgroupMatrixLoad<Right, row_major>(&kv_tile, here + ${n}u * 16u * KV_STRIDE + (${me} * OUT_TILES + ${c}u) * 2u, KV_STRIDE);`;
}

/** The products of P and V, of which the first `ahead` matrices have been loaded. */
function output({ SUBGROUPS, KEY_TILES, OUT_TILES, ROW_TILES }: Counts, fixed: boolean, ahead: number): string {
  return branches(fixed, SUBGROUPS, (me) => all(KEY_TILES, (n) => [
    ...all(ROW_TILES, (r) => `let left_${r}_${n} = subgroupMatrixLoad<Left, row_major>(&probs, ${r}u * 16u * P_STRIDE + ${n}u * 4u, P_STRIDE);`),
    ...all(OUT_TILES, (c) => [
      ...(n === 0 && c < ahead ? [] : [loadV(n, c, me)]),
      ...all(ROW_TILES, (r) => `o_${r}_${c} = subgroupMatrixMultiplyAccumulate(left_${r}_${n}, v_${n}_${c}, o_${r}_${c});`),
    ].join('\n')),
  ].join('\n')));
}

/** O to where it belongs, by way of workgroup memory. */
function leave({ ROW_TILES, OUT_TILES }: Counts, { array, O_ROUND }: MatrixDecodeConfig['leaving']): string {
  const rounds = OUT_TILES / O_ROUND;
  const put = (i: number): string[] => all(O_ROUND, (j) =>
    `subgroupMatrixStore<row_major>(&${array}, me * 16u * O_STRIDE + ${4 * j}u, o_${Math.floor(i / rounds)}_${(i % rounds) * O_ROUND + j}, O_STRIDE);`);
  const count = ROW_TILES * rounds;
  return [
    // No constant, or compilers copy it out: what runs once a sequence is long to fetch.
    `let rounds = min(${count}u, (w.s_q * w.group - w.row_base + 15u) / 16u * ${rounds}u);`,
    'for (var round = 0u; round < rounds; round++) {',
    'workgroupBarrier();',
    choose('round', count, put),
    'workgroupBarrier();', `write_rows(w, round / ${rounds}u * 16u, round % ${rounds}u * ${4 * O_ROUND}u, thread);`,
    '}',
  ].join('\n');
}
