// Merges the partial results of sequences that the schedule split.
//
// Computes out = sum_s w_s O_s and lse = log sum_s exp(lse_s) with w_s = exp2(lse_s - lse), over the splits s of a
// sequence; O_s are normalised, lse_s are base 2.
//
// How work is cut: workgroup (x, y, z) = (some rows, split sequence, chunk of columns); a row is one of s_q * h_q. A thread is a
// lane, which owns 4 columns of the chunk, of a group, one of n that share a row: group g of those takes splits g, g + n, ..., four
// at a time. The launcher gives a workgroup more rows where splits are few, and makes chunks narrower, hence groups more, as they grow: a
// thread takes a handful of them however many there are.
//
// What lives where: O, running maximum and sum in registers, so that nothing has to be known of all
// splits before the first is read; the groups' results meet once in workgroup memory.
//
// The launcher (src/webgpu/combine.ts) puts the constants and the plan's layout in front.

var<workgroup> group_out: array<vec4<f32>, THREADS>;
var<workgroup> group_lse: array<vec2<f32>, MOST_GROUPS>; // maximum, sum

// A weighted sum under way: sum_i exp2(l_i - highest) s_i, for the sum of weights and for O.
struct Merge {
  highest: f32,
  sum: f32,
  out: vec4<f32>,
}

// Takes in four of them, whose maxima are `tops`. One that is empty, as a split without visible keys, has LOWEST.
fn take_in(merge: ptr<function, Merge>, tops: vec4<f32>, sums: vec4<f32>, out_0: vec4<f32>, out_1: vec4<f32>, out_2: vec4<f32>, out_3: vec4<f32>) {
  let highest = max((*merge).highest, max(max(tops.x, tops.y), max(tops.z, tops.w)));
  let factor = exp2((*merge).highest - highest);
  let weights = select(exp2_or_nan(tops - highest), vec4<f32>(), tops == vec4<f32>(LOWEST));
  (*merge).highest = highest;
  (*merge).sum = (*merge).sum * factor + dot(weights, sums);
  (*merge).out = (*merge).out * factor + weights.x * out_0 + weights.y * out_1 + weights.z * out_2 + weights.w * out_3;
}

@compute @workgroup_size(THREADS)
fn main(
  @builtin(workgroup_id) workgroup: vec3<u32>, @builtin(num_workgroups) workgroups: vec3<u32>,
  @builtin(local_invocation_index) thread: u32,
) {
  let lanes = V_QUADS / workgroups.z;
  let quad = workgroup.z * lanes + thread % lanes;

  let split_at = plan[PLAN_SPLIT_AT] + workgroup.y * 4u;
  let seq = plan[split_at];
  let first_part = plan[split_at + 1u];
  let splits = plan[split_at + 2u];
  let first_partial = plan[split_at + 3u];
  let s_q = plan[PLAN_S_Q];
  let heads = plan[PLAN_GROUP];
  let lse_at = plan[PLAN_LSE_AT];
  let rows_per_head = s_q * heads;
  let rows = rows_per_head * plan[PLAN_H_KV];

  let together = (rows + workgroups.x - 1u) / workgroups.x; // rows a workgroup
  let groups = THREADS / lanes / together; // of a row
  let row_here = thread / lanes / groups;
  let group = thread / lanes % groups;
  // Threads past the last whole row, and rows past the last one, take nothing.
  let busy = row_here < together && workgroup.x * together + row_here < rows;
  // What they read all the same is the first row's.
  let first_group = select(0u, row_here * groups, busy);
  let row = min(workgroup.x * together + row_here, rows - 1u);

  var merge = Merge(LOWEST, 0.0, vec4<f32>());
  for (var s = select(splits, group, busy); s < splits; s += 4u * groups) {
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
    take_in(&merge, vec4<f32>(lse_0, lse_1, lse_2, lse_3), vec4<f32>(1.0), out_0, out_1, out_2, out_3);
  }

  let used = min(groups, splits);
  if (MOST_GROUPS > 1u && used > 1u) {
    group_out[thread] = merge.out;
    if (thread % lanes == 0u && busy) { group_lse[first_group + group] = vec2<f32>(merge.highest, merge.sum); }
    workgroupBarrier();
    merge = Merge(LOWEST, 0.0, vec4<f32>());
    for (var g = 0u; g < used; g += 4u) {
      #unroll i < 4
      let group_$i = first_group + min(g + $iu, used - 1u);
      let taken_$i = g + $iu < used;
      let lse_$i = select(vec2<f32>(LOWEST, 0.0), group_lse[group_$i], taken_$i);
      let out_$i = select(vec4<f32>(), group_out[group_$i * lanes + thread % lanes], taken_$i);
      #end
      take_in(&merge, vec4<f32>(lse_0.x, lse_1.x, lse_2.x, lse_3.x), vec4<f32>(lse_0.y, lse_1.y, lse_2.y, lse_3.y), out_0, out_1, out_2, out_3);
    }
  }
  if (group > 0u || !busy) { return; }

  let inverse = select(1.0 / merge.sum, 0.0, merge.sum == 0.0);
  let head = (row / rows_per_head) * heads + row % heads;
  let token = (row % rows_per_head) / heads;
  let merged = merge.out * inverse;
  out[(seq * rows + token * (rows / s_q) + head) * V_QUADS + quad] = vec2<u32>(pack(merged.x, merged.y), pack(merged.z, merged.w));
  if (workgroup.z == 0u && thread % lanes == 0u) {
    lse[seq * rows + head * s_q + token] = lse_bits(merge.highest, merge.sum);
  }
}
