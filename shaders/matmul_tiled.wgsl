// Products of many vectors with a matrix: out[t, g, j] (+)= sum_i x[t, g, i] * weight[g, j, i]. What matmul.wgsl does for a few.
//
// How work is cut: workgroup (x, y, z) = (tile of TILE_TOKENS tokens, tile of TILE_ROWS rows, group). A step of the loop takes STEP
// numbers along k of every row and token of the tile into workgroup memory, as f32; then each thread multiplies its PAIRS pairs of rows with
// its TOKENS tokens. So a number of the weight is read and widened once a tile, and once from workgroup memory for TOKENS products.
//
// What lives where: sums in registers; the tile's part of the weight and of x in workgroup memory, quads along k, rows side by side, so
// that neighbouring threads read neighbouring quads. Rows come in pairs, since two results of bf16 are a word.
//
// Rows and tokens past the end are computed on the last and not written; what is past the end of k counts as zero. The launcher
// (src/webgpu/matmul-tiled.ts) puts the constants, the bindings, `load_unit`, `quad_of`, `load_x`, `row_scale` and `pack` in front.

struct Params {
  at: u32, tokens: u32, n: u32, k: u32, x_stride: u32, x_group: u32, x_offset: u32, out_stride: u32, out_group: u32, out_offset: u32,
}

const ROW_THREADS = TILE_ROWS / (2u * PAIRS);
const TOKEN_THREADS = THREADS / ROW_THREADS;
const STEP_QUADS = STEP / 4u;
const STEP_UNITS = STEP / UNIT;

var<workgroup> weight_tile: array<vec4<f32>, STEP_QUADS * TILE_ROWS>;
var<workgroup> x_tile: array<vec4<f32>, STEP_QUADS * TILE_TOKENS>;

@compute @workgroup_size(THREADS)
fn main(@builtin(workgroup_id) workgroup: vec3<u32>, @builtin(local_invocation_index) thread: u32) {
  let first_token = workgroup.x * TILE_TOKENS;
  let first_row = workgroup.y * TILE_ROWS;
  let group = workgroup.z;
  let own_row = thread % ROW_THREADS * 2u;
  let own_token = thread / ROW_THREADS;
  #unroll h < PAIRS
  #unroll t < TOKENS
  var low_$h_$t = 0.0;
  var high_$h_$t = 0.0;
  #end
  #end

  let units = (p.k + UNIT - 1u) / UNIT;
  let quads = (p.k + 3u) / 4u;
  for (var step = 0u; step * STEP < p.k; step++) {
    for (var i = thread; i < STEP_UNITS * TILE_ROWS; i += THREADS) {
      let row = i / STEP_UNITS;
      let u = step * STEP_UNITS + i % STEP_UNITS;
      let at = i % STEP_UNITS * QUADS * TILE_ROWS + row;
      if (u < units) {
        let unit = load_unit(group * p.n + min(first_row + row, p.n - 1u), u, units);
        #unroll q < QUADS
        weight_tile[at + $qu * TILE_ROWS] = quad_of(unit, $qu);
        #end
      } else {
        #unroll q < QUADS
        weight_tile[at + $qu * TILE_ROWS] = vec4<f32>();
        #end
      }
    }
    for (var i = thread; i < STEP_QUADS * TILE_TOKENS; i += THREADS) {
      let token = i / STEP_QUADS;
      let quad = step * STEP_QUADS + i % STEP_QUADS;
      var x = vec4<f32>();
      if (quad < quads) { x = load_x(min(first_token + token, p.tokens - 1u) * p.x_stride + group * p.x_group + p.x_offset, quad * 4u); }
      x_tile[i % STEP_QUADS * TILE_TOKENS + token] = x;
    }
    workgroupBarrier();
    for (var q = 0u; q < STEP_QUADS; q++) {
      #unroll h < PAIRS
      let w_low_$h = weight_tile[q * TILE_ROWS + own_row + $hu * 2u * ROW_THREADS];
      let w_high_$h = weight_tile[q * TILE_ROWS + own_row + $hu * 2u * ROW_THREADS + 1u];
      #end
      #unroll t < TOKENS
      let v_$t = x_tile[q * TILE_TOKENS + own_token + $tu * TOKEN_THREADS];
      #unroll h < PAIRS
      low_$h_$t += dot(w_low_$h, v_$t);
      high_$h_$t += dot(w_high_$h, v_$t);
      #end
      #end
    }
    workgroupBarrier();
  }

  #unroll t < TOKENS
  {
    let token = first_token + own_token + $tu * TOKEN_THREADS;
    let out_row = token * p.out_stride + group * p.out_group + p.out_offset;
    #unroll h < PAIRS
    {
      let j = first_row + own_row + $hu * 2u * ROW_THREADS;
      let low = low_$h_$t * row_scale(group * p.n + min(j, p.n - 1u));
      let high = high_$h_$t * row_scale(group * p.n + min(j + 1u, p.n - 1u));
      #if OUT_BF16
      if (token < p.tokens && j < p.n) { out[(out_row + j) / 2u] = pack(low, high); }
      #else
      #if ACCUMULATE
      if (token < p.tokens && j < p.n) { out[out_row + j] += low; }
      if (token < p.tokens && j + 1u < p.n) { out[out_row + j + 1u] += high; }
      #else
      if (token < p.tokens && j < p.n) { out[out_row + j] = low; }
      if (token < p.tokens && j + 1u < p.n) { out[out_row + j + 1u] = high; }
      #end
      #end
    }
    #end
  }
  #end
}
