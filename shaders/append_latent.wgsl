// New tokens' rows of the latent cache: RMSNorm of the latent and RoPE of the key part, rounded to bf16, into their pages.
//
// How work is cut: a workgroup takes every `workgroups.x`-th token; a thread every THREADS-th word (two numbers) of its row.
//
// The launcher (src/webgpu/append-latent.ts) puts the constants, the bindings, bf16.wgsl, workgroup_sum.wgsl and `store_kv` in front; `args`
// holds from `at` on a slot (block id * block + offset) a token, then cosine and sine a token and pair.

struct Params { at: u32, tokens: u32, eps: f32, block: u32, x_stride: u32, x_offset: u32, latent: u32, rope: u32 }

@compute @workgroup_size(THREADS)
fn main(@builtin(workgroup_id) workgroup: vec3<u32>, @builtin(num_workgroups) workgroups: vec3<u32>, @builtin(local_invocation_index) thread: u32) {
  let row_words = (p.latent + p.rope) / 2u;
  for (var t = workgroup.x; t < p.tokens; t += workgroups.x) {
    let x_at = t * p.x_stride + p.x_offset;
    var squares = 0.0;
    for (var i = thread; i < p.latent; i += THREADS) { squares += x[x_at + i] * x[x_at + i]; }
    let factor = inverseSqrt(workgroup_sum(squares, thread) / f32(p.latent) + p.eps);

    let slot = args[p.at + t];
    let block = slot / p.block;
    let row_at = ((block % BLOCKS_PER_SEGMENT) * p.block + slot % p.block) * row_words;
    for (var word = thread; word < row_words; word += THREADS) {
      let a = x[x_at + 2u * word];
      let b = x[x_at + 2u * word + 1u];
      var value = 0u;
      if (2u * word < p.latent) {
        value = pack(a * factor * weight[2u * word], b * factor * weight[2u * word + 1u]);
      } else {
        let angle_at = p.at + p.tokens + t * p.rope + 2u * word - p.latent;
        let cosine = bitcast<f32>(args[angle_at]);
        let sine = bitcast<f32>(args[angle_at + 1u]);
        value = pack(a * cosine - b * sine, a * sine + b * cosine);
      }
      store_kv(block / BLOCKS_PER_SEGMENT, row_at + word, value);
    }
  }
}
