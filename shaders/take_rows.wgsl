// Chosen rows: out[s, :] = x[rows[s], :].
//
// How work is cut: a thread takes one column in x and every `workgroups.y`-th row in y.
//
// The launcher (src/webgpu/take-rows.ts) puts the constants and the bindings in front; `args` holds the rows from `at` on.

struct Params { at: u32, count: u32, n: u32 }

@compute @workgroup_size(THREADS)
fn main(@builtin(global_invocation_id) id: vec3<u32>, @builtin(num_workgroups) workgroups: vec3<u32>) {
  if (id.x >= p.n) { return; }
  for (var s = id.y; s < p.count; s += workgroups.y) {
    out[s * p.n + id.x] = x[args[p.at + s] * p.n + id.x];
  }
}
