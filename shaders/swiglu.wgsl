// The gated unit of a feed-forward network: out[t, i] = silu(x[t, i]) * x[t, n + i].
//
// How work is cut: a thread takes one column in x and every `workgroups.y`-th token in y.
//
// The launcher (src/webgpu/swiglu.ts) puts the constants and the bindings in front.

struct Params { at: u32, tokens: u32, n: u32 }

@compute @workgroup_size(THREADS)
fn main(@builtin(global_invocation_id) id: vec3<u32>, @builtin(num_workgroups) workgroups: vec3<u32>) {
  if (id.x >= p.n) { return; }
  for (var t = id.y; t < p.tokens; t += workgroups.y) {
    let gate = x[t * 2u * p.n + id.x];
    let up = x[(t * 2u + 1u) * p.n + id.x];
    // exp of a large number is an infinity, which not every device divides by as it should.
    out[t * p.n + id.x] = gate / (1.0 + exp(min(-gate, 80.0))) * up;
  }
}
