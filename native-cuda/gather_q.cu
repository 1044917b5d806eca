// Lays the query rows of each KV head side by side: [b, s_q, h_kv, group, 576] to [b, h_kv, s_q, group, 576].
//
// The decode kernel fetches tiles of consecutive rows that share a KV head; with several KV heads and several query
// tokens those are not consecutive in q.
//
// How work is cut. A warp takes a row, its lanes chunks of 16 bytes in turn.
//
// What lives where. All in registers, in transit. src/cuda/params.ts writes GatherParams: keep the two in step.
#include <stdint.h>

struct GatherParams {
  const uint4* from;
  uint4* to;
  int rows;   // b * s_q * h_q
  int s_q;
  int h_kv;
  int group;  // h_q / h_kv
};

constexpr int THREADS = 256;
constexpr int ROW_CHUNKS = 576 * 2 / 16;

extern "C" __global__ void __launch_bounds__(THREADS) gather_q(const __grid_constant__ GatherParams p) {
  const int row = blockIdx.x * (THREADS / 32) + threadIdx.x / 32, lane = threadIdx.x % 32;  // of the result
  if (row >= p.rows) return;
  const int in_group = row % p.group, token = row / p.group % p.s_q, head_kv = row / (p.group * p.s_q) % p.h_kv, seq = row / (p.group * p.s_q * p.h_kv);
  const uint4* from = p.from + (((size_t(seq) * p.s_q + token) * p.h_kv + head_kv) * p.group + in_group) * ROW_CHUNKS;
  uint4* to = p.to + size_t(row) * ROW_CHUNKS;
#pragma unroll
  for (int chunk = lane; chunk < ROW_CHUNKS; chunk += 32) to[chunk] = from[chunk];
}
