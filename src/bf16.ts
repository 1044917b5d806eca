/**
 * Conversions between f32 and the two 16-bit element types, done on bits.
 *
 * Rounding is to nearest, ties to even; NaN stays NaN (quieted, sign and upper payload kept); bf16 overflow
 * becomes infinity as IEEE rounding demands.
 */
import { MlaError } from './errors.ts';

const f32 = new Float32Array(1);
const u32 = new Uint32Array(f32.buffer);

/** Bits of `value` rounded to bf16. */
export function toBf16(value: number): number {
  f32[0] = value;
  return bf16FromBits(u32[0]!);
}

function bf16FromBits(x: number): number {
  if ((x & 0x7fffffff) > 0x7f800000) return (x >>> 16) | 0x40;
  return ((x + 0x7fff + ((x >>> 16) & 1)) >>> 16) & 0xffff;
}

/** Value of bf16 `bits`. */
export function fromBf16(bits: number): number {
  u32[0] = bits << 16;
  return f32[0]!;
}

/** Bits of `value` rounded to IEEE half precision, subnormals kept. */
export function toF16(value: number): number {
  f32[0] = value;
  const x = u32[0]!;
  const sign = (x >>> 16) & 0x8000;
  const abs = x & 0x7fffffff;
  if (abs > 0x7f800000) return sign | 0x7e00 | ((abs >>> 13) & 0x1ff);
  if (abs >= 0x477ff000) return sign | 0x7c00;
  if (abs >= 0x38800000) {
    // Normal: rebias the exponent by 127 - 15 = 112, then round 23 mantissa bits to 10.
    const r = abs - (112 << 23);
    return sign | ((r + 0xfff + ((r >>> 13) & 1)) >>> 13);
  }
  // Subnormal: the value in units of 2^-24, rounded to nearest even.
  f32[0] = value;
  const units = Math.abs(f32[0]!) * 16777216;
  const down = Math.floor(units);
  const rest = units - down;
  return sign | (rest > 0.5 || (rest === 0.5 && (down & 1) === 1) ? down + 1 : down);
}

/** Value of IEEE half precision `bits`. */
export function fromF16(bits: number): number {
  const sign = bits & 0x8000 ? -1 : 1;
  const exponent = (bits >>> 10) & 0x1f;
  const mantissa = bits & 0x3ff;
  if (exponent === 0) return sign * mantissa * 2 ** -24;
  if (exponent === 31) return mantissa ? NaN : sign * Infinity;
  return sign * (1 + mantissa / 1024) * 2 ** (exponent - 15);
}

/** f32 -> 16-bit elements, rounded. `dst` may be longer than `src`. @throws MlaError invalid-shape: `dst` is shorter */
export function encode16(dtype: 'bf16' | 'f16', src: Float32Array, dst: Uint16Array = new Uint16Array(src.length)): Uint16Array {
  checkRoom(src, dst);
  if (dtype === 'bf16') {
    const bits = new Uint32Array(src.buffer, src.byteOffset, src.length);
    for (let i = 0; i < bits.length; i++) dst[i] = bf16FromBits(bits[i]!);
  } else {
    for (let i = 0; i < src.length; i++) dst[i] = toF16(src[i]!);
  }
  return dst;
}

/** 16-bit elements -> f32, exact. `dst` may be longer than `src`. @throws MlaError invalid-shape: `dst` is shorter */
export function decode16(dtype: 'bf16' | 'f16', src: Uint16Array, dst: Float32Array = new Float32Array(src.length)): Float32Array {
  checkRoom(src, dst);
  if (dtype === 'bf16') {
    const bits = new Uint32Array(dst.buffer, dst.byteOffset, dst.length);
    for (let i = 0; i < src.length; i++) bits[i] = src[i]! << 16;
  } else {
    for (let i = 0; i < src.length; i++) dst[i] = fromF16(src[i]!);
  }
  return dst;
}

function checkRoom(src: ArrayLike<number>, dst: ArrayLike<number>): void {
  if (dst.length < src.length) {
    throw new MlaError('invalid-shape', 'too short', { argument: 'dst', expected: `at least ${src.length} elements`, got: `${dst.length}` });
  }
}
