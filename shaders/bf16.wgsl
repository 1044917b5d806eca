// 16-bit elements, packed two to a u32, in and out of f32. Core WGSL: bf16 is done on bits, f16 by the built-ins.
//
// Eight neighbouring elements travel as a vec4<u32>. `unpack_even` gives elements 0, 2, 4, 6 and `unpack_odd` 1, 3,
// 5, 7: dot products and element-wise work need no other order, and `pack` puts them back.
// The launcher puts `const IS_BF16: bool` in front.

const POSITIVE_INFINITY = 0x7f800000u;
const QUIET_NAN = 0x7fc00000u;
const LN_2 = 0.6931471805599453;

fn unpack_even(x: vec4<u32>) -> vec4<f32> {
  if (IS_BF16) { return bitcast<vec4<f32>>(x << vec4<u32>(16u)); }
  return vec4<f32>(unpack2x16float(x.x).x, unpack2x16float(x.y).x, unpack2x16float(x.z).x, unpack2x16float(x.w).x);
}

fn unpack_odd(x: vec4<u32>) -> vec4<f32> {
  if (IS_BF16) { return bitcast<vec4<f32>>(x & vec4<u32>(0xffff0000u)); }
  return vec4<f32>(unpack2x16float(x.x).y, unpack2x16float(x.y).y, unpack2x16float(x.z).y, unpack2x16float(x.w).y);
}

// On bits: a compiler may assume that x != x is never true.
fn is_nan(value: f32) -> bool { return (bitcast<u32>(value) & 0x7fffffffu) > POSITIVE_INFINITY; }

// Not every device's exp2 keeps NaN.
fn exp2_or_nan(x: vec4<f32>) -> vec4<f32> {
  return select(exp2(x), x, (bitcast<vec4<u32>>(x) & vec4<u32>(0x7fffffffu)) > vec4<u32>(POSITIVE_INFINITY));
}

// Eight packed elements with those that are NaN or infinite made zero.
fn finite_or_zero(x: vec4<u32>) -> vec4<u32> {
  let exponent = select(0x7c00u, 0x7f80u, IS_BF16);
  let low = vec4<u32>(exponent);
  let high = vec4<u32>(exponent << 16u);
  return select(vec4<u32>(), x & vec4<u32>(0xffffu), (x & low) != low) | select(vec4<u32>(), x & vec4<u32>(0xffff0000u), (x & high) != high);
}

// Bits of the natural LSE of a row, from its maximum and sum in base 2. Some devices' log2 loses NaN.
fn lse_bits(highest: f32, sum: f32) -> u32 {
  if (is_nan(sum)) { return QUIET_NAN; }
  return select(bitcast<u32>((highest + log2(sum)) * LN_2), POSITIVE_INFINITY, sum == 0.0);
}

// To nearest, ties to even; NaN stays NaN.
fn bf16_bits(value: f32) -> u32 {
  let x = bitcast<u32>(value);
  if (is_nan(value)) { return (x >> 16u) | 0x40u; }
  return (x + 0x7fffu + ((x >> 16u) & 1u)) >> 16u;
}

fn pack_pair(a: f32, b: f32) -> u32 {
  if (IS_BF16) { return bf16_bits(a) | (bf16_bits(b) << 16u); }
  return pack2x16float(vec2<f32>(a, b));
}

fn pack(even: vec4<f32>, odd: vec4<f32>) -> vec4<u32> {
  return vec4<u32>(pack_pair(even.x, odd.x), pack_pair(even.y, odd.y), pack_pair(even.z, odd.z), pack_pair(even.w, odd.w));
}
