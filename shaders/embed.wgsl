// Rows of an embedding table: out[t, :] = table[ids[t] - first, :], as f32, where the table has that row.
//
// How work is cut: a thread takes one column in x and every `workgroups.y`-th token in y.
//
// The launcher (src/webgpu/embed.ts) puts the constants, the bindings and `load_table` in front; `args` holds the ids from `at` on.

struct Params { at: u32, tokens: u32, n: u32, first: u32, rows: u32 }

@compute @workgroup_size(THREADS)
fn main(@builtin(global_invocation_id) id: vec3<u32>, @builtin(num_workgroups) workgroups: vec3<u32>) {
  if (id.x >= p.n) { return; }
  for (var t = id.y; t < p.tokens; t += workgroups.y) {
    // An id before the first wraps to one past the last.
    let row = args[p.at + t] - p.first;
    if (row < p.rows) { out[t * p.n + id.x] = load_table(row * p.n + id.x); }
  }
}
