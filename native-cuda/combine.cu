// Merges the partial results of sequences that the schedule split.
//
// Computes out = sum_s w_s O_s and lse = log2 sum_s exp2(lse_s) with w_s = exp2(lse_s - lse), over the splits s of a
// sequence (LSE is stored times ln 2); O_s are normalised and stored as f16 over a power of two a row and half, lse_s are base 2.
//
// How work is cut. Rows are the s_q * h_q rows of a sequence. A thread block takes one item of the plan's list
// (src/cuda/config.ts), which says how:
//   few    splits: a warp takes 4 rows whole; a lane makes the weight of one of 8 splits of one row.
//   many   splits: a warp takes half a row, or several share one and take its splits in turn, several loads in flight; then
//          the warps' sums are added.
//
// What lives where. Registers, and for `many` in shared memory the splits' weights, a copy a warp, and the sums of warps
// that share.
#include "params.cuh"
#include "ptx/barrier.cuh"
#include "ptx/wgmma.cuh"

namespace {

constexpr int WARPS = 8;
constexpr int THREADS = WARPS * 32;
constexpr int FEW = 7;           // in place of the sharing, in an item
constexpr int FEW_ROWS = 4;      // a warp, which has lanes for 32 / FEW_ROWS splits of each
constexpr int MOST_SPLITS = 512;
constexpr int FLIGHT = 8;        // loads

struct Sequence {
  int seq, splits, first_partial;
  int rows;  // of all KV heads

  // Where split `split` has row `row`.
  __device__ __forceinline__ size_t at(int split, int row) const { return size_t(split == 0 ? first_partial : (first_partial & ~1) + 2 * split) * rows + row; }
};

// Of a row of all KV heads: its place in out, and its LSE's.
__device__ __forceinline__ size_t out_row(const Plan& plan, int seq, int row) {
  if (plan.s_q == 1 || plan.h_kv == 1) return size_t(seq) * plan.h_kv * plan.rows + row;
  return size_t(seq) * plan.h_kv * plan.rows + query_row(plan, row % plan.rows, row / plan.rows);
}
__device__ __forceinline__ void store_lse(const CombineParams& p, int seq, int row, float base, float total) {
  const int at = p.plan.s_q == 1 ? seq * p.plan.h_kv * p.plan.rows + row : lse_index(p.plan, seq, row % p.plan.rows, row / p.plan.rows);
  p.lse[at] = total == 0 ? INFINITY : (base + __log2f(total)) * LN_2;
}

__device__ __forceinline__ void add(float (&acc)[8], uint4 x, float weight) {
  const uint32_t words[4] = {x.x, x.y, x.z, x.w};
#pragma unroll
  for (int i = 0; i < 4; i++) {
    const float2 pair = ptx::unpack_f16(words[i]);
    acc[i * 2] += weight * pair.x;
    acc[i * 2 + 1] += weight * pair.y;
  }
}
template <class T>
__device__ __forceinline__ uint4 pack(const float (&x)[8]) {
  return make_uint4(ptx::pack(T{}, x[0], x[1]), ptx::pack(T{}, x[2], x[3]), ptx::pack(T{}, x[4], x[5]), ptx::pack(T{}, x[6], x[7]));
}
// 1 / l, 0 for an empty row.
__device__ __forceinline__ float inverse_or_zero(float l) { return l == 0 ? 0.0f : __fdividef(1.0f, l); }

template <class T>
__device__ __forceinline__ void few(const CombineParams& p, const Sequence& sequence, int first_row) {
  const int lane = threadIdx.x % 32;
  const int row0 = first_row + threadIdx.x / 32 * FEW_ROWS;
  const int splits = sequence.splits;
  const int my_row = row0 + lane % FEW_ROWS, my_split = lane / FEW_ROWS;
  float4 info = {-INFINITY, 0, 0, 0};
  if (my_split < splits && my_row < sequence.rows) info = p.partial_info[sequence.at(my_split, my_row)];
  float base = info.x;
#pragma unroll
  for (int i = FEW_ROWS; i < 32; i *= 2) base = fmaxf(base, __shfl_xor_sync(~0u, base, i));
  if (base == -INFINITY) base = 0;
  const float weight = ptx::exp2_fast(info.x - base);
  float total = weight;
#pragma unroll
  for (int i = FEW_ROWS; i < 32; i *= 2) total += __shfl_xor_sync(~0u, total, i);
  const float share = weight * inverse_or_zero(total);
  const float left = share * info.y, right = share * info.z;
  if (my_split == 0 && my_row < sequence.rows) store_lse(p, sequence.seq, my_row, base, total);

  const uint4* const first = reinterpret_cast<const uint4*>(p.partial_out + sequence.at(0, row0) * D_V) + lane;
  const uint4* const second = reinterpret_cast<const uint4*>(p.partial_out + sequence.at(1, row0) * D_V) + lane;
  const size_t step = size_t(2) * sequence.rows * (D_V / 8);
#pragma unroll
  for (int i = 0; i < FEW_ROWS; i++) {
    if (row0 + i >= sequence.rows) break;
    float acc[2][8] = {};
#pragma unroll 2
    for (int s = 0; s < splits; s++) {
      const uint4* from = (s == 0 ? first : second + (s - 1) * step) + i * (D_V / 8);
      const uint4 x = from[0], y = from[32];
      add(acc[0], x, __shfl_sync(~0u, left, s * FEW_ROWS + i));
      add(acc[1], y, __shfl_sync(~0u, right, s * FEW_ROWS + i));
    }
    uint4* to = reinterpret_cast<uint4*>(static_cast<uint16_t*>(p.out) + out_row(p.plan, sequence.seq, row0 + i) * D_V) + lane;
    to[0] = pack<T>(acc[0]);
    to[32] = pack<T>(acc[1]);
  }
}

template <class T>
__device__ __forceinline__ void many(const CombineParams& p, const Sequence& sequence, int first_unit, int sharing) {
  __shared__ float weights[WARPS][MOST_SPLITS];
  __shared__ float sums[WARPS][8][32];
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
  const int splits = sequence.splits;
  const int unit = first_unit + warp / sharing, share = warp % sharing;
  const int row = unit / 2, right = unit % 2;
  const bool present = row < sequence.rows;

  float acc[8] = {};
  float base = -INFINITY, total = 0;
  if (present) {
    const uint16_t* from = p.partial_out + right * (D_V / 2) + lane * 8;
    uint4 x[FLIGHT];
    auto fetch = [&](int first) {
#pragma unroll
      for (int k = 0; k < FLIGHT; k++) {
        const int split = first + k * sharing;
        if (split < splits) x[k] = *reinterpret_cast<const uint4*>(from + sequence.at(split, row) * D_V);
      }
    };
    fetch(share);  // under way while the weights are made
#pragma unroll 1
    for (int s = lane; s < splits; s += 32) {
      const float lse = p.partial_info[sequence.at(s, row)].x;
      weights[warp][s] = lse;
      base = fmaxf(base, lse);
    }
#pragma unroll
    for (int i = 16; i > 0; i /= 2) base = fmaxf(base, __shfl_xor_sync(~0u, base, i));
    if (base == -INFINITY) base = 0;
#pragma unroll 1
    for (int s = lane; s < splits; s += 32) {
      const float4 info = p.partial_info[sequence.at(s, row)];
      const float weight = ptx::exp2_fast(weights[warp][s] - base);
      total += weight;
      weights[warp][s] = weight * (right ? info.z : info.y);
    }
#pragma unroll
    for (int i = 16; i > 0; i /= 2) total += __shfl_xor_sync(~0u, total, i);
    __syncwarp();
#pragma unroll 1
    for (int first = share; first < splits; first += sharing * FLIGHT) {
      if (first > share) fetch(first);
#pragma unroll
      for (int k = 0; k < FLIGHT; k++) {
        const int split = first + k * sharing;
        if (split >= splits) break;
        add(acc, x[k], weights[warp][split]);
      }
    }
  }
  if (sharing > 1) {
#pragma unroll
    for (int i = 0; i < 8; i++) sums[warp][i][lane] = acc[i];
    __syncthreads();
    if (share > 0) return;
#pragma unroll 1
    for (int w = warp + 1; w < warp + sharing; w++) {
#pragma unroll
      for (int i = 0; i < 8; i++) acc[i] += sums[w][i][lane];
    }
  }
  if (!present) return;
  const float inverse = inverse_or_zero(total);
#pragma unroll
  for (int i = 0; i < 8; i++) acc[i] *= inverse;
  uint16_t* to = static_cast<uint16_t*>(p.out) + out_row(p.plan, sequence.seq, row) * D_V + right * (D_V / 2) + lane * 8;
  *reinterpret_cast<uint4*>(to) = pack<T>(acc);
  if (lane == 0 && right == 0) store_lse(p, sequence.seq, row, base, total);
}

template <class T>
__device__ __forceinline__ void combine(const CombineParams& p) {
  const int4 item = reinterpret_cast<const int4*>(p.plan.merges)[blockIdx.x];
  const Sequence sequence = {item.x, item.w, item.z, p.plan.rows * p.plan.h_kv};
  const int kind = item.y & 7, first = item.y >> 3;
  ptx::dependency_wait();
  if (kind == FEW) few<T>(p, sequence, first);
  else many<T>(p, sequence, first, 1 << kind);
}

}  // namespace

#define COMBINE(NAME, TYPE) \
  extern "C" __global__ void __launch_bounds__(THREADS) NAME(const __grid_constant__ CombineParams p) { combine<ptx::TYPE>(p); }

COMBINE(combine_bf16, Bf16)
COMBINE(combine_f16, F16)
