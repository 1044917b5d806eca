// Writes new tokens into their pages: cache[slot] = latent | rope.
//
// How work is cut: a workgroup takes THREADS words (a word is two 16-bit elements) of a row in x and every
// `workgroups.y`-th row in y; a row is a (token, KV head) pair. Rows move as bits; nothing is rounded here.
//
// The launcher (src/webgpu/append.ts) puts the constants, `load_row` and the KV bindings in front. `slots` holds the
// number of rows, then a slot (block id * BLOCK + offset) a token.

@compute @workgroup_size(THREADS)
fn main(@builtin(global_invocation_id) id: vec3<u32>, @builtin(num_workgroups) workgroups: vec3<u32>) {
  let word = id.x;
  if (word >= ROW_WORDS) { return; }
  for (var row = id.y; row < slots[0]; row += workgroups.y) {
    let slot = slots[1u + row / H_KV];
    let block = slot / BLOCK;
    let at = (((block % BLOCKS_PER_SEGMENT) * BLOCK + slot % BLOCK) * H_KV + row % H_KV) * ROW_WORDS + word;
    store_kv(block / BLOCKS_PER_SEGMENT, at, load_row(row, word));
  }
}
