// RMSNorm of rows: out[t, :] = x[t, :] / sqrt(mean(x[t, :]^2) + eps) * weight. Rows may be slices of wider ones, and their own output.
//
// How work is cut: a workgroup takes every `workgroups.x`-th token; a thread every THREADS-th number of it.
//
// The launcher (src/webgpu/rms-norm.ts) puts the constants, the bindings, `load_x` and workgroup_sum.wgsl in front.

struct Params { at: u32, tokens: u32, n: u32, eps: f32, x_stride: u32, x_offset: u32, out_stride: u32, out_offset: u32 }

@compute @workgroup_size(THREADS)
fn main(@builtin(workgroup_id) workgroup: vec3<u32>, @builtin(num_workgroups) workgroups: vec3<u32>, @builtin(local_invocation_index) thread: u32) {
  for (var t = workgroup.x; t < p.tokens; t += workgroups.x) {
    let x_at = t * p.x_stride + p.x_offset;
    let out_at = t * p.out_stride + p.out_offset;
    var squares = 0.0;
    for (var i = thread; i < p.n; i += THREADS) {
      let value = load_x(x_at + i);
      squares += value * value;
    }
    let factor = inverseSqrt(workgroup_sum(squares, thread) / f32(p.n) + p.eps);
    for (var i = thread; i < p.n; i += THREADS) { out[out_at + i] = load_x(x_at + i) * factor * weight[i]; }
  }
}
