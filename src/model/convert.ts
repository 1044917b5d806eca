/** Elements as checkpoints store them, to those that the device takes. */
import { decode16, encode16, toBf16, fromF16 } from '../bf16.ts';
import type { SafetensorsDType } from '../safetensors.ts';

/** What tensors are read as: bit patterns of bf16, or f32. */
export type ReadAs = 'bf16' | 'f32';
export interface ReadArrays {
  readonly bf16: Uint16Array<ArrayBuffer>;
  readonly f32: Float32Array<ArrayBuffer>;
}

export function arrayFor<A extends ReadAs>(as: A, length: number): ReadArrays[A] {
  return new (as === 'bf16' ? Uint16Array : Float32Array)(length) as ReadArrays[A];
}

/** Element types that weights are read from. */
export const WEIGHT_DTYPES = ['BF16', 'F16', 'F32', 'F8_E4M3'] as const;
export type WeightDType = (typeof WEIGHT_DTYPES)[number];

export function isWeightDType(dtype: SafetensorsDType): dtype is WeightDType {
  return (WEIGHT_DTYPES as readonly string[]).includes(dtype);
}

/** @param bytes a buffer of its own: views of wider elements need the alignment */
export function toF32(dtype: WeightDType, bytes: Uint8Array<ArrayBuffer>): Float32Array<ArrayBuffer> {
  const { buffer } = bytes;
  if (dtype === 'F32') return new Float32Array(buffer);
  if (dtype === 'F8_E4M3') {
    const values = new Float32Array(bytes.length);
    for (let i = 0; i < bytes.length; i++) values[i] = E4M3[bytes[i]!]!;
    return values;
  }
  const bits = new Uint16Array(buffer);
  const values = new Float32Array(bits.length);
  decode16(dtype === 'BF16' ? 'bf16' : 'f16', bits, values);
  return values;
}

/** Rounded to nearest even. @param bytes a buffer of its own, which the result may be a view of */
export function toBf16Bits(dtype: WeightDType, bytes: Uint8Array<ArrayBuffer>): Uint16Array<ArrayBuffer> {
  if (dtype === 'BF16') return new Uint16Array(bytes.buffer);
  if (dtype === 'F16') return new Uint16Array(bytes.buffer).map((bits) => toBf16(fromF16(bits)));
  return f32ToBf16(toF32(dtype, bytes));
}

export function f32ToBf16(values: Float32Array<ArrayBuffer>): Uint16Array<ArrayBuffer> {
  const bits = new Uint16Array(values.length);
  encode16('bf16', values, bits);
  return bits;
}

/** Scales of an FP8 matrix, or of several that follow one another. */
export interface BlockScales {
  /** [matrices * ceil(n / block rows), ceil(k / block columns)] */
  readonly values: Float32Array;
  /** n: rows of one matrix. */
  readonly matrixRows: number;
  /** k */
  readonly columns: number;
  /** Numbers that a scale covers: [rows, columns]. */
  readonly block: readonly [number, number];
}

/** Multiplies rows from `firstRow` by their blocks' scales, in place. */
export function applyScales(rows: Float32Array, firstRow: number, { values, matrixRows, columns, block }: BlockScales): void {
  const blockRows = Math.ceil(matrixRows / block[0]);
  const blockColumns = Math.ceil(columns / block[1]);
  for (let at = 0, row = firstRow; at < rows.length; at += columns, row++) {
    const scaleRow = (Math.floor(row / matrixRows) * blockRows + Math.floor((row % matrixRows) / block[0])) * blockColumns;
    for (let j = 0; j < columns;) {
      const scale = values[scaleRow + j / block[1]]!;
      for (const end = Math.min(j + block[1], columns); j < end; j++) rows[at + j]! *= scale;
    }
  }
}

/** Values of the 256 patterns: 4 bits of exponent (bias 7), 3 of mantissa, no infinities, NaN at 0x7f and 0xff. */
const E4M3 = Float32Array.from({ length: 256 }, (_, bits) => {
  const sign = bits & 0x80 ? -1 : 1;
  const exponent = (bits >> 3) & 15;
  const mantissa = bits & 7;
  if (exponent === 15 && mantissa === 7) return NaN;
  return sign * (exponent === 0 ? mantissa * 2 ** -9 : (1 + mantissa / 8) * 2 ** (exponent - 7));
});
