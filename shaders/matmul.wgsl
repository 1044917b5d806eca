// Products of a few vectors with a matrix: out[t, g, j] (+)= sum_i x[t, g, i] * weight[g, j, i].
//
// How work is cut: workgroup (x, y, z) = (tile of TOKENS tokens, tile of rows, group). LANES neighbouring threads share ROWS rows and
// take every LANES-th unit of k, which is what one load brings of the weight: each is loaded once and meets all tokens of the tile.
// Tiles of tokens are neighbours in time, so that the second finds the weight in the cache.
//
// What lives where: a thread's sums in registers; they come together in workgroup memory (lane_sums.wgsl).
//
// Tokens and rows past the end are computed on the last and not written. The launcher (src/webgpu/matmul.ts) puts the constants, the
// bindings, `load_unit`, `quad_of`, `load_x`, `row_scale` and what else it needs in front.

struct Params {
  at: u32, tokens: u32, n: u32, k: u32, x_stride: u32, x_group: u32, x_offset: u32, out_stride: u32, out_group: u32, out_offset: u32,
}

const ROW_GROUPS = THREADS / LANES;

@compute @workgroup_size(THREADS)
fn main(@builtin(workgroup_id) workgroup: vec3<u32>, @builtin(local_invocation_index) thread: u32) {
  let first_token = workgroup.x * TOKENS;
  let tile_row = workgroup.y * ROW_GROUPS * ROWS;
  let group = workgroup.z;
  let own_row = tile_row + thread / LANES * ROWS;
  #unroll r < ROWS
  let row_$r = group * p.n + min(own_row + $ru, p.n - 1u);
  #end
  #unroll t < TOKENS
  let x_$t = min(first_token + $tu, p.tokens - 1u) * p.x_stride + group * p.x_group + p.x_offset;
  #end
  #unroll r < ROWS
  #unroll t < TOKENS
  var sum_$r_$t = 0.0;
  #end
  #end

  let units = (p.k + UNIT - 1u) / UNIT;
  for (var u = thread % LANES; u < units; u += LANES) {
    #unroll r < ROWS
    let unit_$r = load_unit(row_$r, u, units);
    #end
    #unroll q < QUADS
    #unroll r < ROWS
    let w_$q_$r = quad_of(unit_$r, $qu);
    #end
    #unroll t < TOKENS
    let v_$q_$t = load_x(x_$t, u * UNIT + $qu * 4u);
    #unroll r < ROWS
    sum_$r_$t += dot(w_$q_$r, v_$q_$t);
    #end
    #end
    #end
  }

  #unroll r < ROWS
  #unroll t < TOKENS
  sums[($ru * TOKENS + $tu) * THREADS + thread] = sum_$r_$t;
  #end
  #end
  add_lanes(thread);

  // A result a thread; of bf16, two rows' results, which are a word.
  for (var i = thread; i < ROW_GROUPS * ROWS / STORE * TOKENS; i += THREADS) {
    let row = i % (ROW_GROUPS * ROWS / STORE) * STORE;
    let tile_token = i / (ROW_GROUPS * ROWS / STORE);
    let token = first_token + tile_token;
    let j = tile_row + row;
    if (j >= p.n || token >= p.tokens) { continue; }
    let sum_at = (row % ROWS * TOKENS + tile_token) * THREADS + row / ROWS * LANES;
    let value = sums[sum_at] * row_scale(group * p.n + j);
    let out_at = token * p.out_stride + group * p.out_group + p.out_offset + j;
    #if OUT_BF16
    out[out_at / 2u] = pack(value, sums[sum_at + TOKENS * THREADS] * row_scale(group * p.n + j + 1u));
    #else
    #if ACCUMULATE
    out[out_at] += value;
    #else
    out[out_at] = value;
    #end
    #end
  }
}
