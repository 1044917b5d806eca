/** Launcher of shaders/decode_matrix.wgsl and decode_exact.wgsl: the split-KV kernel on subgroup matrices. */
import bf16Source from '../../shaders/bf16.wgsl?raw';
import exactSource from '../../shaders/decode_exact.wgsl?raw';
import matrixSource from '../../shaders/decode_matrix.wgsl?raw';
import type { KernelProblem, Segmentation } from './config.ts';
import { constants, expand, kvBindings, loadKv, type Kernels } from './kernel.ts';
import type { MatrixDecodeConfig } from './matrix-config.ts';
import { MATRIX_ENABLES, type MatrixSyntax } from './matrix-test.ts';
import { PLAN_LAYOUT } from '../plan.ts';

/** `name(at, x)` of the older form: 8 numbers of f16 into `array`. */
function putHalves(name: string, array: string): string {
  return `fn ${name}(at: u32, x: vec4<u32>) {
  for (var i = 0u; i < 4u; i++) {
    let pair = bitcast<vec2<f16>>(x[i]);
    ${array}[8u * at + 2u * i] = pair.x;
    ${array}[8u * at + 2u * i + 1u] = pair.y;
  }
}`;
}

/** The workgroup arrays that matrices are loaded from, and how else they are read and written. */
const ARRAYS: Readonly<Record<MatrixSyntax, string>> = {
  new: `
var<workgroup> kv_tile: array<vec4<u32>, TILES * TILE_SIZE>;
var<workgroup> probs: array<vec2<u32>, PROBS_SIZE>;
var<workgroup> slices: array<vec4<f32>, SLICES_SIZE>;
#if SPLIT_Q
var<workgroup> q_tile: array<vec4<u32>, Q_SIZE>;
fn q_put(at: u32, x: vec4<u32>) { q_tile[at] = x; }
#end
fn tile_get(at: u32) -> vec4<u32> { return kv_tile[at]; }
fn tile_put(at: u32, x: vec4<u32>) { kv_tile[at] = x; }
fn probs_put(at: u32, x: vec2<u32>) { probs[at] = x; }
fn state_get(row: u32, i: u32) -> vec2<u32> { return probs[row * P_STRIDE + TOKENS / 4u + i]; }
fn state_put(row: u32, i: u32, x: vec2<u32>) { probs[row * P_STRIDE + TOKENS / 4u + i] = x; }
fn slices_get(at: u32) -> vec4<f32> { return slices[at]; }
fn slices_put(at: u32, x: vec4<f32>) { slices[at] = x; }
`,
  old: `
var<workgroup> kv_tile: array<f16, 8u * TILES * TILE_SIZE>;
var<workgroup> probs: array<f16, 4u * PROBS_SIZE>;
var<workgroup> slices: array<f32, 4u * SLICES_SIZE>;
var<workgroup> row_state: array<vec2<u32>, 2u * ROWS>;
#if SPLIT_Q
var<workgroup> q_tile: array<f16, 8u * Q_SIZE>;
${putHalves('q_put', 'q_tile')}
#end
fn tile_get(at: u32) -> vec4<u32> {
  var x: vec4<u32>;
  for (var i = 0u; i < 4u; i++) { x[i] = bitcast<u32>(vec2<f16>(kv_tile[8u * at + 2u * i], kv_tile[8u * at + 2u * i + 1u])); }
  return x;
}
${putHalves('tile_put', 'kv_tile')}
fn probs_put(at: u32, x: vec2<u32>) {
  let low = bitcast<vec2<f16>>(x.x);
  let high = bitcast<vec2<f16>>(x.y);
  probs[4u * at] = low.x;
  probs[4u * at + 1u] = low.y;
  probs[4u * at + 2u] = high.x;
  probs[4u * at + 3u] = high.y;
}
// Bits that are no f16 are not safe in an array of f16.
fn state_get(row: u32, i: u32) -> vec2<u32> { return row_state[2u * row + i]; }
fn state_put(row: u32, i: u32, x: vec2<u32>) { row_state[2u * row + i] = x; }
fn slices_get(at: u32) -> vec4<f32> { return vec4<f32>(slices[4u * at], slices[4u * at + 1u], slices[4u * at + 2u], slices[4u * at + 3u]); }
fn slices_put(at: u32, x: vec4<f32>) {
  slices[4u * at] = x.x;
  slices[4u * at + 1u] = x.y;
  slices[4u * at + 2u] = x.z;
  slices[4u * at + 3u] = x.w;
}
`,
};

/** Elements of the older form's arrays in one of the newer form's. */
const UNITS: Readonly<Record<string, number>> = { kv_tile: 8, q_tile: 8, probs: 4, slices: 4 };

/** The newer form's loads and stores in the older one. */
function older(source: string): string {
  return source
    .replace(/subgroupMatrixLoad<(\w+), (row|col)_major>\(&(\w+), (.*), (\w+)\);/g, (_, type: string, major: string, array: string, at: string, stride: string) =>
      `subgroupMatrixLoad<${type}>(&${array}, (${at}) * ${UNITS[array]}u, ${major === 'col'}, ${stride} * ${UNITS[array]}u);`)
    .replace(/subgroupMatrixStore<(row|col)_major>\(&(\w+), (.*), (\w+), (\w+)\);/g, (_, major: string, array: string, at: string, value: string, stride: string) =>
      `subgroupMatrixStore(&${array}, (${at}) * ${UNITS[array]}u, ${value}, ${major === 'col'}, ${stride} * ${UNITS[array]}u);`);
}

/** Bindings: q, plan, partials, out, lse, then the cache's segments. */
export function decodeMatrixKernel<Result>(kernels: Kernels<Result>, op: KernelProblem, config: MatrixDecodeConfig, kv: Segmentation): Result {
  return kernels.get(
    `decode ${op.dtype} d${op.dQk}/${op.dV} h${op.hKv} ${config.key} kv${kv.segments}`,
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

/** What follows the bindings. */
function decodeMatrixShader({ dtype, dQk, dV, hKv }: KernelProblem, config: MatrixDecodeConfig, { segments, blocksPerSegment }: Segmentation): string {
  const { rows, tokens, threads, subgroups, slices, sliceSteps, qHeld, tiles, fetch, splitQ, fixed, leaving, syntax } = config;
  const stageLanes = threads / tokens;
  const vecs = dQk / 8;
  const rowThreads = Math.min(threads / rows, tokens / 4);
  // When rows become f16, where that is not when they are stored.
  const convertScores = tiles === 2 && fetch === 'scores';
  const convertOutput = tiles === 1 && fetch === 'softmax' && fixed;
  const values = {
    ...PLAN_LAYOUT, IS_BF16: dtype === 'bf16', H_KV: hKv, SEGMENTS: segments, BLOCKS_PER_SEGMENT: blocksPerSegment, VECS: vecs, V_VECS: dV / 8, V_QUADS: dV / 4,
    ROWS: rows, ROW_TILES: rows / 16, TOKENS: tokens, TILES: tiles, TWO_TILES: tiles === 2, KEY_TILES: tokens / 16, THREADS: threads, SUBGROUPS: subgroups,
    SLICES: slices, SLICE_STEPS: sliceSteps, S_SLICE: rows * config.strides.S_STRIDE, OUT_TILES: dV / 16 / subgroups,
    STAGE_LANES: stageLanes, STAGE_SHUFFLES: Math.log2(stageLanes), STAGE_LOADS: Math.ceil(vecs / stageLanes), FETCH_SCORES: fetch === 'scores',
    CONVERT_SCORES: convertScores, CONVERT_OUTPUT: convertOutput, CONVERT_EARLY: convertScores || convertOutput, INNER_LOOP: fixed && tiles === 1,
    O_IN_TILE: leaving.array === 'kv_tile', O_QUADS: 4 * leaving.O_ROUND, O_STRIDE: leaving.O_STRIDE, SPLIT_Q: splitQ, Q_HELD: qHeld, Q_LEFT: 2 * (sliceSteps - qHeld),
    ROW_THREADS: rowThreads, ROW_SHUFFLES: Math.log2(rowThreads), LANE_QUADS: tokens / 4 / rowThreads, ALL_OWN: rowThreads * rows === threads,
    EXACT_ITEMS: Math.ceil((4 * dV) / 8 / threads), ...config.strides, ...config.sizes,
  };
  const source = matrixSource
    .replaceAll(/^ *NEXT$/gm, next(values))
    .replaceAll(/^ *FETCH_Q$/gm, fetchQ(values))
    .replaceAll(/^ *FETCH$/gm, fetchRows(values, segments, !fixed || tiles === 2))
    .replaceAll(/^ *STAGE$/gm, stage(values))
    .replaceAll(/^ *CONVERT$/gm, conversion(values))
    .replace(/^ *LEAVE$/m, leave(values, leaving))
    .replace(/^ *SCORES$/m, scores(values, fixed))
    .replaceAll(/^ *OUTPUT$/gm, tiles === 2 ? '' : output(values, fixed))
    // With bounds checks compilers also count the turns of a loop that may not end, in every thread. Without, a bound slows down one tile.
    .replaceAll(/\bTURNS\b(?= \{)/g, fixed || tiles === 2 ? 'for (var turn = 0u; turn < 0x7fffffffu; turn++)' : 'loop');
  const body = expand([source, exactSource].join('\n'), values);
  return [constants(values), expand(ARRAYS[syntax], values), loadKv(segments), bf16Source, syntax === 'old' ? older(body) : body].join('\n');
}

type Counts = Readonly<
  Record<'SUBGROUPS' | 'SLICES' | 'SLICE_STEPS' | 'Q_HELD' | 'KEY_TILES' | 'OUT_TILES' | 'ROW_TILES' | 'STAGE_LOADS' | 'STAGE_LANES' | 'VECS', number>
  & Record<'TWO_TILES' | 'CONVERT_EARLY' | 'CONVERT_OUTPUT', boolean>
>;

function all(count: number, line: (i: number) => string): string[] {
  return Array.from({ length: count }, (_, i) => line(i));
}

/** Which vector of a row the `v`th of this thread's share is. Past the row's end its last one again: a branch of their own would have all loads waited for at its end. */
function vecOf(v: number, { STAGE_LANES, VECS }: Counts): string {
  const vec = `stage_vec + ${v * STAGE_LANES}u`;
  return (v + 1) * STAGE_LANES <= VECS ? vec : `min(${vec}, VECS - 1u)`;
}

/**
 * This thread's share of a step's rows, under way from here on, and where the next step's is. With `clear` the share before it is gone where
 * no rows are left, so that a compiler need not keep it until then.
 */
function fetchRows(counts: Counts, segments: number, clear: boolean): string {
  const { STAGE_LOADS } = counts;
  const from = (segment: number): string[] => all(STAGE_LOADS, (v) => `x_${v} = kv${segment}[row_at.y + ${vecOf(v, counts)}];`);
  const none = clear ? all(STAGE_LOADS, (v) => `x_${v} = vec4<u32>();`) : [];
  // In a branch, or a compiler puts the loads off until they are waited for. Not in a branch of a branch, at whose end they would be.
  const loads = segments === 1
    ? ['if (fetched < w.end) {', ...from(0), '} else {', ...none, '}']
    : [...none, ...all(segments, (segment) => [`if (fetched < w.end && row_at.x == ${segment}u) {`, ...from(segment), '}'].join('\n'))];
  return [
    ...loads, 'row_at = row_in(w, next_block, within(w, fetched + TOKENS + stage_token));', 'next_block = block_of(w, fetched + 2u * TOKENS + stage_token);',
  ].join('\n');
}

/** This thread's share of 16 rows of Q from `rows_at` on, under way from here on. */
function fetchQ(counts: Counts): string {
  return [
    'if (rows_at < ROWS && stage_token < 16u && w.begin < w.end) {',
    'let at = q_at(w, rows_at + stage_token);',
    ...all(counts.STAGE_LOADS, (v) => `y_${v} = q[at + ${vecOf(v, counts)}];`),
    '}',
  ].join('\n');
}

/** On to the next step. */
function next({ TWO_TILES, CONVERT_OUTPUT }: Counts): string {
  return [
    ...(CONVERT_OUTPUT ? ['if (token0 + TOKENS < w.end) {', 'CONVERT', '}'] : []),
    'token0 += TOKENS;', ...(TWO_TILES ? [] : ['workgroupBarrier();']),
  ].join('\n');
}

/** This thread's rows as f16. */
function conversion({ STAGE_LOADS }: Counts): string {
  return all(STAGE_LOADS, (v) => `x_${v} = halves(x_${v});`).join('\n');
}

/** This thread's rows into the tile at `there`. */
function stage(counts: Counts): string {
  const { STAGE_LOADS, STAGE_LANES, VECS, CONVERT_EARLY } = counts;
  return [
    ...(CONVERT_EARLY ? [] : [conversion(counts)]),
    ...all(STAGE_LOADS, (v) => `${(v + 1) * STAGE_LANES <= VECS ? '' : `if (stage_vec + ${v * STAGE_LANES}u < VECS) `}{ tile_put(there + put_at + ${v * STAGE_LANES}u, x_${v}); }`),
  ].join('\n');
}

/** `body` for the value of `me`, this subgroup, or in a branch for each of the last bits that it may have: `count` values. */
function branches(fixed: boolean, count: number, body: (me: string) => string[]): string {
  if (!fixed) return body('me').join('\n');
  return [`switch me & ${count - 1}u {`, ...all(count, (i) => [i === count - 1 ? 'default: {' : `case ${i}u: {`, ...body(`${i}u`), '}'].join('\n')), '}'].join('\n');
}

/** The products of Q and K, with two tiles also those of P and V of the step before, for which they do not wait. */
function scores(counts: Counts, fixed: boolean): string {
  const { SUBGROUPS, SLICES, KEY_TILES, SLICE_STEPS, Q_HELD, TWO_TILES } = counts;
  // Only what is loaded of Q depends on the row tile.
  const split = Q_HELD < SLICE_STEPS;
  return branches(fixed, split || TWO_TILES ? SUBGROUPS : SLICES * KEY_TILES, (me) => [
    ...(fixed ? [`const slice = ${me} & (SLICES - 1u);`, `const key_tile = (${me} / SLICES) & (KEY_TILES - 1u);`] : []),
    ...(fixed && split ? [`const row_tile = ${me} / (SLICES * KEY_TILES);`] : []),
    ...all(SLICE_STEPS, (k) => [
      `let k_${k} = subgroupMatrixLoad<Right, col_major>(&kv_tile, here + slice * 2u * SLICE_STEPS + key_tile * 16u * KV_STRIDE + ${2 * k}u, KV_STRIDE);`,
      ...(k < Q_HELD ? [] : [`let q_${k} = subgroupMatrixLoad<Left, row_major>(&q_tile, row_tile * 16u * Q_STRIDE + slice * Q_LEFT + ${2 * (k - Q_HELD)}u, Q_STRIDE);`]),
      `s = subgroupMatrixMultiplyAccumulate(q_${k}, k_${k}, s);`,
    ].join('\n')),
    ...(TWO_TILES ? outputOf(counts, me) : []),
  ]);
}

/** The products of P and V. */
function output(counts: Counts, fixed: boolean): string {
  return branches(fixed, counts.SUBGROUPS, (me) => outputOf(counts, me));
}

/** V is in the tile at `there`. */
function outputOf({ KEY_TILES, OUT_TILES, ROW_TILES }: Counts, me: string): string[] {
  return all(KEY_TILES, (n) => [
    ...all(ROW_TILES, (r) => `let left_${r}_${n} = subgroupMatrixLoad<Left, row_major>(&probs, ${r}u * 16u * P_STRIDE + ${n}u * 4u, P_STRIDE);`),
    ...all(OUT_TILES, (c) => [
      `let v_${n}_${c} = subgroupMatrixLoad<Right, row_major>(&kv_tile, there + ${n}u * 16u * KV_STRIDE + (${me} * OUT_TILES + ${c}u) * 2u, KV_STRIDE);`,
      ...all(ROW_TILES, (r) => `o_${r}_${c} = subgroupMatrixMultiplyAccumulate(left_${r}_${n}, v_${n}_${c}, o_${r}_${c});`),
    ].join('\n')),
  ].join('\n'));
}

/** O to where it belongs, by way of workgroup memory. */
function leave({ ROW_TILES, OUT_TILES }: Counts, { array, O_ROUND }: MatrixDecodeConfig['leaving']): string {
  return all(ROW_TILES, (r) => all(OUT_TILES / O_ROUND, (g) => [
    'workgroupBarrier();',
    ...all(O_ROUND, (j) => `subgroupMatrixStore<row_major>(&${array}, me * 16u * O_STRIDE + ${4 * j}u, o_${r}_${g * O_ROUND + j}, O_STRIDE);`),
    'workgroupBarrier();', `write_rows(w, ${16 * r}u, ${4 * g * O_ROUND}u, thread);`,
  ].join('\n')).join('\n')).join('\n');
}
