// Reads a buffer again and again, and adds up all that it reads, so that no load can be left out.
//
// `vectors` is a multiple of four times the number of invocations. From one pass to the next a workgroup moves on to
// what another one read before: its own part of the buffer would be in the cache closest to it.

struct Work {
  vectors: u32,
  passes: u32,
}

const THREADS = 256u;
/// Workgroups that a pass moves on by: odd, so that it comes round late.
const STRIDE = 37u;

@group(0) @binding(0) var<storage, read> words: array<vec4<u32>>;
@group(0) @binding(1) var<storage, read_write> sums: array<u32>;
@group(0) @binding(2) var<uniform> work: Work;

@compute @workgroup_size(THREADS)
fn main(@builtin(global_invocation_id) id: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>) {
  let invocations = groups.x * THREADS;
  var sum = vec4<u32>();
  for (var pass_ = 0u; pass_ < work.passes; pass_++) {
    let first = (id.x + pass_ * STRIDE * THREADS) % invocations;
    for (var at = first; at < work.vectors; at += 4u * invocations) {
      sum += words[at] + words[at + invocations] + words[at + 2u * invocations] + words[at + 3u * invocations];
    }
  }
  sums[id.x] = sum.x + sum.y + sum.z + sum.w;
}
