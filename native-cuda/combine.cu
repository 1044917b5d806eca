// Merges the partial results of sequences that the schedule split.
//
// Computes out = sum_s w_s O_s and lse = log sum_s exp(lse_s) with w_s = exp2(lse_s - lse), over the splits s of a
// sequence; O_s are normalised, lse_s are base 2.
//
// How work is cut. Two kernels, for where the parallelism is:
//   few    splits: a warp takes a row whole, a lane 16 columns; thread blocks are (rows / 4, split sequence).
//   many   splits: thread block (x, y, z) = (row of s_q * h_q, split sequence, slice of 128 columns); its warps take the
//          splits in turn, a lane 4 columns, with several loads in flight; then the warps' sums are added.
//
// What lives where: in `few` all in registers; in `many` the splits' weights in shared memory, WEIGHTS at a time, and the
// warps' sums once.
#include "params.cuh"
#include "ptx/barrier.cuh"
#include "ptx/wgmma.cuh"

namespace {

constexpr int WARPS = 8;
constexpr int THREADS = WARPS * 32;
constexpr int COLUMNS = 128;
constexpr int WEIGHTS = THREADS;
constexpr int UNROLL = 4;

template <class T>
__device__ void combine(const CombineParams& p) {
  __shared__ float weights[WEIGHTS];
  __shared__ float reduced[WARPS];
  __shared__ float4 sums[WARPS][COLUMNS / 4];
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
  ptx::dependency_wait();

  const Plan& plan = p.plan;
  const int seq = plan.split[blockIdx.y];
  const int first_part = plan.sequences[seq * 4 + 1], splits = plan.sequences[seq * 4 + 2];
  const int rows = plan.rows * plan.h_kv;  // of all KV heads
  // A part leaves one partial result for its first sequence and one for its last; only the first split can be a last.
  const int first_partial = 2 * first_part + (plan.parts[first_part * PART_STRIDE] == seq ? 0 : 1);
  auto partial = [&](int split) { return size_t(split == 0 ? first_partial : 2 * (first_part + split)) * rows + blockIdx.x; };

  float highest = -INFINITY;
  bool is_nan = false;
  for (int s = threadIdx.x; s < splits; s += THREADS) {
    const float l = p.partial_lse[partial(s)];
    is_nan |= l != l;
    highest = fmaxf(highest, l);
  }
#pragma unroll
  for (int i = 16; i > 0; i /= 2) highest = fmaxf(highest, __shfl_xor_sync(~0u, highest, i));
  if (lane == 0) reduced[warp] = highest;
  is_nan = __syncthreads_or(is_nan);
#pragma unroll
  for (int i = 0; i < WARPS; i++) highest = fmaxf(highest, reduced[i]);
  const bool empty = highest == -INFINITY && !is_nan;

  float4 acc = {0, 0, 0, 0};
  float sum = 0;
  for (int s0 = 0; s0 < splits; s0 += WEIGHTS) {
    const int count = min(WEIGHTS, splits - s0);
    __syncthreads();
    if (threadIdx.x < count) weights[threadIdx.x] = empty ? 0.0f : exp2f(p.partial_lse[partial(s0 + threadIdx.x)] - highest);
    __syncthreads();
    for (int s = warp; s < count; s += WARPS * UNROLL) {
      float4 x[UNROLL];
#pragma unroll
      for (int i = 0; i < UNROLL; i++) {
        const int split = s + i * WARPS;
        if (split < count) x[i] = *reinterpret_cast<const float4*>(p.partial_out + partial(s0 + split) * D_V + blockIdx.z * COLUMNS + lane * 4);
      }
#pragma unroll
      for (int i = 0; i < UNROLL; i++) {
        const int split = s + i * WARPS;
        if (split < count) {
          const float w = weights[split];
          sum += w;
          acc.x += w * x[i].x;
          acc.y += w * x[i].y;
          acc.z += w * x[i].z;
          acc.w += w * x[i].w;
        }
      }
    }
  }
  sums[warp][lane] = acc;
  __syncthreads();
  if (lane == 0) reduced[warp] = sum;
  __syncthreads();
  if (warp > 0) return;

  float total = 0;
  acc = {0, 0, 0, 0};
#pragma unroll
  for (int i = 0; i < WARPS; i++) {
    total += reduced[i];
    const float4 x = sums[i][lane];
    acc.x += x.x;
    acc.y += x.y;
    acc.z += x.z;
    acc.w += x.w;
  }
  const float inverse = empty ? 0.0f : 1.0f / total;
  const int head_kv = blockIdx.x / plan.rows, row = blockIdx.x % plan.rows;
  uint16_t* to = static_cast<uint16_t*>(p.out) + (size_t(seq) * rows + query_row(plan, row, head_kv)) * D_V + blockIdx.z * COLUMNS + lane * 4;
  *reinterpret_cast<uint2*>(to) = make_uint2(ptx::pack(T{}, acc.x * inverse, acc.y * inverse), ptx::pack(T{}, acc.z * inverse, acc.w * inverse));
  if (lane == 0 && blockIdx.z == 0) {
    p.lse[lse_index(plan, seq, row, head_kv)] = empty ? INFINITY : (highest + log2f(total)) * 0.6931471805599453f;
  }
}

constexpr int FEW_ROWS = 4;   // warps of a block
constexpr int FEW_SPLITS = 8; // most that the kernel takes

template <class T>
__device__ void combine_few(const CombineParams& p) {
  const int lane = threadIdx.x % 32;
  const Plan& plan = p.plan;
  const int rows = plan.rows * plan.h_kv;
  const int at = blockIdx.x * FEW_ROWS + threadIdx.x / 32;
  ptx::dependency_wait();
  if (at >= rows) return;
  const int seq = plan.split[blockIdx.y];
  const int first_part = plan.sequences[seq * 4 + 1], splits = plan.sequences[seq * 4 + 2];
  const int first_partial = 2 * first_part + (plan.parts[first_part * PART_STRIDE] == seq ? 0 : 1);
  auto partial = [&](int split) { return size_t(split == 0 ? first_partial : 2 * (first_part + split)) * rows + at; };

  const float mine = lane < splits ? p.partial_lse[partial(lane)] : -INFINITY;
  float highest = mine;
#pragma unroll
  for (int i = 1; i < FEW_SPLITS; i *= 2) highest = fmaxf(highest, __shfl_xor_sync(~0u, highest, i));
  highest = __shfl_sync(~0u, highest, 0);
  const bool empty = highest == -INFINITY && !__any_sync(~0u, mine != mine);
  const float weight = lane < splits && !empty ? exp2f(mine - highest) : 0.0f;
  float total = weight;
#pragma unroll
  for (int i = 1; i < FEW_SPLITS; i *= 2) total += __shfl_xor_sync(~0u, total, i);
  total = __shfl_sync(~0u, total, 0);

  float4 acc[4] = {};
#pragma unroll 2
  for (int s = 0; s < splits; s++) {
    const float w = __shfl_sync(~0u, weight, s);
    const float* from = p.partial_out + partial(s) * D_V + lane * 4;
#pragma unroll
    for (int i = 0; i < 4; i++) {
      const float4 x = *reinterpret_cast<const float4*>(from + i * 128);
      acc[i].x += w * x.x;
      acc[i].y += w * x.y;
      acc[i].z += w * x.z;
      acc[i].w += w * x.w;
    }
  }
  const float inverse = empty ? 0.0f : 1.0f / total;
  const int head_kv = at / plan.rows, row = at % plan.rows;
  uint16_t* to = static_cast<uint16_t*>(p.out) + (size_t(seq) * rows + query_row(plan, row, head_kv)) * D_V + lane * 4;
#pragma unroll
  for (int i = 0; i < 4; i++) {
    *reinterpret_cast<uint2*>(to + i * 128) = make_uint2(ptx::pack(T{}, acc[i].x * inverse, acc[i].y * inverse), ptx::pack(T{}, acc[i].z * inverse, acc[i].w * inverse));
  }
  if (lane == 0) p.lse[lse_index(plan, seq, row, head_kv)] = empty ? INFINITY : (highest + log2f(total)) * 0.6931471805599453f;
}

}  // namespace

#define COMBINE(NAME, TYPE) \
  extern "C" __global__ void __launch_bounds__(THREADS) NAME(const __grid_constant__ CombineParams p) { combine<ptx::TYPE>(p); }

#define COMBINE_FEW(NAME, TYPE) \
  extern "C" __global__ void __launch_bounds__(FEW_ROWS * 32) NAME(const __grid_constant__ CombineParams p) { combine_few<ptx::TYPE>(p); }

COMBINE(combine_bf16, Bf16)
COMBINE(combine_f16, F16)
COMBINE_FEW(combine_few_bf16, Bf16)
COMBINE_FEW(combine_few_f16, F16)
