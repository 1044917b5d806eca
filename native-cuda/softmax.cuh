// The running softmax of the kernels that decode: its maximum is lazy, and moves in whole steps of base 2.
#pragma once

// By how much a score must exceed the running maximum to move it.
constexpr float LAZY_LOG2 = 8.0f;

// 2^-drop; 0 where that is below the normal numbers.
__device__ __forceinline__ float power_of_two(int drop) { return drop > 126 ? 0.0f : __int_as_float((127 - drop) << 23); }

// The running maximum after a row's largest new score; `drop` is by how many powers of two what was summed goes down. It
// starts at the first maximum, so that P is exact there.
__device__ __forceinline__ float move_maximum(float highest, float row_most, int& drop) {
  drop = 0;
  if (!(row_most > highest + LAZY_LOG2)) return highest;
  const float step = ceilf(row_most - highest);
  drop = int(fminf(step, 255.0f));
  return highest == -INFINITY ? row_most : highest + step;
}

// The power of two that a row is stored over as a partial result, `most` being its largest number: that comes into
// [2^14, 2^15), the upper end of f16's range, so that what is far smaller in the row is still a normal number. 1 where `most`
// is not finite.
__device__ __forceinline__ float scale_of(float most) {
  const int exponent = __float_as_int(most) >> 23;
  return exponent == 255 ? 1.0f : __int_as_float(max(exponent - 14, 21) << 23);
}
// 1 / scale_of(), exactly.
__device__ __forceinline__ float inverse_scale(float scale) { return __int_as_float((254 << 23) - __float_as_int(scale)); }
