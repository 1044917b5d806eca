/** The two syntaxes of subgroup matrices: what shaders begin with, the workgroup arrays that matrices are loaded from, and the newer form in the older one. Pure. */

/** `new`: majorness as a template argument; `old`: column-majorness as a boolean. */
export type MatrixSyntax = 'new' | 'old';

/** What shaders with subgroup matrices begin with. Matrices are loaded at offsets that a compiler cannot prove uniform. */
export const MATRIX_ENABLES: string = [
  'enable f16;', 'enable subgroups;', 'enable chromium_experimental_subgroup_matrix;', 'diagnostic(off, chromium.subgroup_matrix_uniformity);',
].join('\n');

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
export const MATRIX_ARRAYS: Readonly<Record<MatrixSyntax, string>> = {
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
export function older(source: string): string {
  return source
    .replace(/subgroupMatrixLoad<(\w+), (row|col)_major>\(&(\w+), (.*), (\w+)\);/g, (_, type: string, major: string, array: string, at: string, stride: string) =>
      `subgroupMatrixLoad<${type}>(&${array}, (${at}) * ${UNITS[array]}u, ${major === 'col'}, ${stride} * ${UNITS[array]}u);`)
    .replace(/subgroupMatrixStore<(row|col)_major>\(&(\w+), (.*), (\w+), (\w+)\);/g, (_, major: string, array: string, at: string, value: string, stride: string) =>
      `subgroupMatrixStore(&${array}, (${at}) * ${UNITS[array]}u, ${value}, ${major === 'col'}, ${stride} * ${UNITS[array]}u);`);
}
