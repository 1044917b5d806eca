// What the subgroup tier takes for granted, in exact numbers: lanes of a subgroup are neighbouring threads, sums over
// aligned groups of WIDTH lanes by shuffles are right, and a subgroup is told what holds for one of its lanes.
//
// How work is cut: one workgroup. A thread writes its subgroup's size, its lane, the sum over its group of `first`
// (even threads) or `second` (odd ones), by the steps of the decode kernel, and whether the last thread is in its subgroup.
//
// The launcher (src/webgpu/subgroup-test.ts) puts subgroup.wgsl, THREADS, WIDTH and `result` in front.

fn first(thread: u32) -> f32 { return f32((thread * thread) % 61u) + 0.5; }
fn second(thread: u32) -> f32 { return f32((thread * 7u) % 31u) - 8.0; }

@compute @workgroup_size(THREADS)
fn main(
  @builtin(local_invocation_index) thread: u32, @builtin(subgroup_size) size: u32, @builtin(subgroup_invocation_id) lane: u32,
) {
  var sum = halve(vec4<f32>(first(thread)), vec4<f32>(second(thread)), (thread & 1u) == 1u, 1u);
  for (var mask = 2u; mask < WIDTH; mask *= 2u) { sum += subgroupShuffleXor(sum, mask); }
  result[thread * 4u] = size;
  result[thread * 4u + 1u] = lane;
  result[thread * 4u + 2u] = bitcast<u32>(sum.w);
  result[thread * 4u + 3u] = u32(subgroupAny(thread == THREADS - 1u));
}
