/** Launcher of shaders/decode_matrix.wgsl: the split-KV kernel on subgroup matrices. */
import bf16Source from '../../shaders/bf16.wgsl?raw';
import matrixSource from '../../shaders/decode_matrix.wgsl?raw';
import type { DecodeProblem, Segmentation } from './config.ts';
import { constants, expand, kvBindings, loadKv, type Kernels } from './kernel.ts';
import { SCRATCH_SUBGROUPS, type MatrixDecodeConfig } from './matrix-config.ts';
import { MATRIX_ENABLES, type MatrixSyntax } from './matrix-test.ts';
import { PLAN_LAYOUT } from '../plan.ts';

/** The workgroup arrays that matrices are loaded from, and how else they are read and written. */
const ARRAYS: Readonly<Record<MatrixSyntax, string>> = {
  new: `
var<workgroup> kv_tile: array<vec4<u32>, TILE_SIZE>;
var<workgroup> probs: array<vec2<u32>, PROBS_SIZE>;
var<workgroup> slices: array<vec4<f32>, SLICES_SIZE>;
fn tile_get(at: u32) -> vec4<u32> { return kv_tile[at]; }
fn tile_put(at: u32, x: vec4<u32>) { kv_tile[at] = x; }
fn probs_put(at: u32, x: vec2<u32>) { probs[at] = x; }
fn slices_get(at: u32) -> vec4<f32> { return slices[at]; }
fn slices_one(at: u32) -> f32 { return slices[at / 4u][at % 4u]; }
fn slices_put(at: u32, x: vec4<f32>) { slices[at] = x; }
`,
  old: `
var<workgroup> kv_tile: array<f16, 8u * TILE_SIZE>;
var<workgroup> probs: array<f16, 4u * PROBS_SIZE>;
var<workgroup> slices: array<f32, 4u * SLICES_SIZE>;
fn tile_get(at: u32) -> vec4<u32> {
  var x: vec4<u32>;
  for (var i = 0u; i < 4u; i++) { x[i] = bitcast<u32>(vec2<f16>(kv_tile[8u * at + 2u * i], kv_tile[8u * at + 2u * i + 1u])); }
  return x;
}
fn tile_put(at: u32, x: vec4<u32>) {
  for (var i = 0u; i < 4u; i++) {
    let pair = bitcast<vec2<f16>>(x[i]);
    kv_tile[8u * at + 2u * i] = pair.x;
    kv_tile[8u * at + 2u * i + 1u] = pair.y;
  }
}
fn probs_put(at: u32, x: vec2<u32>) {
  let low = bitcast<vec2<f16>>(x.x);
  let high = bitcast<vec2<f16>>(x.y);
  probs[4u * at] = low.x;
  probs[4u * at + 1u] = low.y;
  probs[4u * at + 2u] = high.x;
  probs[4u * at + 3u] = high.y;
}
fn slices_get(at: u32) -> vec4<f32> { return vec4<f32>(slices[4u * at], slices[4u * at + 1u], slices[4u * at + 2u], slices[4u * at + 3u]); }
fn slices_one(at: u32) -> f32 { return slices[at]; }
fn slices_put(at: u32, x: vec4<f32>) {
  slices[4u * at] = x.x;
  slices[4u * at + 1u] = x.y;
  slices[4u * at + 2u] = x.z;
  slices[4u * at + 3u] = x.w;
}
`,
};

/** Elements of the older form's arrays in one of the newer form's. */
const UNITS: Readonly<Record<string, number>> = { kv_tile: 8, probs: 4, slices: 4 };

/** Vectors of 8 numbers that a thread has under way while it stages. */
const STAGE_CHUNK = 3;

/** Vectors of 8 numbers from one that is touched to the next: a sector of 32 bytes. */
const TOUCH_STEP = 2;

/** The newer form's loads and stores in the older one. */
function older(source: string): string {
  return source
    .replace(/subgroupMatrixLoad<(\w+), (row|col)_major>\(&(\w+), (.*), (\w+)\);/g, (_, type: string, major: string, array: string, at: string, stride: string) =>
      `subgroupMatrixLoad<${type}>(&${array}, (${at}) * ${UNITS[array]}u, ${major === 'col'}, ${stride} * ${UNITS[array]}u);`)
    .replace(/subgroupMatrixStore<(row|col)_major>\(&(\w+), (.*), (\w+), (\w+)\);/g, (_, major: string, array: string, at: string, value: string, stride: string) =>
      `subgroupMatrixStore(&${array}, (${at}) * ${UNITS[array]}u, ${value}, ${major === 'col'}, ${stride} * ${UNITS[array]}u);`);
}

/** Bindings: q, plan, partials, out, lse, then the cache's segments. */
export function decodeMatrixKernel<Result>(kernels: Kernels<Result>, op: DecodeProblem, config: MatrixDecodeConfig, kv: Segmentation): Result {
  return kernels.get(
    `decode ${op.dtype} d${op.dQk}/${op.dV} ${config.key} kv${kv.segments}`,
    () => [
      { name: 'q', access: 'read', element: 'vec4<u32>' },
      { name: 'plan', access: 'read', element: 'u32' },
      { name: 'partials', access: 'read_write', element: 'vec2<f32>' },
      { name: 'out', access: 'read_write', element: 'vec2<u32>' },
      { name: 'lse', access: 'read_write', element: 'u32' },
      ...kvBindings(kv.segments, 'read', 'vec4<u32>'),
    ],
    () => decodeMatrixShader(op, config, kv),
    [MATRIX_ENABLES, 'diagnostic(off, subgroup_uniformity);'],
  );
}

/** What follows the bindings. */
export function decodeMatrixShader({ dtype, dQk, dV }: DecodeProblem, config: MatrixDecodeConfig, { segments, blocksPerSegment }: Segmentation): string {
  const { rows, tokens, halves = 1, half, threads, subgroups, sliceTiles, slices, syntax } = config;
  const stageLanes = threads / tokens;
  const vecs = dQk / 8;
  const rowThreads = Math.min(threads / rows, half / 4);
  const values = {
    ...PLAN_LAYOUT, IS_BF16: dtype === 'bf16', SEGMENTS: segments, BLOCKS_PER_SEGMENT: blocksPerSegment, VECS: vecs, V_VECS: dV / 8, V_QUADS: dV / 4,
    ROWS: rows, ROW_TILES: rows / 16, TOKENS: tokens, KEY_TILES: tokens / 16, HALVED: halves === 2, HALVES: halves, HALF: half, HALF_TILES: half / 16, THREADS: threads, SUBGROUPS: subgroups,
    S_BY_TOKEN: config.scoresByToken, S_SLICE: (config.scoresByToken ? half : rows) * config.strides.S_STRIDE, SLICES: slices, SLICE_STEPS: dQk / 16 / slices, S_TILES: sliceTiles, S_GROUPS: rows / 16 / sliceTiles, OUT_TILES: dV / 16 / subgroups,
    STAGE_LANES: stageLanes, STAGE_SHUFFLES: Math.log2(stageLanes), STAGE_CHUNK, STAGE_GROUPS: Math.ceil(vecs / stageLanes / STAGE_CHUNK),
    STAGE_EVEN: vecs % (STAGE_CHUNK * stageLanes) === 0, TOUCH_STEP, TOUCHES: config.touch ? Math.ceil(vecs / TOUCH_STEP / stageLanes) : 0,
    ROW_THREADS: rowThreads, ROW_SHUFFLES: Math.log2(rowThreads), LANE_QUADS: half / 4 / rowThreads,
    SCRATCH: Math.min(SCRATCH_SUBGROUPS, subgroups), SCRATCH_ROUNDS: Math.ceil(subgroups / SCRATCH_SUBGROUPS),
    EXACT_ITEMS: Math.ceil((4 * dV) / 8 / threads), ...config.strides, ...config.sizes,
  };
  const body = expand(matrixSource, values);
  return [constants(values), ARRAYS[syntax], loadKv(segments, 'vec4<u32>'), bf16Source, syntax === 'old' ? older(body) : body].join('\n');
}
