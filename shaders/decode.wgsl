// Split-KV decode attention over a paged latent cache, base tier: core WebGPU only.
//
// Computes, for one row tile, one KV head and one part of the schedule, softmax(scale Q K^T) V over that part's KV
// blocks; K and V are the same cached rows (V is their first D_V numbers).
//
// How work is cut: workgroup (x, y, z) = (part, row tile, KV head). A row is a (query token, head) pair that shares
// the KV head; a tile has ROWS of them. The part's sequences are taken one after another, TOKENS keys a step:
//   stage   TOKENS cached rows, as packed 16-bit pairs, into workgroup memory: the only time they are read
//   scores  a thread makes ROW_TILE x 4 dot products over every SLICES-th word of d (2 numbers)
//   sums    a thread owns quads, a row and 4 tokens each: adds the slices, scales, masks
//   softmax the same thread: running maximum, probabilities, its share of the running sum
//   output  a thread owns OUT_ROWS rows x OUT_WORDS words of O (2 columns each), in registers
// Neighbouring threads read neighbouring words throughout: no bank conflicts on a GPU, and vector loads on a software
// adapter, which loads lane by lane anything else.
// A sequence that fits in this part is written to `out`; one that is split leaves a normalised partial O and its
// base-2 LSE in `partials`, which combine.wgsl merges.
//
// What lives where: O, running maximum and sum in registers; the KV step, slice sums, scores and probabilities in
// workgroup memory; Q in storage, read through the cache at every step.
//
// The launcher (src/webgpu/decode.ts) puts the constants, the plan's layout and the KV bindings in front.

var<workgroup> kv_tile: array<u32, TOKENS * WORDS>;
var<workgroup> slice_sums: array<vec4<f32>, ROWS * QUADS * SLICES>;
var<workgroup> scores: array<vec4<f32>, ROWS * QUADS>;
var<workgroup> probs: array<vec4<f32>, ROWS * QUADS>;
var<workgroup> rescale: array<f32, ROWS>;
var<workgroup> row_max: array<f32, ROWS>;

const LOWEST = -3.4028234e38;

// Which of the s_q * h_q rows of a sequence, in the order of q and out, a row of the KV head's is.
fn query_row(row: u32, head_kv: u32, group: u32, h_kv: u32) -> u32 {
  return (row / group) * group * h_kv + head_kv * group + row % group;
}

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

  // scores: this thread's tile of S and its slice of d
  let slice = thread % SLICES;
  let s_tile = thread / SLICES;
  let s_row = (s_tile / QUADS) * ROW_TILE;
  let s_quad = s_tile % QUADS;
  // sums and softmax: this thread's quads, each a row and 4 tokens
  #unroll i < THREAD_QUADS
  let quad_$i = thread + $iu * THREADS;
  let active_$i = quad_$i < ROWS * QUADS;
  let row_$i = min(quad_$i / QUADS, ROWS - 1u);
  let token_$i = (quad_$i % QUADS) * 4u;
  #end
  // output: this thread's rows and first word of O; the others are OUT_LANES apart
  let o_word = thread % OUT_LANES;
  let o_row = (thread / OUT_LANES) * OUT_ROWS;
  let o_active = o_row < ROWS;

  for (var seq = first_seq; seq <= last_seq; seq++) {
    let seq_at = plan[PLAN_SEQS_AT] + seq * 4u;
    let length = plan[seq_at];
    var begin = 0u;
    var end = length;
    if (seq == first_seq) { begin = plan[part_at + 1u] * block_size; }
    if (seq == last_seq) { end = min(length, plan[part_at + 3u] * block_size); }
    let table_at = plan[PLAN_TABLE_AT] + seq * plan[PLAN_TABLE_STRIDE];

    #unroll r < OUT_ROWS
    #unroll w < OUT_WORDS
    var low_$r_$w = 0.0;
    var high_$r_$w = 0.0;
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
    let q_$r = (seq * s_q * group * h_kv + query_row(min(row_base + s_row + $ru, rows - 1u), head_kv, group, h_kv)) * WORDS;
    #end

    for (var token0 = begin; token0 < end; token0 += TOKENS) {
      // stage: slots past the sequence's end may hold anything and become zero
      let block = plan[table_at + token0 / block_size];
      let segment = block / BLOCKS_PER_SEGMENT;
      let kv_base = (((block % BLOCKS_PER_SEGMENT) * block_size + token0 % block_size) * h_kv + head_kv) * WORDS;
      for (var i = thread; i < TOKENS * WORDS; i += THREADS) {
        let token = i / WORDS;
        var packed = 0u;
        if (token0 + token < end) { packed = load_kv(segment, kv_base + token * ((h_kv - 1u) * WORDS) + i); }
        kv_tile[i] = packed;
      }
      workgroupBarrier();

      // scores
      #unroll r < ROW_TILE
      var sum_$r = vec4<f32>();
      #end
      for (var word0 = slice; word0 < WORDS; word0 += SLICES * WORD_UNROLL) {
        #unroll u < WORD_UNROLL
        {
          let word = word0 + $uu * SLICES;
          #unroll t < 4
          let k_$t = kv_tile[(s_quad * 4u + $tu) * WORDS + word];
          #end
          let k_low = vec4<f32>(unpack_low(k_0), unpack_low(k_1), unpack_low(k_2), unpack_low(k_3));
          let k_high = vec4<f32>(unpack_high(k_0), unpack_high(k_1), unpack_high(k_2), unpack_high(k_3));
          #unroll r < ROW_TILE
          let q_word_$r = q[q_$r + word];
          sum_$r += unpack_low(q_word_$r) * k_low + unpack_high(q_word_$r) * k_high;
          #end
        }
        #end
      }
      #unroll r < ROW_TILE
      slice_sums[((s_row + $ru) * QUADS + s_quad) * SLICES + slice] = sum_$r;
      #end
      workgroupBarrier();

      // sums
      #unroll i < THREAD_QUADS
      let visible_$i = vec4<u32>(token0 + token_$i) + vec4<u32>(0u, 1u, 2u, 3u) < vec4<u32>(limit_$i);
      var score_$i = vec4<f32>(LOWEST);
      if (active_$i) {
        var sum = vec4<f32>();
        for (var s = 0u; s < SLICES; s++) { sum += slice_sums[quad_$i * SLICES + s]; }
        score_$i = select(score_$i, sum * scale_log2, visible_$i);
        scores[quad_$i] = score_$i;
      }
      #end
      workgroupBarrier();

      // Keys that only some rows see: what is not a number in their V must not reach the others, since 0 * NaN is NaN.
      // It reaches the rows that see them through the scores.
      if (causal && token0 + TOKENS > length - min(length, s_q - 1u)) {
        for (var i = thread; i < TOKENS * V_WORDS; i += THREADS) {
          let at = (i / V_WORDS) * WORDS + i % V_WORDS;
          kv_tile[at] = finite_or_zero(kv_tile[at]);
        }
      }

      // softmax
      #unroll i < THREAD_QUADS
      if (active_$i) {
        var most = vec4<f32>(highest_$i);
        for (var k = 0u; k < QUADS; k++) { most = max(most, scores[row_$i * QUADS + k]); }
        let row_most = max(max(most.x, most.y), max(most.z, most.w));
        let factor = exp2(highest_$i - row_most);
        let p = select(vec4<f32>(), exp2_or_nan(score_$i - row_most), visible_$i);
        highest_$i = row_most;
        total_$i = total_$i * factor + p.x + p.y + p.z + p.w;
        probs[quad_$i] = p;
        if (token_$i == 0u) { rescale[row_$i] = factor; }
      }
      #end
      workgroupBarrier();

      // output
      if (o_active) {
        #unroll r < OUT_ROWS
        let factor_$r = rescale[o_row + $ru];
        #unroll w < OUT_WORDS
        low_$r_$w *= factor_$r;
        high_$r_$w *= factor_$r;
        #end
        #end
        for (var t = 0u; t < TOKENS; t += 4u) {
          #unroll r < OUT_ROWS
          let p_$r = probs[(o_row + $ru) * QUADS + t / 4u];
          #end
          #unroll w < OUT_WORDS
          {
            #unroll k < 4
            let v_$k = kv_tile[(t + $ku) * WORDS + o_word + $wu * OUT_LANES];
            #end
            let v_low = vec4<f32>(unpack_low(v_0), unpack_low(v_1), unpack_low(v_2), unpack_low(v_3));
            let v_high = vec4<f32>(unpack_high(v_0), unpack_high(v_1), unpack_high(v_2), unpack_high(v_3));
            #unroll r < OUT_ROWS
            low_$r_$w += dot(p_$r, v_low);
            high_$r_$w += dot(p_$r, v_high);
            #end
          }
          #end
        }
      }
      workgroupBarrier();
    }

    // The end of a sequence: l and m to workgroup memory, O to where it belongs.
    #unroll i < THREAD_QUADS
    if (active_$i) {
      scores[quad_$i] = vec4<f32>(total_$i, 0.0, 0.0, 0.0);
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
        for (var i = 0u; i < QUADS; i++) { sum += scores[(o_row + $ru) * QUADS + i].x; }
        let empty = sum == 0.0;
        let inverse = select(1.0 / sum, 0.0, empty);
        if (is_split) {
          let at = partial * (rows * h_kv) + head_kv * rows + row;
          #unroll w < OUT_WORDS
          if (o_word + $wu * OUT_LANES < V_WORDS) {
            partials[at * V_WORDS + o_word + $wu * OUT_LANES] = vec2<f32>(low_$r_$w, high_$r_$w) * inverse;
          }
          #end
          // A partial without visible keys weighs nothing in the merge; a NaN must reach it.
          var lse_log2 = select(row_max[o_row + $ru] + log2(sum), LOWEST, empty);
          if (is_nan(sum)) { lse_log2 = sum; }
          if (o_word == 0u) { partials[plan[PLAN_LSE_AT] + at] = vec2<f32>(lse_log2, 0.0); }
        } else {
          let at = (seq * rows * h_kv + query_row(row, head_kv, group, h_kv)) * V_WORDS + o_word;
          #unroll w < OUT_WORDS
          if (o_word + $wu * OUT_LANES < V_WORDS) {
            out[at + $wu * OUT_LANES] = pack(low_$r_$w * inverse, high_$r_$w * inverse);
          }
          #end
          if (o_word == 0u) {
            lse[(seq * h_kv + head_kv) * rows + (row % group) * s_q + row / group] = lse_bits(row_max[o_row + $ru], sum);
          }
        }
      }
    }
    #end
    workgroupBarrier();
  }
}
