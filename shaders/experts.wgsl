// Products with the experts that the router chose, a token at a time.
//
// spread: out[t, e, :] = W[ids[t, e]] x[t, :]. gather: out[t, :] += sum_e weights[t, e] W[ids[t, e]] x[t, e, :].
//
// How work is cut: workgroup (x, y) = (token and choice, or token; tile of rows). Within a workgroup as in matmul.wgsl, with one
// token; to gather, the choices one after the other. Tokens are neighbours in time, so that one finds in the cache what another read.
//
// The weight has experts from `first` on, `experts` of them: choices of others add nothing, and spread writes nothing for them. They
// cost no reads, but threads do not leave, since barriers follow.
//
// The launcher (src/webgpu/experts.ts) puts the constants, the bindings, `load_unit`, `quad_of`, `load_x`, `row_scale` and
// lane_sums.wgsl in front.

struct Params { at: u32, n: u32, k: u32, top_k: u32, first: u32, experts: u32 }

const ROW_GROUPS = THREADS / LANES;

@compute @workgroup_size(THREADS)
fn main(@builtin(workgroup_id) workgroup: vec3<u32>, @builtin(local_invocation_index) thread: u32) {
  let tile_row = workgroup.y * ROW_GROUPS * ROWS;
  let own_row = tile_row + thread / LANES * ROWS;
  let units = (p.k + UNIT - 1u) / UNIT;
  #unroll r < ROWS
  var sum_$r = 0.0;
  #end
  #if GATHER
  for (var choice = workgroup.x * p.top_k; choice < (workgroup.x + 1u) * p.top_k; choice++) {
    let x_at = choice * p.k;
    let share = weights[choice];
  #else
  {
    let choice = workgroup.x;
    let x_at = choice / p.top_k * p.k;
    let share = 1.0;
  #end
    // One before the first wraps to one past the last.
    let expert = ids[choice] - p.first;
    let own_units = select(0u, units, expert < p.experts);
    #unroll r < ROWS
    let row_$r = min(expert, p.experts - 1u) * p.n + min(own_row + $ru, p.n - 1u);
    let factor_$r = share * row_scale(row_$r);
    var part_$r = 0.0;
    #end
    for (var u = thread % LANES; u < own_units; u += LANES) {
      #unroll r < ROWS
      let unit_$r = load_unit(row_$r, u, units);
      #end
      #unroll q < QUADS
      let v_$q = load_x(x_at, u * UNIT + $qu * 4u);
      #unroll r < ROWS
      part_$r += dot(quad_of(unit_$r, $qu), v_$q);
      #end
      #end
    }
    #unroll r < ROWS
    sum_$r += factor_$r * part_$r;
    #end
  }

  #unroll r < ROWS
  sums[$ru * THREADS + thread] = sum_$r;
  #end
  add_lanes(thread);
  for (var i = thread; i < ROW_GROUPS * ROWS; i += THREADS) {
    let j = tile_row + i;
    if (j >= p.n) { continue; }
    let value = sums[i % ROWS * THREADS + i / ROWS * LANES];
    #if GATHER
    out[workgroup.x * p.n + j] += value;
    #else
    if (ids[workgroup.x] - p.first < p.experts) { out[workgroup.x * p.n + j] = value; }
    #end
  }
}
