// Multiplies and adds in f32: eight chains of vec4 an invocation, enough to hide the latency of each.
//
// x -> factor * x + addend. The host passes 0.5 and 1, with which all numbers end at 2 and their sum at 64; the compiler
// does not know that.

struct Work {
  rounds: u32,
  factor: f32,
  addend: f32,
}

const THREADS = 256u;

@group(0) @binding(0) var<storage, read_write> sums: array<f32>;
@group(0) @binding(1) var<uniform> work: Work;

@compute @workgroup_size(THREADS)
fn main(@builtin(global_invocation_id) id: vec3<u32>) {
  let m = vec4<f32>(work.factor);
  let c = vec4<f32>(work.addend);
  var x0 = vec4<f32>(f32(id.x & 15u));
  var x1 = x0 + 1.0;
  var x2 = x0 + 2.0;
  var x3 = x0 + 3.0;
  var x4 = x0 + 4.0;
  var x5 = x0 + 5.0;
  var x6 = x0 + 6.0;
  var x7 = x0 + 7.0;
  for (var round = 0u; round < work.rounds; round++) {
    // Four to a round: the loop's own additions should not count.
    for (var i = 0u; i < 4u; i++) {
      x0 = fma(x0, m, c);
      x1 = fma(x1, m, c);
      x2 = fma(x2, m, c);
      x3 = fma(x3, m, c);
      x4 = fma(x4, m, c);
      x5 = fma(x5, m, c);
      x6 = fma(x6, m, c);
      x7 = fma(x7, m, c);
    }
  }
  let sum = x0 + x1 + x2 + x3 + x4 + x5 + x6 + x7;
  sums[id.x] = sum.x + sum.y + sum.z + sum.w;
}
