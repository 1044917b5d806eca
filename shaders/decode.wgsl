// Split-KV decode attention over a paged latent cache, base and subgroup tiers: products in f32 on a GPU's ordinary units.
//
// Computes, for one row tile, one KV head and one part of the schedule, softmax(scale Q K^T) V over that part's KV
// blocks; K and V are the same cached rows (V is their first D_V numbers).
//
// How work is cut: workgroup (x, y, z) = (part, row tile, KV head). A row is a (query token, head) pair that shares
// the KV head; a tile has ROWS of them. The part's sequences are taken one after another, TOKENS keys a step:
//   stage   TOKENS cached rows, as packed 16-bit pairs, 8 numbers a load, into workgroup memory: the only time they are read
//   scores  a thread makes ROW_TILE x 4 QUAD_TILE dot products over every SLICES-th unit of d (VEC words of 2 numbers)
//   sums    the slices' sums come together: through workgroup memory, at once or by pairs, or in the subgroup tier by shuffles, for the
//           slices of a dot product are neighbouring threads. Then a thread owns quads, a row and 4 tokens each
//   softmax the owner: probabilities from the row's reference on, its share of the running sum. The reference stays until a score is above it,
//           which is rare; then it is raised to some way above the row's maximum, and O rescaled
//   output  a thread owns OUT_ROWS rows x OUT_UNITS units of O, in registers
// A turn of the loop makes the output of one step and the scores of the next, whose rows are on their way meanwhile.
// Neighbouring threads read neighbouring units throughout: no bank conflicts.
// A sequence that fits in this part is written to `out`; one that is split leaves a normalised partial O and its
// base-2 LSE in `partials`, which combine.wgsl merges.
//
// What lives where: O, references and running sums in registers; the KV step, scores' sums and probabilities in workgroup
// memory; Q in storage, read through the cache at every step.
//
// The launcher (src/webgpu/decode.ts) puts the constants, the plan's layout, the KV bindings, the functions of a unit
// (`Unit`, `word_of`, `half_of`, `finite_unit`) and `put_load`, which puts a load's words into `kv_tile`, in front. It writes what lines of
// capitals stand for: PRODUCTS of a unit, HALF_PRODUCTS of half of one, and SUMS.

var<workgroup> kv_tile: array<Unit, TOKENS * STRIDE>;
#if !SHUFFLE_SUMS
var<workgroup> slice_sums: array<vec4<f32>, SLICE_SUMS>;
#end
var<workgroup> probs: array<vec4<f32>, ROWS * QUADS>;
var<workgroup> per_quad: array<f32, ROWS * QUADS>;
/// Of each row what O is rescaled by; in the end, where O leaves by way of the tile, its sum.
var<workgroup> rescale: array<f32, ROWS>;
var<workgroup> row_reference: array<f32, ROWS>;
/// Where the last step ends in which a row's reference was raised.
var<workgroup> raised: atomic<u32>;

// So far above a row's highest score its reference is set, in base 2: scores seldom rise past it then. Probabilities stay below 1 all the same.
const HEADROOM = 8.0;

// Which of the s_q * h_q rows of a sequence, in the order of q and out, a row of the KV head's is.
fn query_row(row: u32, head_kv: u32, group: u32, h_kv: u32) -> u32 {
  return (row / group) * group * h_kv + head_kv * group + row % group;
}

fn most_of(x: vec4<f32>) -> f32 { return max(max(x.x, x.y), max(x.z, x.w)); }

@compute @workgroup_size(THREADS)
fn main(@builtin(workgroup_id) workgroup: vec3<u32>, @builtin(local_invocation_index) thread: u32) {
  let part = workgroup.x;
  let row_base = workgroup.y * ROWS;
  let head_kv = workgroup.z;
  let s_q = plan[PLAN_S_Q];
  let group = plan[PLAN_GROUP];
  let h_kv = plan[PLAN_H_KV];
  let block_size = plan[PLAN_BLOCK];
  let causal = plan[PLAN_CAUSAL] != 0u;
  let rows = s_q * group;
  let scale_log2 = bitcast<f32>(plan[PLAN_SCALE]);

  let part_at = PLAN_PARTS + part * 8u;
  let first_seq = plan[part_at];
  let last_seq = plan[part_at + 2u];

  // stage: this thread's first token and load
  let stage_token = thread / STAGE_LANES;
  let stage_load = thread % STAGE_LANES;
  // scores: this thread's tile of S and its slice of d
  let slice = thread % SLICES;
  let s_tile = thread / SLICES;
  let s_row = min((s_tile / QUAD_TILES) * ROW_TILE, ROWS - ROW_TILE);
  let s_quad = (s_tile % QUAD_TILES) * QUAD_TILE;
  // Threads past SCORE_THREADS make none.
  let first_unit = select(WHOLE_UNITS, slice, thread < SCORE_THREADS);
  // sums and softmax: this thread's quads, each a row and 4 tokens
  #unroll i < THREAD_QUADS
  #if SHUFFLE_SUMS
  let row_$i = s_row + slice % ROW_TILE + $iu / LANE_QUADS * SLICES;
  let quad_$i = row_$i * QUADS + s_quad + slice / ROW_TILE % QUAD_LANES + $iu % LANE_QUADS * QUAD_LANES;
  let active_$i = thread < SCORE_THREADS && slice < ROW_TILE * QUAD_LANES;
  #else
  let quad_$i = thread + $iu * THREADS;
  let active_$i = quad_$i < ROWS * QUADS;
  let row_$i = min(quad_$i / QUADS, ROWS - 1u);
  #end
  let token_$i = (quad_$i % QUADS) * 4u;
  #end
  // output: this thread's rows and units of O, OUT_LANES apart
  let o_lane = thread % OUT_LANES;
  #unroll u < OUT_UNITS
  let o_unit_$u = min(o_lane + $uu * OUT_LANES, V_UNITS - 1u);
  #end
  let o_active = thread < OUT_LANES * OUT_GROUPS;
  let o_row = select(0u, (thread / OUT_LANES) * OUT_ROWS, o_active);

  for (var seq = first_seq; seq <= last_seq; seq++) {
    let seq_at = plan[PLAN_SEQS_AT] + seq * 4u;
    let length = plan[seq_at];
    var begin = 0u;
    var end = length;
    if (seq == first_seq) { begin = plan[part_at + 1u] * block_size; }
    if (seq == last_seq) { end = min(length, plan[part_at + 3u] * block_size); }
    var table_at = plan[PLAN_TABLE_AT] + seq * plan[PLAN_TABLE_STRIDE] + begin / block_size;

    #unroll r < OUT_ROWS
    #unroll u < OUT_UNITS
    #unroll c < VEC
    var low_$r_$u_$c = 0.0;
    var high_$r_$u_$c = 0.0;
    #end
    #end
    #end
    #unroll i < THREAD_QUADS
    var reference_$i = LOWEST;
    var total_$i = 0.0; // over this quad's tokens only
    var limit_$i = end;
    if (causal) {
      // Query token i sees keys 0 .. length - s_q + i; counted from the end to stay unsigned.
      let hidden = s_q - 1u - min((row_base + row_$i) / group, s_q - 1u);
      limit_$i = min(end, length - min(length, hidden));
    }
    #end

    // Keys from here on only some rows see, or none.
    let partly_seen = select(end, min(end, length - min(length, s_q - 1u)), causal);
    if (thread == 0u) { atomicStore(&raised, 0u); }

    // Rows past the end are computed on the last row and never written.
    #unroll r < ROW_TILE
    let q_$r = (seq * s_q * group * h_kv + query_row(min(row_base + s_row + $ru, rows - 1u), head_kv, group, h_kv)) * UNITS;
    #end

    // One turn more than there are steps: a turn ends with a step's scores and the next begins with its output.
    let stop = select(begin, end + TOKENS, begin < end);
    var segment = 0u;
    var block_at = 0u;
    for (var token0 = begin; token0 < stop; token0 += TOKENS) {
      // stage, first half: loads; past the sequence's end the last token again
      let in_block = token0 & (block_size - 1u);
      if (token0 < end && in_block == 0u) {
        let block = plan[table_at];
        table_at++;
        var in_segment = block;
        if (SEGMENTS > 1u) {
          segment = block / BLOCKS_PER_SEGMENT;
          in_segment = block % BLOCKS_PER_SEGMENT;
        }
        block_at = (in_segment * block_size * h_kv + head_kv) * LOADS;
      }
      let kv_base = block_at + in_block * h_kv * LOADS;
      let last_token = max(end, token0 + 1u) - 1u - token0;
      #if PREFETCH
      #unroll j < STAGE_EACH
      #unroll x < STAGE_TURNS
      var staged_$j_$x = vec4<u32>();
      #end
      #end
      if (token0 < end) {
        #unroll j < STAGE_EACH
        let from_$j = kv_base + min(stage_token + $ju * STAGE_TOKENS, last_token) * h_kv * LOADS;
        #unroll x < STAGE_TURNS
        #if STAGE_EVEN
        staged_$j_$x = load_kv(segment, from_$j + stage_load + $xu * STAGE_LANES);
        #else
        staged_$j_$x = load_kv(segment, from_$j + min(stage_load + $xu * STAGE_LANES, LOADS - 1u));
        #end
        #end
        #end
      }
      #end

      // output of the step before
      if (token0 > begin) {
        if (atomicLoad(&raised) == token0) {
          #unroll r < OUT_ROWS
          let factor_$r = rescale[o_row + $ru];
          #unroll u < OUT_UNITS
          #unroll c < VEC
          low_$r_$u_$c *= factor_$r;
          high_$r_$u_$c *= factor_$r;
          #end
          #end
          #end
        }
        for (var quad = 0u; quad < QUADS; quad++) {
          #unroll u < OUT_UNITS
          #unroll k < 4
          let v_$u_$k = kv_tile[(quad * 4u + $ku) * STRIDE + o_unit_$u];
          #end
          #unroll c < VEC
          #unroll k < 4
          let v_$u_$k_$c = word_of(v_$u_$k, $cu);
          #end
          let v_low_$u_$c = vec4<f32>(unpack_low(v_$u_0_$c), unpack_low(v_$u_1_$c), unpack_low(v_$u_2_$c), unpack_low(v_$u_3_$c));
          let v_high_$u_$c = vec4<f32>(unpack_high(v_$u_0_$c), unpack_high(v_$u_1_$c), unpack_high(v_$u_2_$c), unpack_high(v_$u_3_$c));
          #end
          #end
          #unroll r < OUT_ROWS
          {
            #if QUAD_PROBS
            // One load for four lanes that want the same four numbers.
            let own = probs[(o_row + $ru) * QUADS + quad][o_lane & 3u];
            let p = vec4<f32>(quadBroadcast(own, 0u), quadBroadcast(own, 1u), quadBroadcast(own, 2u), quadBroadcast(own, 3u));
            #else
            let p = probs[(o_row + $ru) * QUADS + quad];
            #end
            // Each line four multiply-adds.
            #unroll u < OUT_UNITS
            #unroll c < VEC
            low_$r_$u_$c = low_$r_$u_$c + p.x * v_low_$u_$c.x + p.y * v_low_$u_$c.y + p.z * v_low_$u_$c.z + p.w * v_low_$u_$c.w;
            high_$r_$u_$c = high_$r_$u_$c + p.x * v_high_$u_$c.x + p.y * v_high_$u_$c.y + p.z * v_high_$u_$c.z + p.w * v_high_$u_$c.w;
            #end
            #end
          }
          #end
        }
        workgroupBarrier();
      }

      if (token0 < end) {
        // stage, second half: stores. Slots past the sequence's end may hold anything and become zero
        #if PREFETCH
        if (token0 + TOKENS > end) {
          #unroll j < STAGE_EACH
          if (stage_token + $ju * STAGE_TOKENS > last_token) {
            #unroll x < STAGE_TURNS
            staged_$j_$x = vec4<u32>();
            #end
          }
          #end
        }
        #unroll j < STAGE_EACH
        #unroll x < STAGE_TURNS
        if (stage_load + $xu * STAGE_LANES < LOADS) { put_load(stage_token + $ju * STAGE_TOKENS, stage_load + $xu * STAGE_LANES, staged_$j_$x); }
        #end
        #end
        #else
        for (var token = stage_token; token < TOKENS; token += STAGE_TOKENS) {
          for (var load = stage_load; load < LOADS; load += STAGE_LANES) {
            var loaded = load_kv(segment, kv_base + min(token, last_token) * h_kv * LOADS + load);
            if (token > last_token) { loaded = vec4<u32>(); }
            put_load(token, load, loaded);
          }
        }
        #end
        workgroupBarrier();

        // scores
        #unroll r < ROW_TILE
        #unroll g < QUAD_TILE
        var sum_$r_$g = vec4<f32>();
        #end
        #end
        #if HALVES
        // Of d's last units a slice has half of one. In front of the loop it costs less than behind.
        {
          let unit = WHOLE_UNITS + slice / 2u;
          let upper = slice % 2u != 0u;
          HALF_PRODUCTS
        }
        #end
        for (var unit0 = first_unit; unit0 < WHOLE_UNITS; unit0 += SLICES * S_TURNS) {
          #unroll x < S_TURNS
          {
            let unit = unit0 + $xu * SLICES;
            PRODUCTS
          }
          #end
        }

        // sums
        SUMS

        // softmax
        let partly = token0 + TOKENS > partly_seen;
        #unroll i < THREAD_QUADS
        var score_$i = dots_$i * scale_log2;
        #end
        if (partly) {
          // Rare: with a barrier in it compilers leave it a branch.
          workgroupBarrier();
          #unroll i < THREAD_QUADS
          score_$i = select(vec4<f32>(LOWEST), score_$i, vec4<u32>(token0 + token_$i) + vec4<u32>(0u, 1u, 2u, 3u) < vec4<u32>(limit_$i));
          #end
        }
        #unroll i < THREAD_QUADS
        var most_$i = most_of(score_$i);
        var factor_$i = 1.0;
        #end
        #if SHUFFLE_MAX
        // A row's lanes are in one subgroup.
        var above = false;
        #unroll i < THREAD_QUADS
        above = above || most_$i > reference_$i;
        #end
        if (subgroupAny(above)) {
          #unroll i < THREAD_QUADS
          for (var mask = ROW_TILE; mask < ROW_TILE * QUAD_LANES; mask *= 2u) { most_$i = max(most_$i, subgroupShuffleXor(most_$i, mask)); }
          for (var mask = SLICES; mask < SLICES * QUAD_TILES; mask *= 2u) { most_$i = max(most_$i, subgroupShuffleXor(most_$i, mask)); }
          #end
        #else
        #unroll i < THREAD_QUADS
        if (active_$i) { per_quad[quad_$i] = most_$i; }
        #end
        workgroupBarrier();
        {
          #unroll i < THREAD_QUADS
          if (active_$i) {
            #if TWO_QUADS
            most_$i = max(most_$i, per_quad[quad_$i ^ 1u]);
            #else
            for (var k = 0u; k < QUADS; k++) { most_$i = max(most_$i, per_quad[row_$i * QUADS + k]); }
            #end
          }
          #end
        #end
          #unroll i < THREAD_QUADS
          if (most_$i > reference_$i) {
            factor_$i = exp2(reference_$i - (most_$i + HEADROOM));
            reference_$i = most_$i + HEADROOM;
            if (active_$i) { atomicStore(&raised, token0 + TOKENS); }
          }
          #end
        }
        #unroll i < THREAD_QUADS
        if (active_$i) {
          // What a row does not see weighs nothing, also where it has seen nothing yet.
          let above = score_$i - select(reference_$i, 0.0, reference_$i == LOWEST);
          let p = exp2(above);
          // Not every device's exp2 keeps NaN, but the row's sum, which O is divided by, does.
          let exponents = above.x + above.y + above.z + above.w;
          let sum = p.x + p.y + p.z + p.w;
          total_$i = total_$i * factor_$i + select(sum, exponents, is_nan(exponents));
          probs[quad_$i] = p;
          if (token_$i == 0u) { rescale[row_$i] = factor_$i; }
        }
        #end
        workgroupBarrier();

        // Keys that only some rows see: what is not a number in their V must not reach the others, since 0 * NaN is NaN.
        // It reaches the rows that see them through the scores.
        if (causal && partly) {
          for (var i = thread; i < TOKENS * STRIDE; i += THREADS) { kv_tile[i] = finite_unit(kv_tile[i]); }
          workgroupBarrier();
        }
      }
    }

    // The end of a sequence: sums and references to workgroup memory, O to where it belongs.
    #unroll i < THREAD_QUADS
    if (active_$i) {
      per_quad[quad_$i] = total_$i;
      if (token_$i == 0u) { row_reference[row_$i] = reference_$i; }
    }
    #end
    workgroupBarrier();

    let is_split = plan[seq_at + 2u] > 1u;
    let partial = 2u * part + select(1u, 0u, seq == first_seq);
    #if LEAVES_BY_TILE
    // A row's LSE; its sum takes the place of what O was rescaled by.
    let tile_rows = min(ROWS, rows - row_base);
    for (var i = thread; i < tile_rows; i += THREADS) {
      let row = row_base + i;
      var sum = 0.0;
      for (var k = 0u; k < QUADS; k++) { sum += per_quad[i * QUADS + k]; }
      rescale[i] = sum;
      if (is_split) {
        partials[plan[PLAN_LSE_AT] + (partial * h_kv + head_kv) * rows + row] = vec2<f32>(partial_lse(row_reference[i], sum), 0.0);
      } else {
        lse[(seq * h_kv + head_kv) * rows + (row % group) * s_q + row / group] = lse_bits(row_reference[i], sum);
      }
    }
    // O, LEAVING rows at a time by way of where the keys were. A unit is one word here.
    for (var first = 0u; first < tile_rows; first += LEAVING) {
      #unroll r < OUT_ROWS
      if (o_active && o_row + $ru - first < LEAVING) {
        #unroll u < OUT_UNITS
        if (o_lane + $uu * OUT_LANES < V_UNITS) {
          let at = (o_row + $ru - first) * V_UNITS + o_unit_$u;
          kv_tile[at] = bitcast<u32>(low_$r_$u_0);
          kv_tile[LEAVING * V_UNITS + at] = bitcast<u32>(high_$r_$u_0);
        }
        #end
      }
      #end
      workgroupBarrier();
      for (var i = thread; i < min(LEAVING, tile_rows - first) * V_UNITS; i += THREADS) {
        let row = row_base + first + i / V_UNITS;
        let low = bitcast<f32>(kv_tile[i]);
        let high = bitcast<f32>(kv_tile[LEAVING * V_UNITS + i]);
        let sum = rescale[first + i / V_UNITS];
        let inverse = select(1.0 / sum, 0.0, sum == 0.0);
        if (is_split) {
          let at = ((partial * h_kv + head_kv) * rows + row) * V_UNITS + i % V_UNITS;
          partials[at] = vec2<f32>(low, high) * inverse;
        } else {
          let at = (seq * rows * h_kv + query_row(row, head_kv, group, h_kv)) * V_UNITS + i % V_UNITS;
          out[at] = pack(low * inverse, high * inverse);
        }
      }
      workgroupBarrier();
    }
    #else
    #unroll r < OUT_ROWS
    {
      let row = row_base + o_row + $ru;
      if (o_active && row < rows) {
        var sum = 0.0;
        for (var i = 0u; i < QUADS; i++) { sum += per_quad[(o_row + $ru) * QUADS + i]; }
        let empty = sum == 0.0;
        let inverse = select(1.0 / sum, 0.0, empty);
        if (is_split) {
          let at = partial * (rows * h_kv) + head_kv * rows + row;
          #unroll u < OUT_UNITS
          if (o_lane + $uu * OUT_LANES < V_UNITS) {
            #unroll c < VEC
            partials[(at * V_UNITS + o_unit_$u) * VEC + $cu] = vec2<f32>(low_$r_$u_$c, high_$r_$u_$c) * inverse;
            #end
          }
          #end
          if (o_lane == 0u) { partials[plan[PLAN_LSE_AT] + at] = vec2<f32>(partial_lse(row_reference[o_row + $ru], sum), 0.0); }
        } else {
          let at = seq * rows * h_kv + query_row(row, head_kv, group, h_kv);
          #unroll u < OUT_UNITS
          if (o_lane + $uu * OUT_LANES < V_UNITS) {
            #unroll c < VEC
            out[(at * V_UNITS + o_unit_$u) * VEC + $cu] = pack(low_$r_$u_$c * inverse, high_$r_$u_$c * inverse);
            #end
          }
          #end
          if (o_lane == 0u) {
            lse[(seq * h_kv + head_kv) * rows + (row % group) * s_q + row / group] = lse_bits(row_reference[o_row + $ru], sum);
          }
        }
      }
    }
    #end
    workgroupBarrier();
    #end
  }
}
