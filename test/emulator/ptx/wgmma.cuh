// Emulated: see ../README.md.
#pragma once
#include "emu.h"

namespace ptx {
inline uint64_t matrix_descriptor(uint32_t address, uint32_t leading, uint32_t stride) {
  return uint64_t((address & 0x3ffff) >> 4) | uint64_t(leading >> 4) << 16 | uint64_t(stride >> 4) << 32 | uint64_t(1) << 62;
}
inline uint64_t matrix_descriptor_plain(uint32_t address, uint32_t leading, uint32_t stride) {
  return uint64_t((address & 0x3ffff) >> 4) | uint64_t(leading >> 4) << 16 | uint64_t(stride >> 4) << 32;
}
inline void wgmma_fence(EMU_LOC) { emu::warp_sync("wgmma.fence", loc); }
inline void wgmma_commit(EMU_LOC) { emu::wgmma_commit(loc); }
template <int Pending> inline void wgmma_wait(EMU_LOC) { emu::wgmma_wait(Pending, loc); }

struct Bf16 {};
struct F16 {};
inline bool emu_f16(Bf16) { return false; }
inline bool emu_f16(F16) { return true; }
inline float emu_value(Bf16, uint16_t x) { return emu::bf16(x); }
inline float emu_value(F16, uint16_t x) { return emu::f16(x); }

// Any: A and B in shared memory, N columns.
template <int N, bool TransA, bool TransB, class T>
inline void wgmma_shared(T type, float (&d)[N / 2], uint64_t a, uint64_t b, int accumulate, EMU_LOC) {
  emu::Wgmma w{};
  w.d = d, w.n = N, w.a = a, w.b = b, w.ta = TransA, w.tb = TransB, w.f16 = emu_f16(type), w.accumulate = accumulate;
  emu::wgmma(w, loc);
}
// A in registers.
template <int N, bool TransB, class T>
inline void wgmma_registers(T type, float (&d)[N / 2], uint32_t a0, uint32_t a1, uint32_t a2, uint32_t a3, uint64_t b, int accumulate, EMU_LOC) {
  const emu::Slot* all = emu::warp_exchange("wgmma A", emu::Slot{{a0, a1, a2, a3}}, loc);
  emu::Wgmma w{};
  w.d = d, w.n = N, w.b = b, w.tb = TransB, w.f16 = emu_f16(type), w.accumulate = accumulate, w.registers = true;
  const int lane = emu_lane();
  for (int r = 0; r < 2; r++) {
    for (int k = 0; k < 16; k++) w.rows[r][k] = emu_value(type, all[lane / 4 * 4 + k % 8 / 2].v[r + k / 8 * 2] >> k % 2 * 16);
  }
  emu::wgmma(w, loc);
}
#define EMU_A a, b, accumulate, loc
template <class T> inline void wgmma_64x64_registers(T t, float (&d)[32], uint32_t a0, uint32_t a1, uint32_t a2, uint32_t a3, uint64_t b, int accumulate, EMU_LOC) {
  wgmma_registers<64, false>(t, d, a0, a1, a2, a3, b, accumulate, loc);
}
template <class T> inline void wgmma_64x64_shared(T t, float (&d)[32], uint64_t a, uint64_t b, int accumulate, EMU_LOC) { wgmma_shared<64, false, false>(t, d, EMU_A); }
template <class T> inline void wgmma_64x128_shared(T t, float (&d)[64], uint64_t a, uint64_t b, int accumulate, EMU_LOC) { wgmma_shared<128, false, true>(t, d, EMU_A); }
template <class T> inline void wgmma_64x16(T t, float (&d)[8], uint64_t a, uint64_t b, int accumulate, EMU_LOC) { wgmma_shared<16, false, false>(t, d, EMU_A); }
template <class T> inline void wgmma_64x16_transposed(T t, float (&d)[8], uint64_t a, uint64_t b, int accumulate, EMU_LOC) { wgmma_shared<16, true, false>(t, d, EMU_A); }
#undef EMU_A

// ldmatrix and stmatrix. A warp-wide instruction: nobody goes on before every lane is through.
inline void emu_load_matrix(uint32_t address, uint32_t (&a)[4], const emu::Loc& loc) {
  const emu::Slot* all = emu::warp_exchange("ldmatrix", emu::Slot{{address}}, loc);
  const int lane = emu_lane();
  for (int m = 0; m < 4; m++) {
    uint16_t e[2];
    for (int j = 0; j < 2; j++) {
      const int row = lane / 4, column = lane % 4 * 2 + j;
      const uint32_t at = all[m * 8 + row].v[0];
      if (at % 16) emu::die(loc, "ldmatrix: misaligned %u", at);
      memcpy(&e[j], emu::at(at, 16, loc) + column * 2, 2);
    }
    a[m] = e[0] | uint32_t(e[1]) << 16;
  }
  emu::warp_sync("ldmatrix end", loc);
}
template <bool Transposed> inline void emu_store_matrix(uint32_t address, uint32_t a0, uint32_t a1, uint32_t a2, uint32_t a3, const emu::Loc& loc) {
  emu::maybe_yield();
  const emu::Slot* all = emu::warp_exchange("stmatrix", emu::Slot{{address}}, loc);
  const int lane = emu_lane();
  const uint32_t a[4] = {a0, a1, a2, a3};
  for (int m = 0; m < 4; m++) {
    for (int j = 0; j < 2; j++) {
      int row = lane / 4, column = lane % 4 * 2 + j;
      if (Transposed) std::swap(row, column);
      const uint32_t at = all[m * 8 + row].v[0];
      if (at % 16) emu::die(loc, "stmatrix: misaligned %u", at);
      const uint16_t e = a[m] >> j * 16;
      memcpy(emu::at(at, 16, loc) + column * 2, &e, 2);
    }
  }
  emu::warp_sync("stmatrix end", loc);
}
inline void load_matrix_x4(uint32_t address, uint32_t& a0, uint32_t& a1, uint32_t& a2, uint32_t& a3, EMU_LOC) {
  uint32_t a[4];
  emu_load_matrix(address, a, loc);
  a0 = a[0], a1 = a[1], a2 = a[2], a3 = a[3];
}
inline void store_matrix_x4(uint32_t address, uint32_t a0, uint32_t a1, uint32_t a2, uint32_t a3, EMU_LOC) { emu_store_matrix<false>(address, a0, a1, a2, a3, loc); }
inline void store_matrix_x4_transposed(uint32_t address, uint32_t a0, uint32_t a1, uint32_t a2, uint32_t a3, EMU_LOC) { emu_store_matrix<true>(address, a0, a1, a2, a3, loc); }
inline uint32_t transpose_matrix(uint32_t x, EMU_LOC) {
  const emu::Slot* all = emu::warp_exchange("movmatrix", emu::Slot{{x}}, loc);
  const int lane = emu_lane(), column = lane / 4;  // of x
  uint32_t y = 0;
  for (int j = 0; j < 2; j++) {
    const int row = lane % 4 * 2 + j;
    y |= (all[row * 4 + column / 2].v[0] >> column % 2 * 16 & 0xffff) << j * 16;
  }
  return y;
}

inline uint32_t pack(Bf16, float low, float high) { return emu::to_bf16(low) | uint32_t(emu::to_bf16(high)) << 16; }
inline uint32_t pack(F16, float low, float high) { return emu::to_f16(low) | uint32_t(emu::to_f16(high)) << 16; }
inline float2 unpack_f16(uint32_t x) { return {emu::f16(x), emu::f16(x >> 16)}; }
inline uint32_t exponent_mask(Bf16) { return 0x7f80; }
inline uint32_t exponent_mask(F16) { return 0x7c00; }
template <class T> inline uint4 finite_or_zero(T type, uint4 x) {
  const uint32_t low = exponent_mask(type), high = low << 16;
  auto word = [&](uint32_t w) { return ((w & low) == low ? 0 : w & 0xffff) | ((w & high) == high ? 0 : w & 0xffff0000); };
  return make_uint4(word(x.x), word(x.y), word(x.z), word(x.w));
}
inline float exp2_fast(float x) { const float y = exp2f(x); return y < 0x1p-126f ? 0.0f : y; }
}  // namespace ptx
