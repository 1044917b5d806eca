// Rotary positions: turns the pairs (2i, 2i + 1) of every head by the token's angles, and rounds to bf16.
//
// How work is cut: a thread takes one pair of one head in x and every `workgroups.y`-th token in y. A pair is a word of the output.
//
// The launcher (src/webgpu/rope.ts) puts the constants, the bindings and bf16.wgsl in front; `args` holds cosine and sine a token and
// pair from `at` on.

struct Params { at: u32, tokens: u32, heads: u32, pairs: u32, x_stride: u32, x_group: u32, x_offset: u32, out_stride: u32, out_group: u32, out_offset: u32 }

@compute @workgroup_size(THREADS)
fn main(@builtin(global_invocation_id) id: vec3<u32>, @builtin(num_workgroups) workgroups: vec3<u32>) {
  let head = id.x / p.pairs;
  let pair = id.x % p.pairs;
  if (head >= p.heads) { return; }
  for (var t = id.y; t < p.tokens; t += workgroups.y) {
    let angle_at = p.at + (t * p.pairs + pair) * 2u;
    let cosine = bitcast<f32>(args[angle_at]);
    let sine = bitcast<f32>(args[angle_at + 1u]);
    let x_at = t * p.x_stride + head * p.x_group + p.x_offset + 2u * pair;
    let a = x[x_at];
    let b = x[x_at + 1u];
    out[(t * p.out_stride + head * p.out_group + p.out_offset) / 2u + pair] = pack(a * cosine - b * sine, a * sine + b * cosine);
  }
}
