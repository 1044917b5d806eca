// Wrappers of the bulk tensor copy engine (TMA): a box of a tensor map into shared memory.
#pragma once
#include <cuda.h>
#include <stdint.h>

namespace ptx {

constexpr uint64_t EVICT_FIRST = 0x12F0000000000000ull;
constexpr uint64_t EVICT_LAST = 0x14F0000000000000ull;

__device__ __forceinline__ void tensor_map_prefetch(const CUtensorMap* map) {
  asm volatile("prefetch.tensormap [%0];" ::"l"(map) : "memory");
}

__device__ __forceinline__ void load_3d(uint32_t dst, const CUtensorMap* map, uint32_t bar, uint64_t hint, int x, int y, int z) {
  asm volatile(
      "cp.async.bulk.tensor.3d.shared::cluster.global.mbarrier::complete_tx::bytes.L2::cache_hint [%0], [%1, {%4, %5, %6}], [%2], %3;" ::"r"(dst),
      "l"(map), "r"(bar), "l"(hint), "r"(x), "r"(y), "r"(z)
      : "memory");
}

__device__ __forceinline__ void load_5d(uint32_t dst, const CUtensorMap* map, uint32_t bar, uint64_t hint, int x, int y, int z, int v, int w) {
  asm volatile(
      "cp.async.bulk.tensor.5d.shared::cluster.global.mbarrier::complete_tx::bytes.L2::cache_hint [%0], [%1, {%4, %5, %6, %7, %8}], [%2], "
      "%3;" ::"r"(dst),
      "l"(map), "r"(bar), "l"(hint), "r"(x), "r"(y), "r"(z), "r"(v), "r"(w)
      : "memory");
}

// To the same offset, and the barrier at the same offset, in every block of the cluster named in `mask`.
__device__ __forceinline__ void load_5d_multicast(uint32_t dst, const CUtensorMap* map, uint32_t bar, uint16_t mask, uint64_t hint, int x, int y, int z,
                                                  int v, int w) {
  asm volatile(
      "cp.async.bulk.tensor.5d.shared::cluster.global.mbarrier::complete_tx::bytes.multicast::cluster.L2::cache_hint [%0], [%1, {%5, %6, "
      "%7, %8, %9}], [%2], %3, %4;" ::"r"(dst),
      "l"(map), "r"(bar), "h"(mask), "l"(hint), "r"(x), "r"(y), "r"(z), "r"(v), "r"(w)
      : "memory");
}

__device__ __forceinline__ uint4 load_shared(uint32_t from) {
  uint4 x;
  asm volatile("ld.shared.v4.b32 {%0, %1, %2, %3}, [%4];" : "=r"(x.x), "=r"(x.y), "=r"(x.z), "=r"(x.w) : "r"(from) : "memory");
  return x;
}

// Four bytes to shared memory without waiting for them.
__device__ __forceinline__ void copy_async_4(uint32_t dst, const void* src) {
  asm volatile("cp.async.ca.shared.global [%0], [%1], 4;" ::"r"(dst), "l"(src) : "memory");
}
__device__ __forceinline__ void copy_async_wait() { asm volatile("cp.async.wait_all;" ::: "memory"); }

}  // namespace ptx
