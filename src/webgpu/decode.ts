/** Launcher of shaders/decode.wgsl: the split-KV kernel of the base and subgroup tiers. */
import bf16Source from '../../shaders/bf16.wgsl?raw';
import decodeSource from '../../shaders/decode.wgsl?raw';
import subgroupSource from '../../shaders/subgroup.wgsl?raw';
import type { DecodeProblem, ScalarConfig, Segmentation } from './config.ts';
import { constants, expand, kvBindings, loadKv, type Kernels } from './kernel.ts';
import { PLAN_LAYOUT } from '../plan.ts';

/** Bindings: q, plan, partials, out, lse, then the cache's segments. */
export function decodeKernel<Result>(kernels: Kernels<Result>, op: DecodeProblem, config: ScalarConfig, kv: Segmentation): Result {
  const unit = config.vec === 4 ? 'vec4<u32>' : 'u32';
  return kernels.get(
    `decode ${op.dtype} d${op.dQk}/${op.dV} ${config.key} kv${kv.segments}/${kv.blocksPerSegment}`,
    () => [
      { name: 'q', access: 'read', element: unit },
      { name: 'plan', access: 'read', element: 'u32' },
      { name: 'partials', access: 'read_write', element: 'vec2<f32>' },
      { name: 'out', access: 'read_write', element: 'u32' },
      { name: 'lse', access: 'read_write', element: 'u32' },
      ...kvBindings(kv.segments, 'read'),
    ],
    () => decodeShader(op, config, kv),
    config.tier === 'subgroup' ? ['enable subgroups;', 'diagnostic(off, subgroup_uniformity);'] : [],
  );
}

/** What follows the bindings. */
function decodeShader({ dtype, dQk, dV }: DecodeProblem, config: ScalarConfig, { segments, blocksPerSegment }: Segmentation): string {
  const { tokens, vec, stageLanes, threads } = config;
  const shuffles = config.tier === 'subgroup';
  const units = dQk / 2 / vec;
  const loads = dQk / 8;
  const stageTokens = threads / stageLanes;
  const vUnits = dV / 2 / vec;
  /** Rows of O, as f32, that there is room for where the keys are. */
  const leaving = Math.min(config.rows, 2 ** Math.floor(Math.log2((tokens * config.stride) / (2 * vUnits))));
  const texts: Readonly<Record<string, string>> = {
    PRODUCTS: products(config, false), HALF_PRODUCTS: products(config, true),
    SUMS: shuffles ? shuffledSums(config) : config.pairSums > 0 ? pairedSums(config) : PLAIN_SUMS,
  };
  const values = {
    ...PLAN_LAYOUT, IS_BF16: dtype === 'bf16', V_UNITS: vUnits, LEAVING: leaving, LEAVES_BY_TILE: vec === 1, BLOCKS_PER_SEGMENT: blocksPerSegment,
    SEGMENTS: segments, ROWS: config.rows, TOKENS: tokens, QUADS: tokens / 4, TWO_QUADS: tokens === 8, THREADS: threads, VEC: vec, UNITS: units, WHOLE_UNITS: config.wholeUnits,
    HALVES: config.wholeUnits < units, LOADS: loads, STRIDE: config.stride,
    STAGE_LANES: stageLanes, STAGE_TOKENS: stageTokens, STAGE_TURNS: Math.ceil(loads / stageLanes), STAGE_EVEN: loads % stageLanes === 0,
    STAGE_EACH: tokens / stageTokens, PREFETCH: config.prefetch,
    SCORE_THREADS: config.scoreThreads, ROW_TILE: config.rowTile, QUAD_TILE: config.quadTile, QUAD_TILES: tokens / 4 / config.quadTile, SLICES: config.slices,
    THREAD_QUADS: config.threadQuads, QUAD_LANES: config.quadLanes, LANE_QUADS: config.quadTile / config.quadLanes, SLICE_SUMS: config.sliceSums,
    SHUFFLE_SUMS: shuffles, SHUFFLE_MAX: config.shuffleMax, QUAD_PROBS: config.quadProbs, S_TURNS: config.scoreTurns,
    OUT_ROWS: config.outRows, OUT_UNITS: config.outUnits, OUT_LANES: config.outLanes, OUT_GROUPS: config.rows / config.outRows,
  };
  return [
    constants(values), loadKv(segments), bf16Source, unitFunctions(vec), ...(shuffles ? [subgroupSource] : []),
    expand(decodeSource.replaceAll(/^ *([A-Z_]+)$/gm, (_, name: string) => texts[name]!), values),
  ].join('\n');
}

/** A unit is what a load of Q, and of the KV step in workgroup memory, takes: one word, or four. The cache is always read four words at a time. */
function unitFunctions(vec: 1 | 4): string {
  return vec === 1
    ? `alias Unit = u32;
fn word_of(x: Unit, i: u32) -> u32 { return x; }
fn finite_unit(x: Unit) -> Unit { return finite_or_zero(x); }
fn put_load(token: u32, load: u32, x: vec4<u32>) {
  let at = token * STRIDE + 4u * load;
  kv_tile[at] = x.x;
  kv_tile[at + 1u] = x.y;
  kv_tile[at + 2u] = x.z;
  kv_tile[at + 3u] = x.w;
}`
    : `alias Unit = vec4<u32>;
fn word_of(x: Unit, i: u32) -> u32 { return x[i]; }
fn half_of(x: Unit, upper: bool) -> vec2<u32> { return select(x.xy, x.zw, upper); }
fn finite_unit(x: Unit) -> Unit { return Unit(finite_or_zero(x.x), finite_or_zero(x.y), finite_or_zero(x.z), finite_or_zero(x.w)); }
fn put_load(token: u32, load: u32, x: vec4<u32>) { kv_tile[token * STRIDE + load] = x; }`;
}

/** The products of a thread's tile of S over one unit of d, or over half of one. */
function products({ rowTile, quadTile, vec }: ScalarConfig, half: boolean): string {
  const each = <T>(count: number, line: (i: number) => T): T[] => Array.from({ length: count }, (_, i) => line(i));
  const part = (unit: string): string => (half ? `half_of(${unit}, upper)` : unit);
  const vector = (unpack: string, g: number): string => `vec4<f32>(${each(4, (t) => `${unpack}(k_${g}_${t}_word)`).join(', ')})`;
  return [
    ...each(quadTile, (g) => each(4, (t) => `let k_${g}_${t} = ${part(`kv_tile[((s_quad + ${g}u) * 4u + ${t}u) * STRIDE + unit]`)};`)).flat(),
    ...each(rowTile, (r) => `let q_unit_${r} = ${part(`q[q_${r} + unit]`)};`),
    ...each(half ? vec / 2 : vec, (c) => {
      const word = (unit: string): string => (half ? `${unit}[${c}u]` : `word_of(${unit}, ${c}u)`);
      return [
        '{',
        ...each(quadTile, (g) => [
          ...each(4, (t) => `let k_${g}_${t}_word = ${word(`k_${g}_${t}`)};`),
          `let low_${g} = ${vector('unpack_low', g)};`, `let high_${g} = ${vector('unpack_high', g)};`,
        ]).flat(),
        ...each(rowTile, (r) => [
          '{', `let q_word = ${word(`q_unit_${r}`)};`, 'let q_low = unpack_low(q_word);', 'let q_high = unpack_high(q_word);',
          ...each(quadTile, (g) => `sum_${r}_${g} = sum_${r}_${g} + q_low * low_${g} + q_high * high_${g};`), '}',
        ]).flat(),
        '}',
      ];
    }).flat(),
  ].join('\n');
}

/** `dots_i` from what every slice has left in workgroup memory. */
const PLAIN_SUMS = `
if (thread < SCORE_THREADS) {
  #unroll r < ROW_TILE
  #unroll g < QUAD_TILE
  slice_sums[((s_row + $ru) * QUADS + s_quad + $gu) * SLICES + slice] = sum_$r_$g;
  #end
  #end
}
workgroupBarrier();
#unroll i < THREAD_QUADS
var dots_$i = vec4<f32>();
if (active_$i) {
  for (var s = 0u; s < SLICES; s++) { dots_$i += slice_sums[quad_$i * SLICES + s]; }
}
#end`;

/**
 * The same in less memory, `pairSums` vectors a thread. Slices s and s + 1, then s and s + 2, ... halve what they have between them: a thread
 * puts down the half that the other one goes on with, and adds what that has put down to its own. It puts down where it alone has read last.
 */
export function pairedSums({ rowTile, quadTile, pairSums }: Pick<ScalarConfig, 'rowTile' | 'quadTile' | 'pairSums'>): string {
  const lines: string[] = [];
  let names = Array.from({ length: rowTile * quadTile }, (_, i) => `sum_${Math.floor(i / quadTile)}_${i % quadTile}`);
  /** A thread's place is that of the thread whose number differs by these bits. */
  let place = 0;
  const put = (j: number, value: string): void => void lines.push(`slice_sums[${j}u * THREADS + (thread ^ ${place}u)] = ${value};`);
  let mask = 1;
  for (; names.length > pairSums; mask *= 2) {
    const half = names.length / 2;
    lines.push(`let odd_${mask} = (slice & ${mask}u) != 0u;`);
    for (let from = 0; from < half; from += pairSums) {
      const chunk = Array.from({ length: pairSums }, (_, j) => from + j);
      chunk.forEach((i, j) => put(j, `select(${names[half + i]!}, ${names[i]!}, odd_${mask})`));
      place ^= mask;
      lines.push('workgroupBarrier();');
      chunk.forEach((i, j) => lines.push(`let half_${mask}_${i} = select(${names[i]!}, ${names[half + i]!}, odd_${mask}) + slice_sums[${j}u * THREADS + (thread ^ ${place}u)];`));
    }
    names = Array.from({ length: half }, (_, i) => `half_${mask}_${i}`);
  }
  names.forEach((name, j) => put(j, name));
  // What is left of a thread's tile, by its slice: bit by bit the upper or the lower half.
  const bits = Array.from({ length: Math.log2(mask) }, (_, b) => `in_tile / ${(rowTile * quadTile) / 2 ** (b + 1)}u % 2u * ${2 ** b}u`);
  lines.push(
    'workgroupBarrier();', '#unroll i < THREAD_QUADS', 'var dots_$i = vec4<f32>();', 'if (active_$i) {',
    'let in_row = quad_$i % QUADS;', 'let in_tile = row_$i % ROW_TILE * QUAD_TILE + in_row % QUAD_TILE;',
    'let tile = row_$i / ROW_TILE * QUAD_TILES + in_row / QUAD_TILE;',
    `let at = in_tile % ${names.length}u * THREADS + tile * SLICES + ((${['0u', ...bits].join(' + ')}) ^ ${place}u);`,
    `for (var s = 0u; s < SLICES; s += ${mask}u) { dots_$i += slice_sums[at + s]; }`, '}', '#end',
  );
  return lines.join('\n');
}

/**
 * `dots_i` from the sums of SLICES neighbouring lanes: rows are halved over pairs of lanes, then quads, so that a lane with slice s ends with
 * the rows s, s + SLICES, ..., or with one row and its quads s / ROW_TILE, s / ROW_TILE + QUAD_LANES, ...; lanes past those add up, and hold
 * copies.
 */
export function shuffledSums({ rowTile, quadTile, slices, quadLanes }: Pick<ScalarConfig, 'rowTile' | 'quadTile' | 'slices' | 'quadLanes'>): string {
  const lines: string[] = [];
  let names = Array.from({ length: quadTile }, (_, g) => Array.from({ length: rowTile }, (_, r) => `sum_${r}_${g}`));
  /** Pairs of what is to be halved, in the order of `list`. */
  const halved = (list: readonly string[], mask: number, name: (j: number) => string): string[] => Array.from({ length: list.length / 2 }, (_, j) => {
    lines.push(`let ${name(j)} = halve(${list[2 * j]!}, ${list[2 * j + 1]!}, (slice & ${mask}u) != 0u, ${mask}u);`);
    return name(j);
  });
  for (let mask = 1; mask < slices; mask *= 2) {
    const name = (g: number, j: number): string => `dot_${g}_${mask}_${j}`;
    if (names[0]!.length > 1) {
      names = names.map((list, g) => halved(list, mask, (j) => name(g, j)));
    } else if (mask < rowTile * quadLanes) {
      names = halved(names.map(([only]) => only!), mask, (g) => name(g, 0)).map((only) => [only]);
    } else {
      names = names.map(([only], g) => {
        lines.push(`let ${name(g, 0)} = ${only!} + subgroupShuffleXor(${only!}, ${mask}u);`);
        return [name(g, 0)];
      });
    }
  }
  names[0]!.forEach((_, j) => names.forEach((list, g) => lines.push(`let dots_${j * names.length + g} = ${list[j]!};`)));
  return lines.join('\n');
}
