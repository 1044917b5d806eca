// Merges the partial results of sequences that the schedule split.
//
// Computes out = sum_s w_s O_s and lse = log sum_s exp(lse_s) with w_s = exp2(lse_s - lse), over the splits s of a
// sequence; O_s are normalised, lse_s are base 2.
//
// How work is cut: workgroup (x, y, z) = (row, split sequence, chunk of columns); a row is one of s_q * h_q. A thread is a
// lane, which owns 4 columns of the chunk, of a group: group g of n takes splits g, g + n, ..., four at a time. The
// launcher makes chunks narrower, hence groups more, as splits grow: a thread takes a handful of them however many there
// are.
//
// What lives where: O, running maximum and sum in registers, as in decode.wgsl, so that nothing has to be known of all
// splits before the first is read; the groups' results meet once in workgroup memory.
//
// The launcher (src/webgpu/combine.ts) puts the constants and the plan's layout in front.

var<workgroup> group_out: array<vec4<f32>, THREADS>;
var<workgroup> group_lse: array<vec2<f32>, MOST_GROUPS>; // maximum, sum

const LOWEST = -3.4028234e38;

@compute @workgroup_size(THREADS)
fn main(
  @builtin(workgroup_id) workgroup: vec3<u32>, @builtin(num_workgroups) workgroups: vec3<u32>,
  @builtin(local_invocation_index) thread: u32,
) {
  let lanes = V_QUADS / workgroups.z;
  let groups = THREADS / lanes;
  let group = thread / lanes;
  let quad = workgroup.z * lanes + thread % lanes;

  let row = workgroup.x;
  let seq = plan[plan[PLAN_SPLIT_AT] + workgroup.y];
  let seq_at = plan[PLAN_SEQS_AT] + seq * 4u;
  let first_part = plan[seq_at + 1u];
  let splits = plan[seq_at + 2u];
  let first_partial = plan[seq_at + 3u];
  let s_q = plan[PLAN_S_Q];
  let heads = plan[PLAN_GROUP];
  let lse_at = plan[PLAN_LSE_AT];
  let rows_per_head = s_q * heads;
  let rows = rows_per_head * plan[PLAN_H_KV];

  var highest = LOWEST;
  var sum = 0.0;
  var acc = vec4<f32>();
  // Threads past the last whole group take nothing.
  for (var s = select(splits, group, group < groups); s < splits; s += 4u * groups) {
    // Past the end the last split is read again and left out: an infinity times a weight of 0 is not 0.
    #unroll i < 4
    let inside_$i = s + $iu * groups < splits;
    let split_$i = min(s + $iu * groups, splits - 1u);
    let at_$i = select(2u * (first_part + split_$i), first_partial, split_$i == 0u) * rows + row;
    let out_$i = select(vec4<f32>(), partials[at_$i * V_QUADS + quad], inside_$i);
    // LSEs are 8 bytes apart.
    let pair_$i = partials[(lse_at + at_$i) / 2u];
    let lse_$i = select(LOWEST, select(pair_$i.x, pair_$i.z, (lse_at + at_$i) % 2u == 1u), inside_$i);
    #end
    let lses = vec4<f32>(lse_0, lse_1, lse_2, lse_3);
    let most = max(highest, max(max(lse_0, lse_1), max(lse_2, lse_3)));
    let factor = exp2(highest - most);
    // A split without visible keys has LOWEST; when all have, the row is empty.
    let weights = select(exp2_or_nan(lses - most), vec4<f32>(), lses == vec4<f32>(LOWEST));
    highest = most;
    sum = sum * factor + weights.x + weights.y + weights.z + weights.w;
    acc = acc * factor + weights.x * out_0 + weights.y * out_1 + weights.z * out_2 + weights.w * out_3;
  }

  let used = min(groups, splits);
  if (MOST_GROUPS > 1u && used > 1u) {
    group_out[thread] = acc;
    if (thread % lanes == 0u && group < groups) { group_lse[group] = vec2<f32>(highest, sum); }
    workgroupBarrier();
    highest = LOWEST;
    for (var g = 0u; g < used; g++) { highest = max(highest, group_lse[g].x); }
    sum = 0.0;
    acc = vec4<f32>();
    for (var g = 0u; g < used; g++) {
      let factor = exp2(group_lse[g].x - highest);
      sum += factor * group_lse[g].y;
      acc += factor * group_out[g * lanes + thread % lanes];
    }
  }
  if (group > 0u) { return; }

  let inverse = select(1.0 / sum, 0.0, sum == 0.0);
  let head = (row / rows_per_head) * heads + row % heads;
  let token = (row % rows_per_head) / heads;
  let merged = acc * inverse;
  out[(seq * rows + token * (rows / s_q) + head) * V_QUADS + quad] = vec2<u32>(pack(merged.x, merged.y), pack(merged.z, merged.w));
  if (workgroup.z == 0u && thread == 0u) {
    lse[seq * rows + head * s_q + token] = lse_bits(highest, sum);
  }
}
