// Does nothing for a while, so that what is enqueued behind it is all there when it ends.
//
// How work is cut. One thread watches the clock. What lives where. Nothing lives anywhere.
#include <stdint.h>

struct DelayParams {
  unsigned nanoseconds;
};

__device__ __forceinline__ uint64_t now() {
  uint64_t t;
  asm volatile("mov.u64 %0, %%globaltimer;" : "=l"(t));
  return t;
}

extern "C" __global__ void __launch_bounds__(1) delay(const __grid_constant__ DelayParams p) {
  const uint64_t start = now();
  while (now() - start < p.nanoseconds) {
  }
}
