// Sums over neighbouring lanes of a subgroup, without workgroup memory. Needs `enable subgroups;`.

// Adds up two vectors over a pair of lanes `mask` apart: the lane with that bit clear gets the sum of `a`, the one with it
// set (`odd`) the sum of `b`.
fn halve(a: vec4<f32>, b: vec4<f32>, odd: bool, mask: u32) -> vec4<f32> {
  return select(a, b, odd) + subgroupShuffleXor(select(b, a, odd), mask);
}
