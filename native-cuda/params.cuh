// What a launch passes to the kernels, by value. src/cuda/params.ts writes these bytes: keep the two in step.
#pragma once
#include <cuda.h>
#include <stdint.h>

constexpr int BLOCK_TOKENS = 64;                      // tokens a KV block
constexpr int D_QK = 576;
constexpr int D_V = 512;
constexpr int TILE_ROWS = 64;                         // query rows a thread block
constexpr int PART_STRIDE = 8;                        // i32 a part in the schedule
constexpr int GROUP_DIMS = 64;                        // dims of a swizzled 128-byte column group
constexpr int GROUP_BYTES = BLOCK_TOKENS * 128;
constexpr int LOW_GROUPS = 5;                         // dims 0 .. 319
constexpr int HIGH_GROUPS = 4;                        // dims 320 .. 575, the last group being RoPE
constexpr int ROPE_GROUP = 8;
constexpr int TILE_BYTES = (LOW_GROUPS + HIGH_GROUPS) * GROUP_BYTES;
constexpr float LN_2 = 0.6931471805599453f;           // LSE leaves in base e

// The batch, as src/plan.ts lays it out:
//   a row a part       {first sequence, its first block, last sequence, end in it; length of the first sequence, id of its
//                      first block here, index of the partial result to leave of the first and of the last, or -1}
//   a row a sequence   {length, its number in the batch, splits, index of its first partial result}
//   the block table
// and, from src/cuda/plans.ts, what thread blocks of combine.cu take {sequence, first row << 3 | 7 or first half row << 3 |
// log2 of the warps that share one, index of the sequence's first partial result, its splits}.
struct Plan {
  const int* parts;       // [parts, 8]
  const int* sequences;   // [b, 4]
  const int* merges;      // [blocks of the merge, 4]
  const int* table;       // [b, table_stride]
  int table_stride;
  int rows;               // s_q * h_q / h_kv: query rows of a KV head
  int group;              // h_q / h_kv
  int h_kv;
  int s_q;
  int causal;
  float scale_log2;       // softmax_scale * log2(e)
};

struct DecodeParams {
  // Boxes of LOW_GROUPS and HIGH_GROUPS, and of as many tokens and rows as the kernel takes at a time: 64 (decode.cu), or
  // 32 tokens and 16 rows (decode_few.cu).
  CUtensorMap kv_low, kv_high;  // {64 dims, 64 tokens, 9 groups, h_kv, num_blocks}
  CUtensorMap q_low, q_high;    // {64 dims, b * h_kv * rows, 9 groups}
  Plan plan;
  void* out;                    // [b, s_q, h_q, d_v] 16-bit
  float* lse;                   // [b, h_q, s_q]
  uint16_t* partial_out;        // [2 * parts, h_kv * rows, d_v] f16, normalised, over a scale a row and half
  float4* partial_info;         // [2 * parts, h_kv * rows] {LSE of base 2, scale of the left 256 columns, of the right, -}
};

struct CombineParams {
  Plan plan;
  void* out;
  float* lse;
  const uint16_t* partial_out;
  const float4* partial_info;
};

// Which of the s_q * h_q rows of a sequence, in the order of q and out, a row of a KV head's is.
__device__ __forceinline__ int query_row(const Plan& plan, int row, int head_kv) {
  if (plan.s_q == 1 || plan.h_kv == 1) return head_kv * plan.rows + row;
  return (row / plan.group) * plan.group * plan.h_kv + head_kv * plan.group + row % plan.group;
}

// Where the LSE of a row goes in [b, h_q, s_q].
__device__ __forceinline__ int lse_index(const Plan& plan, int seq, int row, int head_kv) {
  if (plan.s_q == 1) return (seq * plan.h_kv + head_kv) * plan.rows + row;
  return (seq * plan.h_kv + head_kv) * plan.rows + (row % plan.group) * plan.s_q + row / plan.group;
}
