// Writes new tokens into their pages: cache[slot] = latent | rope.
//
// How work is cut. A row is a (token, KV head) pair; a warp takes one, its lanes chunks of 16 bytes in turn. Rows move as
// bits, so that one kernel serves both element types and every width that is a whole number of chunks.
//
// What lives where. All in registers, in transit. src/cuda/params.ts writes AppendParams: keep the two in step.
#include <stdint.h>

struct AppendParams {
  uint4* cache;         // [slots of the pool, h_kv, row_chunks]
  const uint4* latent;  // [tokens, h_kv, latent_chunks]
  const uint4* rope;    // [tokens, h_kv, row_chunks - latent_chunks]; null when latent holds whole rows
  const int* slots;     // [tokens]: block id * tokens a block + offset
  int rows;             // tokens * h_kv
  int h_kv;
  int latent_chunks;
  int row_chunks;
};

constexpr int THREADS = 256;

extern "C" __global__ void __launch_bounds__(THREADS) append(const __grid_constant__ AppendParams p) {
  const int row = blockIdx.x * (THREADS / 32) + threadIdx.x / 32, lane = threadIdx.x % 32;
  if (row >= p.rows) return;
  const int token = row / p.h_kv, head = row % p.h_kv;
  uint4* to = p.cache + (size_t(p.slots[token]) * p.h_kv + head) * p.row_chunks;
  const uint4* latent = p.latent + size_t(row) * p.latent_chunks;
  const uint4* rope = p.rope + size_t(row) * (p.row_chunks - p.latent_chunks) - p.latent_chunks;
  for (int chunk = lane; chunk < p.row_chunks; chunk += 32) to[chunk] = chunk < p.latent_chunks ? latent[chunk] : rope[chunk];
}
