/** Numbers as bits: what a reader types, an f32's fields, and what rounding to bf16 makes of them. Pure. */
import { fromBf16, toBf16 } from '../../src/bf16.ts';

export interface RoundedNumber {
  /** As f32 has it. */
  readonly value: number;
  readonly f32Bits: number;
  readonly bits: number;
  readonly rounded: number;
  /** rounded - value; NaN where there is no such thing. */
  readonly error: number;
}

const f32 = new Float32Array(1);
const u32 = new Uint32Array(f32.buffer);

/** @throws Error in words for the reader */
export function parseNumber(text: string): number {
  const word = text.trim().replace(/−/g, '-').toLowerCase();
  if (word === 'nan') return NaN;
  const infinite = /^([+-]?)(inf|infinity)$/.exec(word);
  if (infinite) return infinite[1] === '-' ? -Infinity : Infinity;
  const value = Number(word);
  if (word === '' || Number.isNaN(value)) throw new Error(`“${text.slice(0, 20)}” is not a number. Write 0.1, -3e-5, nan or infinity.`);
  return value;
}

export function rounded(input: number): RoundedNumber {
  f32[0] = input;
  const [value, f32Bits] = [f32[0]!, u32[0]!];
  const bits = toBf16(value);
  const back = fromBf16(bits);
  return { value, f32Bits, bits, rounded: back, error: Object.is(back, value) ? 0 : back - value };
}

/** Value of an f32's bits. */
export function valueOfBits(f32Bits: number): number {
  u32[0] = f32Bits;
  return f32[0]!;
}

/** Two 16-bit elements in a word, as the cache holds them. */
export function packed(low: number, high: number): number {
  return ((high << 16) | low) >>> 0;
}

export function hex(word: number, digits = 8): string {
  return `0x${word.toString(16).padStart(digits, '0')}`;
}

/** Bits from the highest down. */
export function binary(word: number, width: number): string {
  return word.toString(2).padStart(width, '0');
}
