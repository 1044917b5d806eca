// Merges the partial results of sequences that the schedule split.
//
// Computes out = sum_s w_s O_s and lse = log sum_s exp(lse_s) with w_s = exp2(lse_s - lse), over the splits s of a
// sequence; O_s are normalised, lse_s are base 2.
//
// How work is cut: workgroup (x, y) = (row, split sequence); a row is one of s_q * h_q. Splits are spread over the
// threads for the two reductions, words (2 columns each) over the threads for the sum.
//
// What lives where: the splits' weights in workgroup memory, WEIGHTS of them at a time; O in registers.
//
// The launcher (src/webgpu/combine.ts) puts the constants and the plan's layout in front.

var<workgroup> reduce: array<f32, THREADS>;
var<workgroup> weights: array<f32, THREADS>;

const LOWEST = -3.4028234e38;

// The partial that split `index` of sequence `seq` left: a part has one for its first sequence and one for its last.
fn partial_row(seq: u32, first_part: u32, index: u32, rows: u32, row: u32) -> u32 {
  let part = first_part + index;
  let last = select(1u, 0u, plan[PLAN_PARTS + part * 8u] == seq);
  return (2u * part + last) * rows + row;
}

fn partial_lse(at: u32) -> f32 {
  return partials[plan[PLAN_LSE_AT] + at].x;
}

@compute @workgroup_size(THREADS)
fn main(@builtin(workgroup_id) workgroup: vec3<u32>, @builtin(local_invocation_index) thread: u32) {
  let row = workgroup.x;
  let seq = plan[plan[PLAN_SPLIT_AT] + workgroup.y];
  let seq_at = plan[PLAN_SEQS_AT] + seq * 4u;
  let first_part = plan[seq_at + 1u];
  let splits = plan[seq_at + 2u];
  let s_q = plan[PLAN_S_Q];
  let group = plan[PLAN_GROUP];
  let rows_per_head = s_q * group;
  let rows = rows_per_head * plan[PLAN_H_KV];

  var highest = LOWEST;
  for (var s = thread; s < splits; s += THREADS) { highest = max(highest, partial_lse(partial_row(seq, first_part, s, rows, row))); }
  reduce[thread] = highest;
  workgroupBarrier();
  for (var width = THREADS / 2u; width > 0u; width /= 2u) {
    if (thread < width) { reduce[thread] = max(reduce[thread], reduce[thread + width]); }
    workgroupBarrier();
  }
  highest = reduce[0];
  workgroupBarrier();

  // A split without visible keys has LOWEST; when all have, the row is empty.
  var sum = 0.0;
  var acc: array<vec2<f32>, WORDS_PER_THREAD>;
  for (var i = 0u; i < WORDS_PER_THREAD; i++) { acc[i] = vec2<f32>(); }
  for (var s0 = 0u; s0 < splits; s0 += THREADS) {
    if (s0 + thread < splits) {
      let l = partial_lse(partial_row(seq, first_part, s0 + thread, rows, row));
      weights[thread] = select(exp2(l - highest), 0.0, l == LOWEST);
      if (is_nan(l)) { weights[thread] = l; }
    }
    workgroupBarrier();
    let count = min(THREADS, splits - s0);
    for (var s = 0u; s < count; s++) {
      let w = weights[s];
      sum += w;
      let at = partial_row(seq, first_part, s0 + s, rows, row) * V_WORDS;
      for (var i = 0u; i < WORDS_PER_THREAD; i++) {
        let word = thread + i * THREADS;
        if (word < V_WORDS) { acc[i] += w * partials[at + word]; }
      }
    }
    workgroupBarrier();
  }

  let empty = sum == 0.0;
  let inverse = select(1.0 / sum, 0.0, empty);
  let head = (row / rows_per_head) * group + row % group;
  let token = (row % rows_per_head) / group;
  for (var i = 0u; i < WORDS_PER_THREAD; i++) {
    let word = thread + i * THREADS;
    if (word < V_WORDS) {
      out[(seq * rows + token * (rows / s_q) + head) * V_WORDS + word] = pack(acc[i].x * inverse, acc[i].y * inverse);
    }
  }
  if (thread == 0u) {
    lse[seq * rows + head * s_q + token] = lse_bits(highest, sum);
  }
}
