// Split-KV decode attention over a paged latent cache for up to 16 query rows a KV head, Hopper (sm_90a).
//
// Computes what decode.cu does, with S and O transposed: tokens and dims are the 64 rows of the matrix products, query rows
// their 16 columns. So 16 rows cost a quarter of what they would as part of 64, and little is kept in registers.
//
// How work is cut. Thread block (0, part, KV head). A step is 32 tokens. Two warpgroups work on the same step: each makes
// S^T = K Q^T over half of the 576 dims, they add them up through shared memory and both make P^T = softmax(S^T); then each
// makes O^T += V^T P^T for its 256 dims. Two more warps fetch (TMA): one the steps, one the Q of each sequence.
//
// What lives where. Registers: S^T, O^T, the running maximum and sum. Shared memory: a ring of steps (36 KB each), Q, P^T a
// warpgroup, the halves of S^T (twice, by step, so that neither warpgroup writes what the other has yet to read). Global:
// partial results of sequences that the schedule split, merged by combine.cu.
#include "params.cuh"
#include "ptx/barrier.cuh"
#include "ptx/tma.cuh"
#include "ptx/wgmma.cuh"
#include "softmax.cuh"
#include "walk.cuh"

namespace {

constexpr int ROWS = 16;
constexpr int STEP_TOKENS = 32;
constexpr int STAGES = 5;
constexpr int STEP_GROUP_BYTES = STEP_TOKENS * 128;
constexpr int STEP_BYTES = (LOW_GROUPS + HIGH_GROUPS) * STEP_GROUP_BYTES;
constexpr int Q_GROUP_BYTES = ROWS * 128;
constexpr int CONSUMERS = 256;
constexpr int THREADS = CONSUMERS + 64;
constexpr int WARPGROUP_DIMS = 256;
constexpr int BOTH = 3;            // named barrier of both warpgroups; 1 and 2 are each one's own
constexpr int COLUMNS = ROWS / 4;  // of S^T and O^T that a thread has

struct Shared {
  alignas(1024) uint8_t step[STAGES][STEP_BYTES];  // S^T of a step reads 64 tokens: 32 of what comes next, not used
  alignas(1024) uint8_t q[(LOW_GROUPS + HIGH_GROUPS) * Q_GROUP_BYTES];
  alignas(1024) uint8_t p[2][ROWS * 128];          // P^T of a warpgroup: a row of 32 tokens is half of 128 bytes
  float4 half[2][2][2][128];                       // S^T: [step % 2][warpgroup][half of the columns][thread]
  float most[2][2][ROWS];                          // [warpgroup][warp]: maxima, later sums, of rows
  float largest[2][4][ROWS];                       // [warpgroup][warp]: of |O|
  float highest[ROWS];
  uint64_t full[STAGES], empty[STAGES], q_full, q_empty;
};
static_assert(sizeof(Shared) <= 232448, "over the shared memory of a block");

// The tokens of a sequence that a part works on.
struct Tokens {
  int first, last;
  __device__ __forceinline__ explicit Tokens(const Walk& walk) : first(walk.block * BLOCK_TOKENS), last(min(walk.length, walk.end * BLOCK_TOKENS)) {}
};

__device__ __forceinline__ void fetch_steps(const DecodeParams& p, Shared& s) {
  const int4 part = Walk::read4(Walk::row(p.plan)), more = Walk::read4(Walk::row(p.plan) + 4);
  const int head_kv = Walk::head_kv();
  Walk walk(part, more.x);
  int id = more.y;
  int stage = 0;
  uint32_t parity = 1;  // of the phase that a place's last user ends; places start free
#pragma unroll 1
  do {
    const Tokens tokens(walk);
    const int* table = p.plan.table + size_t(walk.seq) * p.plan.table_stride;
    if (walk.seq != part.x && walk.length > 0) id = Walk::read(table);
#pragma unroll 1
    for (int token = tokens.first; token < tokens.last; token += STEP_TOKENS) {
      const int inside = token % BLOCK_TOKENS;
      const uint32_t bar = ptx::shared_address(&s.full[stage]), dst = ptx::shared_address(s.step[stage]);
      ptx::barrier_wait(ptx::shared_address(&s.empty[stage]), parity);
      ptx::barrier_arrive_expect(bar, STEP_BYTES);
      ptx::load_5d(dst, &p.kv_low, bar, ptx::EVICT_FIRST, 0, inside, 0, head_kv, id);
      ptx::load_5d(dst + LOW_GROUPS * STEP_GROUP_BYTES, &p.kv_high, bar, ptx::EVICT_FIRST, 0, inside, LOW_GROUPS, head_kv, id);
      if (++stage == STAGES) {
        stage = 0;
        parity ^= 1;
      }
      if (inside + STEP_TOKENS == BLOCK_TOKENS && token + STEP_TOKENS < tokens.last) id = Walk::read(table + (token + STEP_TOKENS) / BLOCK_TOKENS);
    }
  } while (walk.next(p.plan));
}

__device__ __forceinline__ void fetch_queries(const DecodeParams& p, Shared& s) {
  const int head_kv = Walk::head_kv();
  Walk walk(p.plan);
  uint32_t parity = 1;
#pragma unroll 1
  do {
    if (walk.length == 0) continue;
    const uint32_t bar = ptx::shared_address(&s.q_full);
    ptx::barrier_wait(ptx::shared_address(&s.q_empty), parity);
    ptx::barrier_arrive_expect(bar, sizeof(s.q));
    const int row = (walk.seq * p.plan.h_kv + head_kv) * p.plan.rows;
    ptx::load_3d(ptx::shared_address(s.q), &p.q_low, bar, ptx::EVICT_LAST, 0, row, 0);
    ptx::load_3d(ptx::shared_address(s.q) + LOW_GROUPS * Q_GROUP_BYTES, &p.q_high, bar, ptx::EVICT_LAST, 0, row, LOW_GROUPS);
    parity ^= 1;
  } while (walk.next(p.plan));
}

// Over the eight lanes of a warp that hold the same columns.
__device__ __forceinline__ float most_of_column(float x) {
#pragma unroll
  for (int i = 4; i < 32; i *= 2) x = fmaxf(x, __shfl_xor_sync(~0u, x, i));
  return x;
}
__device__ __forceinline__ float sum_of_column(float x) {
#pragma unroll
  for (int i = 4; i < 32; i *= 2) x += __shfl_xor_sync(~0u, x, i);
  return x;
}

// Accumulators: x[4 i + 2 r + j] is row 16 warp + lane / 4 + 8 r (a token of S^T, a dim of O^T) and column
// 8 i + 2 (lane % 4) + j (a query row). A thread has 4 columns; column c = 2 i + j of them is 8 (c / 2) + 2 quad + c % 2.
template <class T>
__device__ __forceinline__ void consume(const DecodeParams& p, Shared& s) {
  const Plan& plan = p.plan;
  const int warpgroup = threadIdx.x / 128, thread = threadIdx.x % 128, warp = thread / 32, lane = thread % 32, quad = lane % 4;
  const int own = 1 + warpgroup;  // named barrier
  const int head_kv = Walk::head_kv();
  const bool has_tokens = warp < STEP_TOKENS / 16;  // the other warps' rows of S^T are of no step
  auto column = [&](int c) { return c / 2 * 8 + quad * 2 + c % 2; };
  int unseen[COLUMNS];  // how many of the last tokens a row does not see
#pragma unroll
  for (int c = 0; c < COLUMNS; c++) unseen[c] = plan.causal && plan.s_q > 1 ? plan.s_q - 1 - min(column(c) / plan.group, plan.s_q - 1) : 0;

  float o[4][2 * COLUMNS];
  int stage = 0;
  uint32_t parity = 0, q_parity = 0, turn = 0;
  Walk walk(plan);
#pragma unroll 1
  do {
    if (walk.length == 0) {
      for (int i = threadIdx.x; i < plan.rows * (D_V / 8); i += CONSUMERS) {
        uint16_t* to = static_cast<uint16_t*>(p.out) + (size_t(walk.seq) * plan.h_kv * plan.rows + query_row(plan, i / (D_V / 8), head_kv)) * D_V;
        *reinterpret_cast<uint4*>(to + i % (D_V / 8) * 8) = make_uint4(0, 0, 0, 0);
      }
      if (threadIdx.x < plan.rows) p.lse[lse_index(plan, walk.seq, threadIdx.x, head_kv)] = INFINITY;
      continue;
    }
    const Tokens tokens(walk);
    const int partial = walk.partial(plan);
    float highest[COLUMNS], sum[COLUMNS];
#pragma unroll
    for (int c = 0; c < COLUMNS; c++) {
      highest[c] = -INFINITY;
      sum[c] = 0;
    }
    ptx::barrier_wait(ptx::shared_address(&s.q_full), q_parity);
    q_parity ^= 1;

#pragma unroll 1
    for (int token0 = tokens.first; token0 < tokens.last; token0 += STEP_TOKENS) {
      const uint32_t tile = ptx::shared_address(s.step[stage]);
      float x[2 * COLUMNS];
      ptx::barrier_wait(ptx::shared_address(&s.full[stage]), parity);
      {
        // Groups 0-3 or 5-8, and half of group 4.
        const uint32_t q_tile = ptx::shared_address(s.q);
        const uint64_t k_desc = ptx::matrix_descriptor(tile + warpgroup * 5 * STEP_GROUP_BYTES, 16, 1024);
        const uint64_t q_desc = ptx::matrix_descriptor(q_tile + warpgroup * 5 * Q_GROUP_BYTES, 16, 1024);
        const uint64_t k_middle = ptx::matrix_descriptor(tile + 4 * STEP_GROUP_BYTES + warpgroup * 64, 16, 1024);
        const uint64_t q_middle = ptx::matrix_descriptor(q_tile + 4 * Q_GROUP_BYTES + warpgroup * 64, 16, 1024);
        ptx::wgmma_fence();
#pragma unroll
        for (int i = 0; i < 16; i++) ptx::wgmma_64x16(T{}, x, k_desc + (i / 4 * STEP_GROUP_BYTES + i % 4 * 32) / 16, q_desc + (i / 4 * Q_GROUP_BYTES + i % 4 * 32) / 16, i > 0);
#pragma unroll
        for (int i = 0; i < 2; i++) ptx::wgmma_64x16(T{}, x, k_middle + i * 32 / 16, q_middle + i * 32 / 16, 1);
        ptx::wgmma_commit();
        ptx::wgmma_wait<0>();
      }
      if (token0 + STEP_TOKENS >= tokens.last && lane == 0) ptx::barrier_arrive(ptx::shared_address(&s.q_empty));
      // The warpgroups' halves of S^T, added up.
#pragma unroll
      for (int i = 0; i < ROWS / 8; i++) s.half[turn][warpgroup][i][thread] = make_float4(x[i * 4], x[i * 4 + 1], x[i * 4 + 2], x[i * 4 + 3]);
      ptx::named_barrier<BOTH, CONSUMERS>();
#pragma unroll
      for (int i = 0; i < ROWS / 8; i++) {
        const float4 other = s.half[turn][1 - warpgroup][i][thread];
        x[i * 4] += other.x;
        x[i * 4 + 1] += other.y;
        x[i * 4 + 2] += other.z;
        x[i * 4 + 3] += other.w;
      }
      turn ^= 1;

      const float scale = fabsf(plan.scale_log2);
      if (__builtin_expect(plan.scale_log2 < 0, 0)) {
#pragma unroll
        for (int i = 0; i < 2 * COLUMNS; i++) x[i] = -x[i];
      }
      const int valid = walk.length - token0;                             // tokens from here on
      const int common = valid - (plan.causal ? plan.s_q - 1 : 0);  // that every row sees
      if (common < STEP_TOKENS || !has_tokens) {
        const int token = has_tokens ? warp * 16 + lane / 4 : 1 << 30;
#pragma unroll
        for (int c = 0; c < COLUMNS; c++) {
#pragma unroll
          for (int r = 0; r < 2; r++) {
            if (token + 8 * r >= valid - unseen[c]) x[c / 2 * 4 + r * 2 + c % 2] = -INFINITY;
          }
        }
      }
      float most[COLUMNS];
      bool exceeds = false;
#pragma unroll
      for (int c = 0; c < COLUMNS; c++) {
        most[c] = fmaxf(x[c / 2 * 4 + c % 2], x[c / 2 * 4 + 2 + c % 2]) * scale;
        exceeds |= most[c] > highest[c] + LAZY_LOG2;
      }
      const bool first = token0 == tokens.first;
      if (ptx::named_barrier_or<128>(own, exceeds)) {
#pragma unroll
        for (int c = 0; c < COLUMNS; c++) {
          most[c] = most_of_column(most[c]);
          if (lane < 4 && has_tokens) s.most[warpgroup][warp][column(c)] = most[c];
        }
        ptx::named_barrier_at<128>(own);
#pragma unroll
        for (int c = 0; c < COLUMNS; c++) {
          int drop;
          highest[c] = move_maximum(highest[c], fmaxf(s.most[warpgroup][0][column(c)], s.most[warpgroup][1][column(c)]), drop);
          const float factor = power_of_two(drop);
          sum[c] *= factor;
          if (!first) {
#pragma unroll
            for (int g = 0; g < 4; g++) {
              o[g][c / 2 * 4 + c % 2] *= factor;
              o[g][c / 2 * 4 + 2 + c % 2] *= factor;
            }
          }
        }
      }
      const uint32_t p_tile = ptx::shared_address(s.p[warpgroup]);
#pragma unroll
      for (int c = 0; c < COLUMNS; c++) {
        const float base = highest[c] == -INFINITY ? 0.0f : highest[c];
#pragma unroll
        for (int r = 0; r < 2; r++) {
          float& value = x[c / 2 * 4 + r * 2 + c % 2];
          value = ptx::exp2_fast(fmaf(value, scale, -base));
          sum[c] += value;
        }
      }
      if (has_tokens) {
        const int row = lane / 16 * 8 + lane % 8, chunk = warp * 2 + lane / 8 % 2;
        ptx::store_matrix_x4_transposed(p_tile + row * 128 + ((chunk ^ (row % 8)) * 16), ptx::pack(T{}, x[0], x[1]), ptx::pack(T{}, x[2], x[3]), ptx::pack(T{}, x[4], x[5]),
                                        ptx::pack(T{}, x[6], x[7]));
      }
      // Slots past the end may hold NaN, and 0 * NaN is NaN: V becomes zero there. So do what is not finite in keys that
      // only some rows see; it reaches those rows through their scores.
      if (__builtin_expect(common < STEP_TOKENS, 0)) {
        const int from = max(common, 0);
#pragma unroll 1
        for (int i = thread; i < (STEP_TOKENS - from) * 4 * 8; i += 128) {
          const int token = from + i / 32, group = warpgroup * 4 + i / 8 % 4, chunk = (i % 8) ^ (token % 8);
          uint4* v = reinterpret_cast<uint4*>(s.step[stage] + group * STEP_GROUP_BYTES + token * 128 + chunk * 16);
          *v = token < valid ? ptx::finite_or_zero(T{}, *v) : make_uint4(0, 0, 0, 0);
        }
      }
      ptx::fence_proxy_async();
      ptx::named_barrier_at<128>(own);
      {
        const uint64_t v_desc = ptx::matrix_descriptor(tile + warpgroup * 4 * STEP_GROUP_BYTES, STEP_GROUP_BYTES, 1024), p_desc = ptx::matrix_descriptor(p_tile, 16, 1024);
        ptx::wgmma_fence();
#pragma unroll
        for (int k = 0; k < STEP_TOKENS / 16; k++) {
#pragma unroll
          for (int g = 0; g < 4; g++) ptx::wgmma_64x16_transposed(T{}, o[g], v_desc + (g * STEP_GROUP_BYTES + k * 2048) / 16, p_desc + k * 32 / 16, !first || k > 0);
        }
        ptx::wgmma_commit();
        ptx::wgmma_wait<0>();
      }
      if (lane == 0) ptx::barrier_arrive(ptx::shared_address(&s.empty[stage]));
      if (++stage == STAGES) {
        stage = 0;
        parity ^= 1;
      }
    }

    // The end of a sequence: O and LSE to where they belong.
    const bool whole = partial < 0;
    const size_t at = whole ? 0 : (size_t(partial) * plan.h_kv + head_kv) * plan.rows;
#pragma unroll
    for (int c = 0; c < COLUMNS; c++) {
      const float warp_sum = sum_of_column(sum[c]);
      if (has_tokens && lane < 4) s.most[warpgroup][warp][column(c)] = warp_sum;
      if (threadIdx.x < 4) s.highest[column(c)] = highest[c];
      if (!whole) {
        float largest = 0;
#pragma unroll
        for (int g = 0; g < 4; g++) largest = fmaxf(largest, fmaxf(fabsf(o[g][c / 2 * 4 + c % 2]), fabsf(o[g][c / 2 * 4 + 2 + c % 2])));
        largest = most_of_column(largest);
        if (lane < 4) s.largest[warpgroup][warp][column(c)] = largest;
      }
    }
    ptx::named_barrier_at<128>(own);
    float factor[COLUMNS];
#pragma unroll
    for (int c = 0; c < COLUMNS; c++) {
      const int row = column(c);
      const float total = s.most[warpgroup][0][row] + s.most[warpgroup][1][row];
      factor[c] = total == 0 ? 0.0f : __fdividef(1.0f, total);
      if (!whole) {
        const float* largest = s.largest[warpgroup][0] + row;
        const float scale = scale_of(fmaxf(fmaxf(largest[0], largest[ROWS]), fmaxf(largest[2 * ROWS], largest[3 * ROWS])) * factor[c]);
        factor[c] *= inverse_scale(scale);
        if (thread < 4 && row < plan.rows) (&p.partial_info[at + row].y)[warpgroup] = scale;
      }
    }
    if (threadIdx.x < plan.rows) {
      const int row = threadIdx.x;
      const float total = s.most[0][0][row] + s.most[0][1][row], lse = s.highest[row] + __log2f(total);
      if (whole) p.lse[lse_index(plan, walk.seq, row, head_kv)] = total == 0 ? INFINITY : lse * LN_2;
      else p.partial_info[at + row].x = total == 0 ? -INFINITY : lse;
    }
#pragma unroll
    for (int i = 0; i < ROWS / 8; i++) {
      const int row = i * 8 + lane / 4;  // after the transposition
      uint16_t* to = whole ? static_cast<uint16_t*>(p.out) + (size_t(walk.seq) * plan.h_kv * plan.rows + query_row(plan, row, head_kv)) * D_V : p.partial_out + (at + row) * D_V;
      to += warpgroup * WARPGROUP_DIMS + warp * 16 + quad * 2;
#pragma unroll
      for (int g = 0; g < 4; g++) {
#pragma unroll
        for (int r = 0; r < 2; r++) {
          const float low = o[g][i * 4 + r * 2] * factor[i * 2], high = o[g][i * 4 + r * 2 + 1] * factor[i * 2 + 1];
          const uint32_t pair = ptx::transpose_matrix(whole ? ptx::pack(T{}, low, high) : ptx::pack(ptx::F16{}, low, high));
          if (row < plan.rows) *reinterpret_cast<uint32_t*>(to + g * GROUP_DIMS + r * 8) = pair;
        }
      }
    }
  } while (walk.next(plan));
}

template <class T>
__device__ __forceinline__ void decode_few(const DecodeParams& p) {
  extern __shared__ uint8_t dynamic[];
  Shared& s = *reinterpret_cast<Shared*>(dynamic);
  if (threadIdx.x == CONSUMERS) {
    for (int i = 0; i < STAGES; i++) {
      ptx::barrier_init(ptx::shared_address(&s.full[i]), 1);
      ptx::barrier_init(ptx::shared_address(&s.empty[i]), CONSUMERS / 32);
    }
    ptx::barrier_init(ptx::shared_address(&s.q_full), 1);
    ptx::barrier_init(ptx::shared_address(&s.q_empty), CONSUMERS / 32);
    ptx::fence_barrier_init();
  }
  ptx::dependents_launch();
  __syncthreads();
  if (threadIdx.x < CONSUMERS) consume<T>(p, s);
  else if (threadIdx.x == CONSUMERS) fetch_steps(p, s);
  else if (threadIdx.x == CONSUMERS + 32) fetch_queries(p, s);
}

}  // namespace

#define DECODE_FEW(NAME, TYPE) \
  extern "C" __global__ void __launch_bounds__(THREADS, 1) NAME(const __grid_constant__ DecodeParams p) { decode_few<ptx::TYPE>(p); }

DECODE_FEW(decode_bf16_few, Bf16)
DECODE_FEW(decode_f16_few, F16)
