// Split-KV decode attention over a paged latent cache, base tier: core WebGPU only.
//
// Computes, for one row tile, one KV head and one part of the schedule, softmax(scale Q K^T) V over that part's KV
// blocks; K and V are the same cached rows (V is their first D_V numbers).
//
// How work is cut: workgroup (x, y, z) = (part, row tile, KV head). A row is a (query token, head) pair that shares
// the KV head; a tile has ROWS of them. The part's sequences are taken one after another, TOKENS keys a step:
//   stage   TOKENS cached rows, as packed 16-bit pairs, into workgroup memory: the only time they are read
//   scores  a thread makes ROW_TILE x 4 dot products over every SLICES-th chunk of d (8 numbers)
//   sums    a thread owns a row and 4 tokens (a quad): adds the slices, scales, masks
//   softmax the same thread: running maximum, probabilities, its share of the running sum
//   output  a thread owns OUT_ROWS rows x 8 columns of O, in registers
// A sequence that fits in this part is written to `out`; one that is split leaves a normalised partial O and its
// base-2 LSE in `partials`, which combine.wgsl merges.
//
// What lives where: O, running maximum and sum in registers; the KV step, slice sums, scores and probabilities in
// workgroup memory; Q in storage, read through the cache at every step.
//
// The launcher (src/webgpu/decode.ts) puts the constants, the plan's layout and the KV bindings in front.

var<workgroup> kv_tile: array<vec4<u32>, TOKENS * KV_STRIDE>;
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
  // sums and softmax: this thread's row and quad
  let p_active = thread < ROWS * QUADS;
  let p_row = min(thread / QUADS, ROWS - 1u);
  let p_token = (thread % QUADS) * 4u;
  // output: this thread's rows and column chunk of O
  let o_chunk = thread % V_CHUNKS;
  let o_row = (thread / V_CHUNKS) * OUT_ROWS;
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
    var even_$r = vec4<f32>();
    var odd_$r = vec4<f32>();
    #end
    var running_max = LOWEST;
    var running_sum = 0.0; // over this thread's tokens only
    var limit = end;
    if (causal) {
      // Query token i sees keys 0 .. length - s_q + i; counted from the end to stay unsigned.
      let hidden = s_q - 1u - min((row_base + p_row) / group, s_q - 1u);
      limit = min(end, length - min(length, hidden));
    }

    // Rows past the end are computed on the last row and never written.
    #unroll r < ROW_TILE
    let q_$r = (seq * s_q * group * h_kv + query_row(min(row_base + s_row + $ru, rows - 1u), head_kv, group, h_kv)) * CHUNKS;
    #end

    for (var token0 = begin; token0 < end; token0 += TOKENS) {
      // stage: slots past the sequence's end may hold anything and become zero
      let block = plan[table_at + token0 / block_size];
      let segment = block / BLOCKS_PER_SEGMENT;
      let kv_base = (((block % BLOCKS_PER_SEGMENT) * block_size + token0 % block_size) * h_kv + head_kv) * CHUNKS;
      for (var i = thread; i < TOKENS * CHUNKS; i += THREADS) {
        let token = i / CHUNKS;
        let chunk = i % CHUNKS;
        var packed = vec4<u32>();
        if (token0 + token < end) { packed = load_kv(segment, kv_base + token * (h_kv * CHUNKS) + chunk); }
        kv_tile[token * KV_STRIDE + chunk] = packed;
      }
      workgroupBarrier();

      // scores
      #unroll r < ROW_TILE
      var sum_$r = vec4<f32>();
      #end
      for (var chunk = slice; chunk < CHUNKS; chunk += SLICES) {
        #unroll t < 4
        let k_$t = kv_tile[(s_quad * 4u + $tu) * KV_STRIDE + chunk];
        let k_even_$t = unpack_even(k_$t);
        let k_odd_$t = unpack_odd(k_$t);
        #end
        #unroll r < ROW_TILE
        {
          let packed = q[q_$r + chunk];
          let even = unpack_even(packed);
          let odd = unpack_odd(packed);
          sum_$r += vec4<f32>(
            dot(even, k_even_0) + dot(odd, k_odd_0), dot(even, k_even_1) + dot(odd, k_odd_1),
            dot(even, k_even_2) + dot(odd, k_odd_2), dot(even, k_even_3) + dot(odd, k_odd_3));
        }
        #end
      }
      #unroll r < ROW_TILE
      slice_sums[((s_row + $ru) * QUADS + s_quad) * SLICES + slice] = sum_$r;
      #end
      workgroupBarrier();

      // sums
      let visible = vec4<u32>(token0 + p_token) + vec4<u32>(0u, 1u, 2u, 3u) < vec4<u32>(limit);
      var score = vec4<f32>(LOWEST);
      if (p_active) {
        var sum = vec4<f32>();
        for (var s = 0u; s < SLICES; s++) { sum += slice_sums[thread * SLICES + s]; }
        score = select(score, sum * scale_log2, visible);
        scores[thread] = score;
      }
      workgroupBarrier();

      // Keys that only some rows see: what is not a number in their V must not reach the others, since 0 * NaN is NaN.
      // It reaches the rows that see them through the scores.
      if (causal && token0 + TOKENS > length - min(length, s_q - 1u)) {
        for (var i = thread; i < TOKENS * V_CHUNKS; i += THREADS) {
          let at = (i / V_CHUNKS) * KV_STRIDE + i % V_CHUNKS;
          kv_tile[at] = finite_or_zero(kv_tile[at]);
        }
      }

      // softmax
      if (p_active) {
        var highest = vec4<f32>(running_max);
        for (var i = 0u; i < QUADS; i++) { highest = max(highest, scores[p_row * QUADS + i]); }
        let row_highest = max(max(highest.x, highest.y), max(highest.z, highest.w));
        let factor = exp2(running_max - row_highest);
        let p = select(vec4<f32>(), exp2_or_nan(score - row_highest), visible);
        running_max = row_highest;
        running_sum = running_sum * factor + p.x + p.y + p.z + p.w;
        probs[thread] = p;
        if (p_token == 0u) { rescale[p_row] = factor; }
      }
      workgroupBarrier();

      // output
      if (o_active) {
        #unroll r < OUT_ROWS
        {
          let factor = rescale[o_row + $ru];
          even_$r *= factor;
          odd_$r *= factor;
        }
        #end
        for (var t = 0u; t < TOKENS; t += 4u) {
          #unroll k < 4
          let v_$k = kv_tile[(t + $ku) * KV_STRIDE + o_chunk];
          let v_even_$k = unpack_even(v_$k);
          let v_odd_$k = unpack_odd(v_$k);
          #end
          #unroll r < OUT_ROWS
          {
            let p = probs[(o_row + $ru) * QUADS + t / 4u];
            even_$r += p.x * v_even_0 + p.y * v_even_1 + p.z * v_even_2 + p.w * v_even_3;
            odd_$r += p.x * v_odd_0 + p.y * v_odd_1 + p.z * v_odd_2 + p.w * v_odd_3;
          }
          #end
        }
      }
      workgroupBarrier();
    }

    // The end of a sequence: l and m to workgroup memory, O to where it belongs.
    if (p_active) {
      scores[thread] = vec4<f32>(running_sum, 0.0, 0.0, 0.0);
      if (p_token == 0u) { row_max[p_row] = running_max; }
    }
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
        let even = even_$r * inverse;
        let odd = odd_$r * inverse;
        if (is_split) {
          let at = partial * (rows * h_kv) + head_kv * rows + row;
          partials[at * (V_CHUNKS * 2u) + o_chunk * 2u] = even;
          partials[at * (V_CHUNKS * 2u) + o_chunk * 2u + 1u] = odd;
          // A partial without visible keys weighs nothing in the merge; a NaN must reach it.
          var lse_log2 = select(row_max[o_row + $ru] + log2(sum), LOWEST, empty);
          if (is_nan(sum)) { lse_log2 = sum; }
          if (o_chunk == 0u) { partials[plan[PLAN_LSE_AT] + at] = vec4<f32>(lse_log2, 0.0, 0.0, 0.0); }
        } else {
          out[(seq * rows * h_kv + query_row(row, head_kv, group, h_kv)) * V_CHUNKS + o_chunk] = pack(even, odd);
          if (o_chunk == 0u) {
            lse[(seq * h_kv + head_kv) * rows + (row % group) * s_q + row / group] = lse_bits(row_max[o_row + $ru], sum);
          }
        }
      }
    }
    #end
    workgroupBarrier();
  }
}
