// Split-KV decode attention over a paged latent cache, base and subgroup tiers: products in f32 on a GPU's ordinary units.
//
// Computes, for one row tile, one KV head and one part of the schedule, softmax(scale Q K^T) V over that part's KV
// blocks; K and V are the same cached rows (V is their first D_V numbers).
//
// How work is cut: workgroup (x, y, z) = (part, row tile, KV head). A row is a (query token, head) pair that shares
// the KV head; a tile has ROWS of them. The part's sequences are taken one after another, TOKENS keys a step:
//   stage   TOKENS cached rows, as packed 16-bit pairs, 8 numbers a load, into workgroup memory: the only time they are read
//   scores  a thread makes ROW_TILE x 4 QUAD_TILE dot products over every SLICES-th unit of d (VEC words of 2 numbers)
//   sums    the slices' sums come together: through workgroup memory, or in the subgroup tier by shuffles, for the slices of a
//           dot product are neighbouring threads. Then a thread owns quads, a row and 4 tokens each
//   softmax the owner: running maximum, probabilities, its share of the running sum
//   output  a thread owns OUT_ROWS rows x OUT_UNITS units of O, in registers
// A turn of the loop makes the output of one step and the scores of the next, whose rows are on their way meanwhile.
// Neighbouring threads read neighbouring units throughout: no bank conflicts.
// A sequence that fits in this part is written to `out`; one that is split leaves a normalised partial O and its
// base-2 LSE in `partials`, which combine.wgsl merges.
//
// What lives where: O, running maximum and sum in registers; the KV step, scores' sums and probabilities in workgroup
// memory; Q in storage, read through the cache at every step.
//
// The launcher (src/webgpu/decode.ts) puts the constants, the plan's layout, the KV bindings, the functions of a unit
// (`Unit`, `word_of`, `finite_unit`) and `put_load`, which puts a load's words into `kv_tile`, in front.

var<workgroup> kv_tile: array<Unit, TOKENS * STRIDE>;
#if !SHUFFLE_SUMS
var<workgroup> slice_sums: array<vec4<f32>, ROWS * QUADS * SLICES>;
#end
var<workgroup> probs: array<vec4<f32>, ROWS * QUADS>;
var<workgroup> per_quad: array<f32, ROWS * QUADS>;
var<workgroup> rescale: array<f32, ROWS>;
var<workgroup> row_max: array<f32, ROWS>;

const LOWEST = -3.4028234e38;

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
  let first_unit = select(UNITS, slice, thread < SCORE_THREADS);
  // sums and softmax: this thread's quads, each a row and 4 tokens
  #unroll i < THREAD_QUADS
  #if SHUFFLE_SUMS
  let row_$i = s_row + slice % ROW_TILE + $iu / QUAD_TILE * SLICES;
  let quad_$i = row_$i * QUADS + s_quad + $iu % QUAD_TILE;
  let active_$i = thread < SCORE_THREADS && slice < ROW_TILE;
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
    var highest_$i = LOWEST;
    var total_$i = 0.0; // over this quad's tokens only
    var limit_$i = end;
    if (causal) {
      // Query token i sees keys 0 .. length - s_q + i; counted from the end to stay unsigned.
      let hidden = s_q - 1u - min((row_base + row_$i) / group, s_q - 1u);
      limit_$i = min(end, length - min(length, hidden));
    }
    #end

    // Rows past the end are computed on the last row and never written.
    #unroll r < ROW_TILE
    let q_$r = (seq * s_q * group * h_kv + query_row(min(row_base + s_row + $ru, rows - 1u), head_kv, group, h_kv)) * UNITS;
    #end

    // One turn more than there are steps: a turn ends with a step's scores and the next begins with its output.
    let stop = select(begin, end + TOKENS, begin < end);
    var segment = 0u;
    var block_at = 0u;
    for (var token0 = begin; token0 < stop; token0 += TOKENS) {
      // stage, first half: loads. Slots past the sequence's end may hold anything and become zero
      let in_block = token0 & (block_size - 1u);
      if (token0 < end && in_block == 0u) {
        let block = plan[table_at];
        table_at++;
        segment = block / BLOCKS_PER_SEGMENT;
        block_at = ((block % BLOCKS_PER_SEGMENT) * block_size * h_kv + head_kv) * LOADS;
      }
      let kv_base = block_at + in_block * h_kv * LOADS;
      let last_token = max(end, token0 + 1u) - 1u - token0;
      #if PREFETCH
      #unroll i < STAGE_LOADS
      var staged_$i = vec4<u32>();
      #end
      if (token0 < end) {
        #unroll i < STAGE_LOADS
        {
          let token = stage_token + $iu / STAGE_TURNS * STAGE_TOKENS;
          let load = stage_load + $iu % STAGE_TURNS * STAGE_LANES;
          if (load < LOADS && token <= last_token) { staged_$i = load_kv(segment, kv_base + token * h_kv * LOADS + load); }
        }
        #end
      }
      #end

      // output of the step before
      if (token0 > begin) {
        #unroll r < OUT_ROWS
        let factor_$r = rescale[o_row + $ru];
        #unroll u < OUT_UNITS
        #unroll c < VEC
        low_$r_$u_$c *= factor_$r;
        high_$r_$u_$c *= factor_$r;
        #end
        #end
        #end
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
        // stage, second half: stores
        #if PREFETCH
        #unroll i < STAGE_LOADS
        {
          let token = stage_token + $iu / STAGE_TURNS * STAGE_TOKENS;
          let load = stage_load + $iu % STAGE_TURNS * STAGE_LANES;
          if (load < LOADS && token < TOKENS) { put_load(token, load, staged_$i); }
        }
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
        for (var unit0 = first_unit; unit0 < UNITS; unit0 += SLICES * S_TURNS) {
          #unroll x < S_TURNS
          {
            let unit = unit0 + $xu * SLICES;
            #unroll g < QUAD_TILE
            #unroll t < 4
            let k_$g_$t = kv_tile[((s_quad + $gu) * 4u + $tu) * STRIDE + unit];
            #end
            #end
            #unroll r < ROW_TILE
            let q_unit_$r = q[q_$r + unit];
            #end
            #unroll c < VEC
            {
              #unroll g < QUAD_TILE
              #unroll t < 4
              let k_$g_$t_word = word_of(k_$g_$t, $cu);
              #end
              let low_$g = vec4<f32>(unpack_low(k_$g_0_word), unpack_low(k_$g_1_word), unpack_low(k_$g_2_word), unpack_low(k_$g_3_word));
              let high_$g = vec4<f32>(unpack_high(k_$g_0_word), unpack_high(k_$g_1_word), unpack_high(k_$g_2_word), unpack_high(k_$g_3_word));
              #end
              #unroll r < ROW_TILE
              {
                let q_word = word_of(q_unit_$r, $cu);
                let q_low = unpack_low(q_word);
                let q_high = unpack_high(q_word);
                #unroll g < QUAD_TILE
                sum_$r_$g = sum_$r_$g + q_low * low_$g + q_high * high_$g;
                #end
              }
              #end
            }
            #end
          }
          #end
        }

        // sums
        #if SHUFFLE_SUMS
        SHUFFLES
        #else
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
        for (var s = 0u; s < SLICES; s++) { dots_$i += slice_sums[min(quad_$i, ROWS * QUADS - 1u) * SLICES + s]; }
        #end
        #end

        // softmax
        #unroll i < THREAD_QUADS
        let visible_$i = vec4<u32>(token0 + token_$i) + vec4<u32>(0u, 1u, 2u, 3u) < vec4<u32>(limit_$i);
        let score_$i = select(vec4<f32>(LOWEST), dots_$i * scale_log2, visible_$i);
        var most_$i = most_of(score_$i);
        #end
        #if SHUFFLE_MAX
        #unroll i < THREAD_QUADS
        for (var mask = SLICES; mask < SLICES * QUADS; mask *= 2u) { most_$i = max(most_$i, subgroupShuffleXor(most_$i, mask)); }
        most_$i = max(most_$i, highest_$i);
        #end
        #else
        #unroll i < THREAD_QUADS
        if (active_$i) { per_quad[quad_$i] = most_$i; }
        #end
        workgroupBarrier();
        #unroll i < THREAD_QUADS
        most_$i = highest_$i;
        for (var k = 0u; k < QUADS; k++) { most_$i = max(most_$i, per_quad[row_$i * QUADS + k]); }
        #end
        #end
        #unroll i < THREAD_QUADS
        if (active_$i) {
          let factor = exp2(highest_$i - most_$i);
          let p = select(vec4<f32>(), exp2_or_nan(score_$i - most_$i), visible_$i);
          highest_$i = most_$i;
          total_$i = total_$i * factor + p.x + p.y + p.z + p.w;
          probs[quad_$i] = p;
          if (token_$i == 0u) { rescale[row_$i] = factor; }
        }
        #end

        // Keys that only some rows see: what is not a number in their V must not reach the others, since 0 * NaN is NaN.
        // It reaches the rows that see them through the scores.
        if (causal && token0 + TOKENS > length - min(length, s_q - 1u)) {
          workgroupBarrier();
          for (var i = thread; i < TOKENS * STRIDE; i += THREADS) { kv_tile[i] = finite_unit(kv_tile[i]); }
        }
        workgroupBarrier();
      }
    }

    // The end of a sequence: l and m to workgroup memory, O to where it belongs.
    #unroll i < THREAD_QUADS
    if (active_$i) {
      per_quad[quad_$i] = total_$i;
      if (token_$i == 0u) { row_max[row_$i] = highest_$i; }
    }
    #end
    workgroupBarrier();

    let is_split = plan[seq_at + 2u] > 1u;
    let partial = 2u * part + select(1u, 0u, seq == first_seq);
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
          // A partial without visible keys weighs nothing in the merge; a NaN must reach it.
          var lse_log2 = select(row_max[o_row + $ru] + log2(sum), LOWEST, empty);
          if (is_nan(sum)) { lse_log2 = sum; }
          if (o_lane == 0u) { partials[plan[PLAN_LSE_AT] + at] = vec2<f32>(lse_log2, 0.0); }
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
            lse[(seq * h_kv + head_kv) * rows + (row % group) * s_q + row / group] = lse_bits(row_max[o_row + $ru], sum);
          }
        }
      }
    }
    #end
    workgroupBarrier();
  }
}
