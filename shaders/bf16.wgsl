// 16-bit elements, packed two to a u32, in and out of f32. Core WGSL: bf16 is done on bits, f16 by the built-ins.
// The launcher puts `const IS_BF16: bool` in front.

const POSITIVE_INFINITY = 0x7f800000u;
const QUIET_NAN = 0x7fc00000u;
const LN_2 = 0.6931471805599453;
const LOWEST = -3.4028234e38;

fn unpack_low(x: u32) -> f32 {
  // A shift by 16, as a product: software adapters shift lane by lane.
  if (IS_BF16) { return bitcast<f32>(x * 65536u); }
  return unpack2x16float(x).x;
}

fn unpack_high(x: u32) -> f32 {
  if (IS_BF16) { return bitcast<f32>(x & 0xffff0000u); }
  return unpack2x16float(x).y;
}

// On bits: a compiler may assume that x != x is never true.
fn is_nan(value: f32) -> bool { return (bitcast<u32>(value) & 0x7fffffffu) > POSITIVE_INFINITY; }

// Not every device's exp2 keeps NaN.
fn exp2_or_nan(x: vec4<f32>) -> vec4<f32> {
  return select(exp2(x), x, (bitcast<vec4<u32>>(x) & vec4<u32>(0x7fffffffu)) > vec4<u32>(POSITIVE_INFINITY));
}

// Two packed elements with those that are NaN or infinite made zero.
fn finite_or_zero(x: u32) -> u32 {
  let exponent = select(0x7c00u, 0x7f80u, IS_BF16);
  let low = select(x & 0xffffu, 0u, (x & exponent) == exponent);
  let high = select(x & 0xffff0000u, 0u, ((x >> 16u) & exponent) == exponent);
  return low | high;
}

// Bits of the natural LSE of a row, from what its weights are powers of 2 from on, and their sum. Some devices' log2 loses NaN.
fn lse_bits(reference: f32, sum: f32) -> u32 {
  if (is_nan(sum)) { return QUIET_NAN; }
  return select(bitcast<u32>((reference + log2(sum)) * LN_2), POSITIVE_INFINITY, sum == 0.0);
}

// The same in base 2, of a partial result: one without visible keys weighs nothing in the merge; a NaN must reach it.
fn partial_lse(reference: f32, sum: f32) -> f32 {
  if (is_nan(sum)) { return sum; }
  return select(reference + log2(sum), LOWEST, sum == 0.0);
}

// To nearest, ties to even; NaN stays NaN.
fn bf16_bits(value: f32) -> u32 {
  let x = bitcast<u32>(value);
  if (is_nan(value)) { return (x >> 16u) | 0x40u; }
  return (x + 0x7fffu + ((x >> 16u) & 1u)) >> 16u;
}

fn pack(low: f32, high: f32) -> u32 {
  if (IS_BF16) { return bf16_bits(low) | (bf16_bits(high) << 16u); }
  return pack2x16float(vec2<f32>(low, high));
}
