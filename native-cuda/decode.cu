// Split-KV decode attention over a paged latent cache, Hopper (sm_90a).
//
// Computes softmax(scale Q K^T) V for a tile of 64 query rows over one part of the schedule. K and V are the same cached
// rows of 576 numbers; V is their first 512. A row is a (query token, head) pair that shares the KV head.
//
// How work is cut. Thread block (x, y, z): x = row tile, y = part, z = KV head. With more than 64 rows two row tiles form a
// cluster and every KV block is fetched once for both (multicast), half of it by each. A block has two roles:
//   scores    warps 0-3:  S = Q K^T, softmax, P
//   output    warps 4-7 and 8-11: O += P V, 256 columns each; a thread of each, in turns, fetches the next tile (TMA) as soon as
//             a tile is used up, into a ring of three
// The ring carries, for each sequence of the part, its Q tile and then its KV blocks, so the next sequence is being
// fetched while this one finishes. P of a block overwrites the RoPE columns of that block's own tile: they are used up
// once S is made.
//
// What lives where. Registers: Q's dims 0 .. 495 and S (scores), O (output). Shared memory: the ring (3 x 72 KB) and
// the rest of Q (10 KB). Global: partial results of sequences that the schedule split, merged by combine.cu.
//
// The running maximum is lazy: it moves only when a block exceeds it by more than 2^8, so that O is almost never
// rescaled; P stays below 2^8 and the final division by the sum makes the result exact.
#include "params.cuh"
#include "ptx/barrier.cuh"
#include "ptx/tma.cuh"
#include "ptx/wgmma.cuh"
#include "softmax.cuh"
#include "walk.cuh"

namespace {

constexpr int STAGES = 3;
constexpr int THREADS = 384;
constexpr int LOADING_THREAD = 128;  // of the first turn
constexpr int OUT_COLUMNS = 256;     // a warpgroup's share of D_V
// S is 36 products one after the other. The output role is let go when so many of them are left, as word takes time to reach
// it: the matrix unit has its first product in the queue by the time that S is through. (6 and 10 measured the same.)
constexpr int PRODUCTS = D_QK / 16, PRODUCTS_LEFT = 10;

// A place in the ring: one number, 0 .. 5, as registers are short. Opaque to the compiler where addresses are made from
// it, or it would keep one register for each.
struct Ring {
  int clock = 0;
  __device__ __forceinline__ int stage() const {
    int x = clock;
    asm volatile("" : "+r"(x));
    return x >= STAGES ? x - STAGES : x;
  }
  __device__ __forceinline__ uint32_t parity() const { return clock >= STAGES; }
  // Of the output role's warpgroups: which one fetches into this place when it is free.
  __device__ __forceinline__ int turn() const { return clock % 2; }
  __device__ __forceinline__ void next() { clock = clock == 2 * STAGES - 1 ? 0 : clock + 1; }
};

// What follows from a thread's number in its warpgroup. Made anew in every phase: registers are too short to keep it.
struct Lane {
  const int thread = ptx::thread_id();
  __device__ __forceinline__ int lane() const { return thread % 32; }
  __device__ __forceinline__ int warp() const { return thread / 32 % 4; }
  __device__ __forceinline__ int quad() const { return thread % 4; }
  // Rows of the accumulators: this one and the 8th after.
  __device__ __forceinline__ int row() const { return warp() * 16 + lane() / 4; }
  // The output role's half of the columns.
  __device__ __forceinline__ int half() const { return thread / 128 - 1; }
  // ldmatrix and stmatrix: where this lane's row of a 64 x 64 tile has its first 16-byte chunk or the one after.
  __device__ __forceinline__ uint32_t matrix() const {
    const int row = warp() * 16 + lane() % 16;
    return row * 128 + ((lane() / 16) ^ (row % 8)) * 16;
  }
  // The threads of one of the output role's warpgroups meet.
  __device__ __forceinline__ void meet_half() const {
    if (half() == 0) ptx::named_barrier<2, 128>(); else ptx::named_barrier<3, 128>();
  }
};

// What the loading threads know of the next entry of the ring. It is worked out ahead, so that little is left to do once a
// place is free. The two output warpgroups take turns, one thread each; the `empty` barriers order their turns.
struct Loader {
  enum Kind { NONE, Q, KV };
  int kind;        // of the next entry
  int coordinate;  // its first row of q, or its block id
  int place;       // its place in the ring
  Walk walk;       // its sequence and block
  const int* table;  // the sequence's block ids
  int ids[4];      // by block % 4, fetched an entry ahead
  int head_kv, row, rank;

  __device__ __forceinline__ void fetch_id(int block) {
    if (block < walk.end) ptx::copy_async_4(ptx::shared_address(&ids[block % 4]), table + block);
  }
  // The Q tile of the walk's sequence comes next, or of the first after it that has blocks.
  __device__ __forceinline__ void plan_q(const Plan& plan, bool more, int first_id = -1) {
    const int seq = walk.seq;
    while (more && walk.length == 0) more = walk.next(plan);
    kind = more ? Q : NONE;
    if (!more) return;
    coordinate = (walk.seq * plan.h_kv + head_kv) * plan.rows + row;
    table = plan.table + size_t(walk.seq) * plan.table_stride;
    if (first_id >= 0 && walk.seq == seq) ids[walk.block % 4] = first_id;
    else fetch_id(walk.block);
  }
  __device__ __forceinline__ void start(const Plan& plan) {
    const int4 part = Walk::read4(Walk::row(plan)), first = Walk::read4(Walk::row(plan) + 4);
    head_kv = Walk::head_kv();
    row = Walk::tile() * TILE_ROWS;
    rank = ptx::cluster_rank();
    place = 0;
    walk = Walk(part, first.x);
    plan_q(plan, true, first.y);
  }
  // Works out the entry after this one. Ids that other turns fetched must have come.
  __device__ __forceinline__ void advance(const Plan& plan) {
    place = place == STAGES - 1 ? 0 : place + 1;
    const int block = kind == Q ? walk.block : walk.block + 1;
    if (block < walk.end) {
      kind = KV;
      walk.block = block;
      coordinate = *const_cast<const volatile int*>(&ids[block % 4]);
      fetch_id(block + 1);
    } else {
      plan_q(plan, walk.next(plan));
    }
  }
};

struct Shared {
  alignas(1024) uint8_t tile[STAGES][TILE_BYTES];
  alignas(1024) uint8_t q_rope[GROUP_BYTES];
  alignas(128) uint8_t q_last[TILE_ROWS * 32];  // dims 496 .. 511 of Q: core matrices of 8 rows x 16 bytes, [2][8]
  uint8_t rescale[STAGES][TILE_ROWS];  // O is to be divided by 2 to this, where the flag is set; 255 makes it zero
  float inverse_sum[2][TILE_ROWS];   // 1 / l of the last two sequences; 0 for an empty row
  int partial[4];                    // of the last sequences: the partial result to leave; -1 for one that is not split
  int rescale_flag[STAGES][4];       // a warp each
  uint64_t loaded[STAGES];           // TMA -> scores
  uint64_t scored[STAGES];           // scores -> output: S is all but made (order only)
  uint64_t ready[STAGES];            // scores, every thread -> output: P is in place, or Q is taken
  uint64_t empty[STAGES];            // output of every block of the cluster -> its loads
  Loader loader;
};
static_assert(sizeof(Shared) <= 232448, "over the shared memory of a block");

// Fetches the next entry of the ring, whose place is free: the Q tile of a sequence or its next KV block.
template <int Cluster>
__device__ __forceinline__ void load_next(const DecodeParams& p, Loader& l, Shared& s) {
  const int kind = l.kind, coordinate = l.coordinate, head_kv = l.head_kv, rank = l.rank;
  if (kind == Loader::NONE) return;
  const uint32_t dst = ptx::shared_address(s.tile[l.place]), bar = ptx::shared_address(&s.loaded[l.place]);
  ptx::barrier_arrive_expect(bar, TILE_BYTES);
  if (kind == Loader::Q) {
    ptx::load_3d(dst, &p.q_low, bar, ptx::EVICT_LAST, 0, coordinate, 0);
    ptx::load_3d(dst + LOW_GROUPS * GROUP_BYTES, &p.q_high, bar, ptx::EVICT_LAST, 0, coordinate, LOW_GROUPS);
  } else {
    constexpr uint16_t mask = (1 << Cluster) - 1;
    if constexpr (Cluster == 1) {
      ptx::load_5d(dst, &p.kv_low, bar, ptx::EVICT_FIRST, 0, 0, 0, head_kv, coordinate);
      ptx::load_5d(dst + LOW_GROUPS * GROUP_BYTES, &p.kv_high, bar, ptx::EVICT_FIRST, 0, 0, LOW_GROUPS, head_kv, coordinate);
    } else if (rank == 0) {
      ptx::load_5d_multicast(dst, &p.kv_low, bar, mask, ptx::EVICT_FIRST, 0, 0, 0, head_kv, coordinate);
    } else {
      ptx::load_5d_multicast(dst + LOW_GROUPS * GROUP_BYTES, &p.kv_high, bar, mask, ptx::EVICT_FIRST, 0, 0, LOW_GROUPS, head_kv, coordinate);
    }
  }
  l.advance(p.plan);
}

template <class T>
__device__ void scores(const DecodeParams& p, Shared& s) {
  uint32_t q[8][4][4];
  const uint32_t lane_at = Lane().matrix();  // the chunk 2 i is at this ^ 32 i
  Ring ring;
  int sequence_count = 0;
  Walk walk(p.plan);
  do {
    float highest[2] = {-INFINITY, -INFINITY};
    float sum[2] = {0, 0};
    if (walk.length > 0) {
      // Q: dims 0 .. 495 to registers, the rest to tiles of their own
      const Lane me;
      if (me.thread == 0) s.partial[sequence_count & 3] = walk.partial(p.plan);
      ptx::barrier_wait(ptx::shared_address(&s.loaded[ring.stage()]), ring.parity());
      const uint32_t q_tile = ptx::shared_address(s.tile[ring.stage()]);
#pragma unroll
      for (int g = 0; g < 8; g++) {
#pragma unroll
        for (int k = 0; k < 4; k++) {
          if (g == 7 && k == 3) continue;
          const uint32_t at = q_tile + (lane_at ^ k * 32) + g * GROUP_BYTES;
          ptx::load_matrix_x4(at, q[g][k][0], q[g][k][1], q[g][k][2], q[g][k][3]);
        }
      }
      {
        const int row = me.thread / 2, chunk = me.thread % 2;
        *reinterpret_cast<uint4*>(s.q_last + (chunk * 8 + row / 8) * 128 + row % 8 * 16) =
            *reinterpret_cast<const uint4*>(s.tile[ring.stage()] + 7 * GROUP_BYTES + row * 128 + (((6 + chunk) ^ (row % 8)) * 16));
      }
      const uint4* from = reinterpret_cast<const uint4*>(s.tile[ring.stage()] + ROPE_GROUP * GROUP_BYTES);
      uint4* to = reinterpret_cast<uint4*>(s.q_rope);
#pragma unroll
      for (int i = 0; i < GROUP_BYTES / 16 / 128; i++) to[me.thread + i * 128] = from[me.thread + i * 128];
      ptx::fence_proxy_async();
      ptx::named_barrier<1, 128>();
      if (me.lane() == 0) ptx::barrier_arrive(ptx::shared_address(&s.scored[ring.stage()]));  // keeps its phases in step with the ring
      ptx::barrier_arrive(ptx::shared_address(&s.ready[ring.stage()]));
      ring.next();
    }

    for (; walk.block < walk.end; walk.block++) {
      const uint32_t kv_tile = ptx::shared_address(s.tile[ring.stage()]);
      const uint64_t k_desc = ptx::matrix_descriptor(kv_tile, 16, 1024);
      const uint64_t q_rope_desc = ptx::matrix_descriptor(ptx::shared_address(s.q_rope), 16, 1024);
      float x[32];
      ptx::barrier_wait(ptx::shared_address(&s.loaded[ring.stage()]), ring.parity());
      ptx::wgmma_fence();
#pragma unroll
      for (int g = 0; g < 8; g++) {
#pragma unroll
        for (int k = 0; k < 4; k++) {
          if (g == 7 && k == 3) continue;
          if (g * 4 + k == PRODUCTS - PRODUCTS_LEFT) ptx::wgmma_commit();
          ptx::wgmma_64x64_registers(T{}, x, q[g][k][0], q[g][k][1], q[g][k][2], q[g][k][3], k_desc + ((g * GROUP_BYTES + k * 32) >> 4), g + k > 0);
        }
      }
      ptx::wgmma_64x64_shared(T{}, x, ptx::matrix_descriptor_plain(ptx::shared_address(s.q_last), 1024, 128), k_desc + ((7 * GROUP_BYTES + 96) >> 4), 1);
#pragma unroll
      for (int k = 0; k < 4; k++) {
        ptx::wgmma_64x64_shared(T{}, x, q_rope_desc + ((k * 32) >> 4), k_desc + ((ROPE_GROUP * GROUP_BYTES + k * 32) >> 4), 1);
      }
      ptx::wgmma_commit();
      const Lane me;
      ptx::wgmma_wait<1>();
      if (me.lane() == 0) ptx::barrier_arrive(ptx::shared_address(&s.scored[ring.stage()]));
      ptx::wgmma_wait<0>();

      // softmax: x[4 i + j] is row row() + 8 (j / 2), token 8 i + 2 quad() + j % 2
      const float scale = fabsf(p.plan.scale_log2);
      if (__builtin_expect(p.plan.scale_log2 < 0, 0)) {
#pragma unroll
        for (int i = 0; i < 32; i++) x[i] = -x[i];
      }
      const int token0 = walk.block * BLOCK_TOKENS;
      const bool tail = token0 + BLOCK_TOKENS > walk.length - (p.plan.causal ? p.plan.s_q - 1 : 0);
      if (__builtin_expect(tail, 0)) {
#pragma unroll
        for (int r = 0; r < 2; r++) {
          int limit = walk.length - token0 - me.quad() * 2;  // in tokens from x[0]'s
          if (p.plan.causal) {
            const int token = min((Walk::tile() * TILE_ROWS + me.row() + 8 * r) / p.plan.group, p.plan.s_q - 1);
            limit -= p.plan.s_q - 1 - token;
          }
#pragma unroll
          for (int i = 0; i < 16; i++) {
            if (i / 2 * 8 + i % 2 >= limit) x[i / 2 * 4 + r * 2 + i % 2] = -INFINITY;
          }
        }
      }
      // The running maximum moves only when a score exceeds it by much, which one look at the thread's own scores tells for
      // most blocks. It starts at the first block's maximum, so that P is exact there, and moves in whole steps, so that O's
      // factors are powers of two.
      float most[2];
      bool exceeds = false;
#pragma unroll
      for (int r = 0; r < 2; r++) {
        most[r] = fmaxf(x[r * 2], x[r * 2 + 1]);
#pragma unroll
        for (int i = 1; i < 8; i++) most[r] = fmaxf(most[r], fmaxf(x[i * 4 + r * 2], x[i * 4 + r * 2 + 1]));
        exceeds |= most[r] * scale > highest[r] + LAZY_LOG2;
      }
      const bool moved = __any_sync(~0u, exceeds);
      if (__builtin_expect(moved, 0)) {
#pragma unroll
        for (int r = 0; r < 2; r++) {
          float row_most = fmaxf(most[r], __shfl_xor_sync(~0u, most[r], 1));
          row_most = fmaxf(row_most, __shfl_xor_sync(~0u, row_most, 2)) * scale;
          int drop;
          highest[r] = move_maximum(highest[r], row_most, drop);
          sum[r] *= power_of_two(drop);
          if (me.quad() == 0) s.rescale[ring.stage()][me.row() + 8 * r] = drop;
        }
      }
      if (me.lane() == 0) s.rescale_flag[ring.stage()][me.warp()] = moved;
#pragma unroll
      for (int r = 0; r < 2; r++) {
        const float base = highest[r] == -INFINITY ? 0.0f : highest[r];
        float part_sum = 0;
#pragma unroll
        for (int i = 0; i < 8; i++) {
#pragma unroll
          for (int j = 0; j < 2; j++) {
            float& value = x[i * 4 + r * 2 + j];
            value = ptx::exp2_fast(fmaf(value, scale, -base));
            part_sum += value;
          }
        }
        sum[r] += part_sum;
      }
      ptx::named_barrier<1, 128>();  // every warp's S is made: what P lies over is used up
#pragma unroll
      for (int i = 0; i < 4; i++) {
        const uint32_t at = kv_tile + ROPE_GROUP * GROUP_BYTES + (lane_at ^ i * 32);
        ptx::store_matrix_x4(at, ptx::pack(T{}, x[i * 8], x[i * 8 + 1]), ptx::pack(T{}, x[i * 8 + 2], x[i * 8 + 3]),
                             ptx::pack(T{}, x[i * 8 + 4], x[i * 8 + 5]), ptx::pack(T{}, x[i * 8 + 6], x[i * 8 + 7]));
      }
      if (__builtin_expect(walk.block == walk.end - 1, 0)) {
#pragma unroll
        for (int r = 0; r < 2; r++) {
          sum[r] += __shfl_xor_sync(~0u, sum[r], 1);
          sum[r] += __shfl_xor_sync(~0u, sum[r], 2);
          if (me.quad() == 0) s.inverse_sum[sequence_count & 1][me.row() + 8 * r] = sum[r] == 0 ? 0.0f : 1.0f / sum[r];
        }
      }
      ptx::fence_proxy_async();
      ptx::barrier_arrive(ptx::shared_address(&s.ready[ring.stage()]));
      ring.next();
    }

    const Lane me;
    const int partial = walk.length > 0 ? s.partial[sequence_count & 3] : -1;
#pragma unroll
    for (int r = 0; r < 2; r++) {
      const int row = Walk::tile() * TILE_ROWS + me.row() + 8 * r;
      if (me.quad() == 0 && row < p.plan.rows) {
        const float lse = highest[r] + log2f(sum[r]);
        if (partial >= 0) {
          p.partial_info[(size_t(partial) * p.plan.h_kv + Walk::head_kv()) * p.plan.rows + row].x = sum[r] == 0 ? -INFINITY : lse;
        } else {
          p.lse[lse_index(p.plan, walk.seq, row, Walk::head_kv())] = sum[r] == 0 ? INFINITY : lse * LN_2;
        }
      }
    }
    if (walk.length > 0) sequence_count++;
  } while (walk.next(p.plan));
}

// The scale_of() a quad's row (r: this one or the 8th after), times `factor`.
__device__ __forceinline__ float row_scale(const float (&o)[2][64], int r, float factor) {
  float most = 0;
#pragma unroll
  for (int i = 0; i < 64; i++) most = fmaxf(most, fabsf(o[i / 32][i % 32 / 2 * 4 + r * 2 + i % 2]));
  most = fmaxf(most, __shfl_xor_sync(~0u, most, 1));
  most = fmaxf(most, __shfl_xor_sync(~0u, most, 2)) * factor;
  return scale_of(most);
}

// Puts a warp's 16 x 256 share of O, times its rows' factors, into shared memory: rows of 512 bytes, each rotated by 16 bytes
// times its number mod 8, so that a matrix store meets every bank once.
template <class T>
__device__ __forceinline__ void stage(const float (&o)[2][64], const float (&factor)[2], uint32_t to, const Lane& me) {
  const int row = me.lane() % 16;
  const uint32_t rotated = (me.lane() / 16 + row % 8) * 16;
  to += row * OUT_COLUMNS * 2;
#pragma unroll
  for (int i = 0; i < 16; i++) {  // 16 columns
    const float* x = o[i / 8] + i % 8 * 8;
    ptx::store_matrix_x4(to + (i * 32 + rotated) % (OUT_COLUMNS * 2), ptx::pack(T{}, x[0] * factor[0], x[1] * factor[0]), ptx::pack(T{}, x[2] * factor[1], x[3] * factor[1]),
                         ptx::pack(T{}, x[4] * factor[0], x[5] * factor[0]), ptx::pack(T{}, x[6] * factor[1], x[7] * factor[1]));
  }
}

// The end of a sequence: this warpgroup's half of O to where it belongs, by way of its half of the last V, which it has used
// up. Rows past the end are not written.
template <class T>
__device__ __forceinline__ void leave_sequence(const DecodeParams& p, Shared& s, const float (&o)[2][64], int seq, int sequence_count, int stage_of_v) {
  const Lane me;
  const int partial = s.partial[sequence_count & 3];
  const float* inverse_sum = s.inverse_sum[sequence_count & 1];
  float factor[2] = {inverse_sum[me.row()], inverse_sum[me.row() + 8]};
  const uint32_t staging = ptx::shared_address(s.tile[stage_of_v]) + me.half() * 4 * GROUP_BYTES + me.warp() * GROUP_BYTES;
  me.meet_half();  // every warp's product is made
  const int head_kv = Walk::head_kv(), first_row = Walk::tile() * TILE_ROWS + me.warp() * 16;
  if (first_row >= p.plan.rows) return;
  uint16_t* to;
  if (partial >= 0) {
    const size_t at = (size_t(partial) * p.plan.h_kv + head_kv) * p.plan.rows + first_row;
    float4* info = p.partial_info + at + me.lane() / 4;
#pragma unroll
    for (int r = 0; r < 2; r++) {
      const float scale = row_scale(o, r, factor[r]);
      factor[r] *= inverse_scale(scale);
      if (me.quad() == 0 && first_row + me.lane() / 4 + 8 * r < p.plan.rows) (&info[8 * r].y)[me.half()] = scale;
    }
    stage<ptx::F16>(o, factor, staging, me);
    to = p.partial_out + at * D_V;
  } else {
    stage<T>(o, factor, staging, me);
    to = static_cast<uint16_t*>(p.out) + (size_t(seq) * p.plan.h_kv * p.plan.rows + query_row(p.plan, first_row, head_kv)) * D_V;
  }
  __syncwarp();
  to += me.half() * OUT_COLUMNS + me.lane() * 8;
  const bool scattered = partial < 0 && p.plan.s_q > 1 && p.plan.h_kv > 1;  // rows of a KV head do not lie together
#pragma unroll 4
  for (int i = 0; i < 16; i++) {
    if (first_row + i >= p.plan.rows) break;
    const int gap = scattered ? query_row(p.plan, first_row + i, head_kv) - query_row(p.plan, first_row, head_kv) : i;
    *reinterpret_cast<uint4*>(to + gap * D_V) = ptx::load_shared(staging + i * OUT_COLUMNS * 2 + (me.lane() + i % 8) % 32 * 16);
  }
  ptx::fence_proxy_async();  // the next tile is written there
}

// The output of a sequence of length zero.
__device__ __forceinline__ void leave_zeros(const DecodeParams& p, int seq) {
  const int head_kv = Walk::head_kv(), first_row = Walk::tile() * TILE_ROWS;
  for (int i = threadIdx.x - 128; i < TILE_ROWS * D_V / 8; i += 256) {
    const int row = first_row + i / (D_V / 8);
    if (row >= p.plan.rows) break;
    uint16_t* to = static_cast<uint16_t*>(p.out) + (size_t(seq) * p.plan.h_kv * p.plan.rows + query_row(p.plan, row, head_kv)) * D_V;
    *reinterpret_cast<uint4*>(to + i % (D_V / 8) * 8) = make_uint4(0, 0, 0, 0);
  }
}

template <class T, int Cluster>
__device__ void output(const DecodeParams& p, Shared& s) {
  float o[2][64];  // 128 columns each
  Ring ring;
  int sequence_count = 0;
  if (ptx::thread_id() == LOADING_THREAD) {
#pragma unroll 1
    for (int i = 1; i < STAGES; i++) {  // the first entry went before the roles parted
      ptx::copy_async_wait();
      load_next<Cluster>(p, s.loader, s);
    }
  }
  __syncwarp();

  // Lets go of the place, and fetches into it if it is this warpgroup's turn.
  auto release = [&] {
    const Lane me;
    ptx::copy_async_wait();  // block ids that this thread fetched are the other's next
    __syncwarp();
    if (me.lane() < Cluster) {
      if constexpr (Cluster == 1) ptx::barrier_arrive(ptx::shared_address(&s.empty[ring.stage()]));
      else ptx::barrier_arrive_remote(ptx::shared_address(&s.empty[ring.stage()]), me.lane());
    }
    if (me.thread / 32 == 4 + 4 * ring.turn()) {
      // Free once the other warpgroup, and the other block of the cluster, have let go of it too.
      ptx::barrier_wait(ptx::shared_address(&s.empty[ring.stage()]), ring.parity());
      if (me.lane() == 0) load_next<Cluster>(p, s.loader, s);
      __syncwarp();
    }
    ring.next();
  };

  Walk walk(p.plan);
  do {
    // The first entry of a sequence is its Q tile, which the other role takes: it is only let go of here.
    const int entries = walk.length > 0 ? 1 + walk.end - walk.block : 0;
    const int tokens = walk.length - (walk.block - 1) * BLOCK_TOKENS;  // from where entry 0 would be a block
    for (int entry = 0; entry < entries; entry++) {
      ptx::barrier_wait(ptx::shared_address(&s.ready[ring.stage()]), ring.parity());
      const Lane me;
      if (entry > 0) {
        const bool first = entry == 1;
        const uint32_t kv_tile = ptx::shared_address(s.tile[ring.stage()]);
        if (entry + 1 < entries) {
          // The next S goes first, so that the matrix units work on this product while its softmax is under way.
          Ring ahead = ring;
          ahead.next();
          ptx::barrier_wait(ptx::shared_address(&s.scored[ahead.stage()]), ahead.parity());
        }
        // Slots past the end may hold NaN, and 0 * NaN is NaN: V becomes zero there. So do what is not finite in keys that
        // only some rows see; it reaches those rows through their scores.
        const int valid = tokens - entry * BLOCK_TOKENS;
        const int common = valid - (p.plan.causal ? p.plan.s_q - 1 : 0);
        if (__builtin_expect(common < BLOCK_TOKENS, 0)) {
          const int from = max(common, 0);
          for (int i = me.thread % 128; i < (BLOCK_TOKENS - from) * 4 * 8; i += 128) {
            const int token = from + i / 32, group = me.half() * 4 + i / 8 % 4, chunk = (i % 8) ^ (token % 8);
            uint4* v = reinterpret_cast<uint4*>(s.tile[ring.stage()] + group * GROUP_BYTES + token * 128 + chunk * 16);
            *v = token < valid ? ptx::finite_or_zero(T{}, *v) : make_uint4(0, 0, 0, 0);
          }
          ptx::fence_proxy_async();
          me.meet_half();
        }
        if (__builtin_expect(!first && s.rescale_flag[ring.stage()][me.warp()], 0)) {
          const float f0 = power_of_two(s.rescale[ring.stage()][me.row()]), f1 = power_of_two(s.rescale[ring.stage()][me.row() + 8]);
#pragma unroll
          for (int i = 0; i < 32; i++) {
            float* x = o[i / 16] + i % 16 * 4;
            x[0] *= f0;
            x[1] *= f0;
            x[2] *= f1;
            x[3] *= f1;
          }
        }
        const uint64_t p_desc = ptx::matrix_descriptor(kv_tile + ROPE_GROUP * GROUP_BYTES, 16, 1024);
        const uint64_t v_desc = ptx::matrix_descriptor(kv_tile + me.half() * 4 * GROUP_BYTES, GROUP_BYTES, 1024);
        ptx::wgmma_fence();
#pragma unroll
        for (int k = 0; k < 4; k++) {
          ptx::wgmma_64x128_shared(T{}, o[0], p_desc + ((k * 32) >> 4), v_desc + ((k * 2048) >> 4), !first || k > 0);
          ptx::wgmma_64x128_shared(T{}, o[1], p_desc + ((k * 32) >> 4), v_desc + ((k * 2048 + 2 * GROUP_BYTES) >> 4), !first || k > 0);
        }
        ptx::wgmma_commit();
        ptx::wgmma_wait<0>();
      }
      if (entry + 1 == entries) break;
      release();
    }
    if (entries > 0) {
      leave_sequence<T>(p, s, o, walk.seq, sequence_count++, ring.stage());
      release();
    } else {
      leave_zeros(p, walk.seq);
    }
  } while (walk.next(p.plan));
}

template <class T, int Cluster>
__device__ void decode(const DecodeParams& p) {
  extern __shared__ uint8_t dynamic[];
  Shared& s = *reinterpret_cast<Shared*>(dynamic);
  const int warp = threadIdx.x / 32;
  if (threadIdx.x == LOADING_THREAD) {
    s.loader.start(p.plan);  // here, so that the plan's dependent loads overlap the meeting of the cluster
    for (int i = 0; i < STAGES; i++) {
      ptx::barrier_init(ptx::shared_address(&s.loaded[i]), 1);
      ptx::barrier_init(ptx::shared_address(&s.scored[i]), 4);
      ptx::barrier_init(ptx::shared_address(&s.ready[i]), 128);
      ptx::barrier_init(ptx::shared_address(&s.empty[i]), 8 * Cluster);
    }
    ptx::fence_barrier_init();
    ptx::copy_async_wait();
    load_next<Cluster>(p, s.loader, s);  // Q, for this block alone
  } else if (threadIdx.x == 0) {
    ptx::tensor_map_prefetch(&p.kv_low);
    ptx::tensor_map_prefetch(&p.kv_high);
  }
  ptx::dependents_launch();
  if constexpr (Cluster > 1) ptx::cluster_sync_relaxed(); else __syncthreads();

  if (warp < 4) {
    ptx::registers_grow<184>();
    scores<T>(p, s);
  } else {
    ptx::registers_shrink<160>();
    output<T, Cluster>(p, s);
  }
  // A block's shared memory must outlive what the other may still send to it.
  if constexpr (Cluster > 1) ptx::cluster_sync_relaxed();
}

}  // namespace

#define DECODE(NAME, TYPE, CLUSTER) \
  extern "C" __global__ void __launch_bounds__(THREADS, 1) NAME(const __grid_constant__ DecodeParams p) { decode<ptx::TYPE, CLUSTER>(p); }

DECODE(decode_bf16, Bf16, 1)
DECODE(decode_bf16_pair, Bf16, 2)
DECODE(decode_f16, F16, 1)
DECODE(decode_f16_pair, F16, 2)
