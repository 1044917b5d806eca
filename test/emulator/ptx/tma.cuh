// Emulated: see ../README.md.
#pragma once
#include "emu.h"

namespace ptx {
constexpr uint64_t EVICT_FIRST = 0x12F0000000000000ull;
constexpr uint64_t EVICT_LAST = 0x14F0000000000000ull;
inline void tensor_map_prefetch(const CUtensorMap*) {}
inline void load_3d(uint32_t dst, const CUtensorMap* map, uint32_t bar, uint64_t, int x, int y, int z, EMU_LOC) { emu::tma(dst, map, bar, 0, {x, y, z}, loc); }
inline void load_5d(uint32_t dst, const CUtensorMap* map, uint32_t bar, uint64_t, int x, int y, int z, int v, int w, EMU_LOC) {
  emu::tma(dst, map, bar, 0, {x, y, z, v, w}, loc);
}
inline void load_5d_multicast(uint32_t dst, const CUtensorMap* map, uint32_t bar, uint16_t mask, uint64_t, int x, int y, int z, int v, int w, EMU_LOC) {
  emu::tma(dst, map, bar, mask, {x, y, z, v, w}, loc);
}
inline uint4 load_shared(uint32_t from, EMU_LOC) { uint4 x; if (from % 16) emu::die(loc, "misaligned"); memcpy(&x, emu::at(from, 16, loc), 16); return x; }
inline void copy_async_4(uint32_t dst, const void* src, EMU_LOC) { emu::copy4(dst, src, loc); }
inline void copy_async_wait() { emu::copy_wait(); }
}  // namespace ptx
