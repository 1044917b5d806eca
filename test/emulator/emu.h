// CPU emulation of what the kernels use of CUDA: types, intrinsics, fibers, barriers, TMA, wgmma. See README.md.
#pragma once
#include <stddef.h>
#include <math.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <deque>
#include <functional>
#include <source_location>
#include <vector>

struct alignas(64) CUtensorMap { uint64_t opaque[16]; };

#define __global__
#define __device__
#define __forceinline__ inline
#define __noinline__ __attribute__((noinline))
#define __grid_constant__
#define __launch_bounds__(...)
#define __shared__ static  // blocks run one after another; not for clusters (emulate.ts handles `extern __shared__`)

struct alignas(8) int2 { int x, y; };
struct alignas(16) int4 { int x, y, z, w; };
struct alignas(8) uint2 { unsigned x, y; };
struct alignas(16) uint4 { unsigned x, y, z, w; };
struct alignas(8) float2 { float x, y; };
struct alignas(16) float4 { float x, y, z, w; };
struct uint3 { unsigned x, y, z; };
inline uint4 make_uint4(unsigned x, unsigned y, unsigned z, unsigned w) { return {x, y, z, w}; }
inline float4 make_float4(float x, float y, float z, float w) { return {x, y, z, w}; }

namespace emu {
using Loc = std::source_location;
#define EMU_LOC emu::Loc loc = emu::Loc::current()

struct Block;
struct Cluster;
struct Fiber;
constexpr uint32_t BASE = 1024, DYNAMIC = 232448, SPARE = 1024;  // shared addresses: BASE + offset in dynamic memory

struct Gate { int arrived = 0; uint64_t gen = 0; bool any = false, result = false; int need = 0; };
struct Slot { uint64_t v[6]; };
struct Warp {
  int index = 0, live = 0;
  Gate gate;
  const char* kind = "";
  uint32_t line = 0;
  uint64_t turn = 0;
  Slot slots[2][32];
  double skip = 0;
};
struct Wgmma {
  float* d;
  int n;
  uint64_t a, b;
  bool ta, tb, f16, accumulate, registers;
  float rows[2][16];
};
struct Group { Fiber* fibers[128] = {}; std::vector<int> commits; int done = 0; };  // a warpgroup
struct Fiber {
  void* sp = nullptr;
  uint3 tid;
  int index;
  Block* block;
  Warp* warp;
  enum { READY, MBAR, GATE, WGMMA, DONE } wait;
  Group* group;
  int committed = 0, need = 0;  // wgmma groups
  uint32_t bar, parity;
  Gate* gate;
  uint64_t gen;
  const char* what;
  Loc loc;
  std::vector<Wgmma> open;
  std::deque<std::vector<Wgmma>> groups;
  struct Copy { uint32_t dst; const void* src; };
  std::vector<Copy> copies;
};
struct Mbar { bool init = false; uint32_t phase = 0; int pending = 0, count = 0; long tx = 0; uint64_t phases = 0; };
struct Block {
  uint3 idx;
  uint32_t rank;
  Cluster* cluster;
  uint8_t* shared;  // of address 0
  std::vector<Mbar> mbars;
  Gate named[16];
  int live = 0;
};

extern Fiber* cur;
extern uint3 grid_dim, block_dim;
extern uint32_t dynamic_bytes;  // of the launch
extern struct Options {
  uint64_t seed = 0;     // 0: round robin and fixed delays
  int tma_delay = 3;     // rounds; with a seed the most
  bool defer = false;    // wgmma is done when the first warp waits for it, else when the last has committed it
  bool loose = false;    // each warp does its quarter of a wgmma on its own, not the four of a warpgroup together
} options;
extern struct Stats { uint64_t rounds = 0, tma = 0, tma_outside = 0, wgmma = 0; } stats;

struct Map { uint8_t* base; uint64_t dims[5], strides[4]; uint32_t box[5]; uint8_t rank; };  // 16-bit elements, 128-byte swizzle; strides in bytes from dim 1
static_assert(sizeof(Map) <= sizeof(CUtensorMap));
CUtensorMap encode(void* base, std::vector<uint64_t> dims, std::vector<uint64_t> strides, std::vector<uint32_t> box);

[[noreturn]] void die(const Loc& loc, const char* format, ...);
inline void check_aligned(const void* p, int bytes, EMU_LOC) {
  if (uintptr_t(p) % bytes) die(loc, "misaligned");
}
void launch(uint3 grid, int threads, int cluster_size, const std::function<void()>& kernel);

// scheduling
void yield();        // lets others run
void maybe_yield();  // at random, with a seed
bool gate_wait(Gate& g, int need, const char* what, const Loc& loc, bool value = false);
void warp_sync(const char* kind, const Loc& loc);
Slot* warp_exchange(const char* kind, const Slot& mine, const Loc& loc);  // the warp's slots

// shared memory
uint32_t address(const void* p, const Loc& loc = Loc::current());
uint8_t* at(uint32_t address, uint32_t bytes, const Loc& loc = Loc::current());
inline void* dynamic_shared() { return cur->block->shared + BASE; }

// mbarrier
void mbar_init(uint32_t bar, uint32_t count, const Loc&);
void mbar_arrive(Block* b, uint32_t bar, int count, long expect, const Loc&);
void mbar_wait(uint32_t bar, uint32_t parity, const Loc&);
Block* peer(uint32_t rank, const Loc&);

void tma(uint32_t dst, const CUtensorMap* map, uint32_t bar, int mask, std::vector<int> at, const Loc&);
void copy4(uint32_t dst, const void* src, const Loc&);
void copy_wait();

void wgmma(Wgmma w, const Loc&);
void wgmma_commit(const Loc&);
void wgmma_wait(int pending, const Loc&);
bool named(int id, int threads, const Loc&, bool value = false);  // whether any value is true
void cluster_sync(const Loc&);

inline float bf16(uint16_t x) { uint32_t u = uint32_t(x) << 16; float f; memcpy(&f, &u, 4); return f; }
inline uint16_t to_bf16(float f) { uint32_t u; memcpy(&u, &f, 4); if ((u & 0x7fffffff) > 0x7f800000) return 0x7fff; return (u + 0x7fff + ((u >> 16) & 1)) >> 16; }
inline float f16(uint16_t x) {
  const int e = x >> 10 & 31, m = x & 1023;
  const float f = e == 31 ? (m ? NAN : INFINITY) : e == 0 ? ldexpf(m, -24) : ldexpf(1024 + m, e - 25);
  return x & 0x8000 ? -f : f;
}
uint16_t to_f16(float f);
}  // namespace emu

#define threadIdx (emu::cur->tid)
#define blockIdx (emu::cur->block->idx)

template <class To, class From> inline To emu_bits(From x) { static_assert(sizeof(To) == sizeof(From)); To y; memcpy(&y, &x, sizeof y); return y; }
inline int __float_as_int(float x) { return emu_bits<int>(x); }
inline float __int_as_float(int x) { return emu_bits<float>(x); }
inline float __uint_as_float(unsigned x) { return emu_bits<float>(x); }
inline float __fdividef(float a, float b) { return a / b; }
inline float __log2f(float x) { return log2f(x); }
#define EMU_MIN_MAX(T) inline T min(T a, T b) { return b < a ? b : a; } inline T max(T a, T b) { return a < b ? b : a; }
EMU_MIN_MAX(int) EMU_MIN_MAX(unsigned) EMU_MIN_MAX(long) EMU_MIN_MAX(unsigned long) EMU_MIN_MAX(long long)
inline float min(float a, float b) { return fminf(a, b); }
inline float max(float a, float b) { return fmaxf(a, b); }
inline unsigned min(int a, unsigned b) { return min(unsigned(a), b); }
inline unsigned min(unsigned a, int b) { return min(a, unsigned(b)); }
inline unsigned max(int a, unsigned b) { return max(unsigned(a), b); }
inline unsigned max(unsigned a, int b) { return max(a, unsigned(b)); }

inline size_t __cvta_generic_to_shared(const void* p) { return emu::address(p); }
inline void __syncthreads(EMU_LOC) { emu::gate_wait(emu::cur->block->named[0], emu::cur->block->live, "__syncthreads", loc); }
inline void __syncwarp(unsigned mask = ~0u, EMU_LOC) { if (mask != ~0u) emu::die(loc, "partial mask"); emu::warp_sync("__syncwarp", loc); }
template <class T> inline T emu_shuffle(const char* kind, unsigned mask, T x, int from, const emu::Loc& loc) {
  if (mask != ~0u) emu::die(loc, "partial mask");
  emu::Slot s{};
  memcpy(&s, &x, sizeof x);
  static_assert(sizeof x <= 8);
  T y;
  memcpy(&y, emu::warp_exchange(kind, s, loc) + from, sizeof y);
  return y;
}
inline int emu_lane() { return emu::cur->index % 32; }
template <class T> inline T __shfl_xor_sync(unsigned m, T x, int by, int = 32, EMU_LOC) { return emu_shuffle("shfl_xor", m, x, (emu_lane() ^ by) & 31, loc); }
template <class T> inline T __shfl_sync(unsigned m, T x, int from, int width = 32, EMU_LOC) { return emu_shuffle("shfl", m, x, (emu_lane() & ~(width - 1)) + (from & (width - 1)), loc); }
inline unsigned __ballot_sync(unsigned mask, int x, EMU_LOC) {
  if (mask != ~0u) emu::die(loc, "partial mask");
  emu::Slot s{{uint64_t(x != 0)}};
  const emu::Slot* all = emu::warp_exchange("ballot", s, loc);
  unsigned r = 0;
  for (int i = 0; i < 32; i++) r |= unsigned(all[i].v[0]) << i;
  return r;
}
inline int __any_sync(unsigned m, int x, EMU_LOC) { return __ballot_sync(m, x, loc) != 0; }
