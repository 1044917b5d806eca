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
    `decode ${op.dtype} d${op.dQk}/${op.dV} ${config.key} kv${kv.segments}`,
    () => [
      { name: 'q', access: 'read', element: unit },
      { name: 'plan', access: 'read', element: 'u32' },
      { name: 'partials', access: 'read_write', element: 'vec2<f32>' },
      { name: 'out', access: 'read_write', element: 'u32' },
      { name: 'lse', access: 'read_write', element: 'u32' },
      ...kvBindings(kv.segments, 'read'),
    ],
    () => decodeShader(op, config, kv),
    config.tier === 'subgroup' ? ['enable subgroups;'] : [],
  );
}

/** What follows the bindings. */
function decodeShader({ dtype, dQk, dV }: DecodeProblem, config: ScalarConfig, { segments, blocksPerSegment }: Segmentation): string {
  const { tokens, vec, stageLanes, threads } = config;
  const shuffles = config.tier === 'subgroup';
  const units = dQk / 2 / vec;
  const loads = dQk / 8;
  const stageTurns = Math.ceil(loads / stageLanes);
  const stageTokens = threads / stageLanes;
  const values = {
    ...PLAN_LAYOUT, IS_BF16: dtype === 'bf16', V_UNITS: dV / 2 / vec, BLOCKS_PER_SEGMENT: blocksPerSegment,
    ROWS: config.rows, TOKENS: tokens, QUADS: tokens / 4, THREADS: threads, VEC: vec, UNITS: units, LOADS: loads, STRIDE: config.stride,
    STAGE_LANES: stageLanes, STAGE_TOKENS: stageTokens, STAGE_TURNS: stageTurns, STAGE_LOADS: stageTurns * (tokens / stageTokens), PREFETCH: config.prefetch,
    SCORE_THREADS: config.scoreThreads, ROW_TILE: config.rowTile, QUAD_TILE: config.quadTile, QUAD_TILES: tokens / 4 / config.quadTile, SLICES: config.slices,
    THREAD_QUADS: config.threadQuads, SHUFFLE_SUMS: shuffles, SHUFFLE_MAX: config.shuffleMax, QUAD_PROBS: config.quadProbs, S_TURNS: config.scoreTurns,
    OUT_ROWS: config.outRows, OUT_UNITS: config.outUnits, OUT_LANES: config.outLanes, OUT_GROUPS: config.rows / config.outRows,
  };
  return [
    constants(values), loadKv(segments), bf16Source, unitFunctions(vec), ...(shuffles ? [subgroupSource] : []),
    expand(decodeSource, values).replace(/^ *SHUFFLES$/m, shuffles ? shuffledSums(config) : ''),
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
fn finite_unit(x: Unit) -> Unit { return Unit(finite_or_zero(x.x), finite_or_zero(x.y), finite_or_zero(x.z), finite_or_zero(x.w)); }
fn put_load(token: u32, load: u32, x: vec4<u32>) { kv_tile[token * STRIDE + load] = x; }`;
}

/**
 * `dots_i` from the sums of SLICES neighbouring lanes: rows are halved over pairs of lanes, so that a lane with slice s ends with the
 * rows s, s + SLICES, ...; lanes past the rows add up, and hold copies.
 */
export function shuffledSums({ rowTile, quadTile, slices }: Pick<ScalarConfig, 'rowTile' | 'quadTile' | 'slices'>): string {
  const lines: string[] = [];
  for (let g = 0; g < quadTile; g++) {
    let names = Array.from({ length: rowTile }, (_, r) => `sum_${r}_${g}`);
    for (let mask = 1; mask < slices; mask *= 2) {
      const pairs = Math.ceil(names.length / 2);
      const next = Array.from({ length: pairs }, (_, j) => `dot_${g}_${mask}_${j}`);
      next.forEach((name, j) => {
        const [a, b] = [names[2 * j]!, names[2 * j + 1]];
        lines.push(`let ${name} = ${b === undefined ? `${a} + subgroupShuffleXor(${a}, ${mask}u)` : `halve(${a}, ${b}, (slice & ${mask}u) != 0u, ${mask}u)`};`);
      });
      names = next;
    }
    names.forEach((name, j) => lines.push(`let dots_${j * quadTile + g} = ${name};`));
  }
  return lines.map((line) => `        ${line}`).join('\n');
}
