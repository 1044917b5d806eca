/** Both 16-bit types against formulations that share nothing with src/bf16.ts: powers of two, and neighbours by distance. */
import fc from 'fast-check';
import { describe, expect, test } from 'vitest';
import { decode16, encode16, fromBf16, fromF16, toBf16, toF16 } from '../src/bf16.ts';

interface Format {
  readonly name: 'bf16' | 'f16';
  readonly exponentBits: number;
  readonly mantissaBits: number;
  readonly to: (value: number) => number;
  readonly from: (bits: number) => number;
}

const formats: readonly Format[] = [
  { name: 'bf16', exponentBits: 8, mantissaBits: 7, to: toBf16, from: fromBf16 },
  { name: 'f16', exponentBits: 5, mantissaBits: 10, to: toF16, from: fromF16 },
];

/** The definition of an IEEE format: sign, exponent, mantissa, by arithmetic. */
function valueOf({ exponentBits, mantissaBits }: Format, bits: number): number {
  const sign = bits >= 32768 ? -1 : 1;
  const exponent = Math.floor((bits % 32768) / 2 ** mantissaBits);
  const mantissa = (bits % 2 ** mantissaBits) / 2 ** mantissaBits;
  const bias = 2 ** (exponentBits - 1) - 1;
  if (exponent === 2 ** exponentBits - 1) return mantissa === 0 ? sign * Infinity : NaN;
  return exponent === 0 ? sign * mantissa * 2 ** (1 - bias) : sign * (1 + mantissa) * 2 ** (exponent - bias);
}

/** Bits of the nearest value, ties to the even one, found by bisection over the finite values and the overflow threshold. */
function nearest(format: Format, value: number): number {
  const sign = value < 0 || Object.is(value, -0) ? 32768 : 0;
  const size = Math.abs(value);
  const infinity = (2 ** format.exponentBits - 1) * 2 ** format.mantissaBits;
  // What would follow the largest finite value, for rounding's sake.
  const at = (bits: number): number => (bits === infinity ? 2 * valueOf(format, infinity - 2 ** format.mantissaBits) : valueOf(format, bits));
  let low = 0;
  let high = infinity;
  if (size >= at(infinity)) return sign + infinity;
  while (high - low > 1) {
    const middle = Math.floor((low + high) / 2);
    if (at(middle) <= size) low = middle;
    else high = middle;
  }
  const [down, up] = [size - at(low), at(high) - size];
  return sign + (down < up || (down === up && low % 2 === 0) ? low : high);
}

for (const format of formats) {
  const { name, to, from } = format;
  const infinity = (2 ** format.exponentBits - 1) * 2 ** format.mantissaBits;
  const isNaNBits = (bits: number): boolean => bits % 32768 > infinity;

  describe(name, () => {
    test('all 65536 patterns decode as defined, and come back', () => {
      for (let bits = 0; bits < 65536; bits++) {
        const value = from(bits);
        if (!Object.is(value, valueOf(format, bits))) throw new Error(`${bits.toString(16)}: ${value}, not ${valueOf(format, bits)}`);
        const back = to(value);
        if (isNaNBits(bits) ? !isNaNBits(back) : back !== bits) throw new Error(`${bits.toString(16)} came back as ${back.toString(16)}`);
      }
    });

    test('arrays give what single values give, on all patterns', () => {
      const all = Uint16Array.from({ length: 65536 }, (_, i) => i);
      const values = decode16(name, all);
      for (let bits = 0; bits < 65536; bits++) if (!Object.is(values[bits], from(bits))) throw new Error(bits.toString(16));
      const back = encode16(name, values);
      for (let bits = 0; bits < 65536; bits++) {
        if (isNaNBits(bits) ? !isNaNBits(back[bits]!) : back[bits] !== bits) throw new Error(`${bits.toString(16)} came back as ${back[bits]!.toString(16)}`);
      }
    });

    test('halfway between any two neighbours goes to the even one, beside it to the nearer', () => {
      const f32 = new Float32Array(1);
      const u32 = new Uint32Array(f32.buffer);
      for (let bits = 0; bits < infinity - 1; bits++) {
        const [a, b] = [valueOf(format, bits), valueOf(format, bits + 1)];
        const middle = (a + b) / 2;
        f32[0] = middle;
        // The midpoint of two subnormals of bf16 is an f32 too; anything else would not test a tie.
        if (f32[0] !== middle) throw new Error(`no f32 between ${a} and ${b}`);
        const even = bits % 2 === 0 ? bits : bits + 1;
        u32[0]!--;
        const below = f32[0]!;
        u32[0]! += 2;
        const above = f32[0]!;
        for (const [value, want] of [[middle, even], [below, bits], [above, bits + 1]] as const) {
          if (to(value) !== want || to(-value) !== want + 32768) throw new Error(`${value}: ${to(value).toString(16)}, not ${want.toString(16)}`);
        }
      }
    });

    test('overflow rounds to infinity at half a step past the largest, and not before', () => {
      const largest = valueOf(format, infinity - 1);
      const step = largest - valueOf(format, infinity - 2);
      const tie = Math.fround(largest + step / 2);
      expect(to(largest)).toBe(infinity - 1);
      expect(to(tie)).toBe(infinity);
      expect(to(-tie)).toBe(infinity + 32768);
      expect(to(largest + step / 4)).toBe(infinity - 1);
      expect(to(Infinity)).toBe(infinity);
      expect(to(-Infinity)).toBe(infinity + 32768);
    });

    test('zeros keep their sign, tiny values round to zero or the smallest', () => {
      const smallest = valueOf(format, 1);
      expect([to(0), to(-0)]).toEqual([0, 32768]);
      if (name === 'f16') {
        expect(to(smallest / 2)).toBe(0);
        expect(to(Math.fround(smallest * 0.5000001))).toBe(1);
        expect(to(2 ** -149)).toBe(0);
      }
      expect(to(-smallest)).toBe(32769);
    });

    test('NaN stays NaN, whatever its payload', () => {
      const words = new Uint32Array([0x7f800001, 0x7fc00000, 0x7fffffff, 0xff800001, 0xffc00001, 0x7f808000, 0x7f80ffff]);
      for (const bits of encode16(name, new Float32Array(words.buffer))) expect(isNaNBits(bits), bits.toString(16)).toBe(true);
      expect(isNaNBits(to(NaN))).toBe(true);
    });

    test('any f32 goes to the nearest', () => {
      const everyFloat = fc.integer({ min: 0, max: 0xffffffff }).map((word) => new Float32Array(Uint32Array.of(word).buffer)[0]!);
      fc.assert(
        fc.property(fc.oneof(everyFloat, fc.float({ noNaN: true, min: -1, max: 1 })), (value) => {
          if (Number.isNaN(value)) return isNaNBits(to(value));
          return to(value) === nearest(format, value) && encode16(name, Float32Array.of(value))[0] === nearest(format, value);
        }),
        { numRuns: 5000 },
      );
    });

    test('destinations that are too short are refused', () => {
      expect(() => encode16(name, new Float32Array(4), new Uint16Array(2))).toThrow(expect.objectContaining({ code: 'invalid-shape', argument: 'dst' }));
      expect(() => decode16(name, new Uint16Array(4), new Float32Array(3))).toThrow(expect.objectContaining({ code: 'invalid-shape', argument: 'dst' }));
    });

    test('destinations may be longer than sources, and parts of larger arrays', () => {
      const from32 = Float32Array.of(9, 1, 2, 9).subarray(1, 3);
      const to16 = new Uint16Array(5).subarray(1);
      expect(encode16(name, from32, to16)).toBe(to16);
      expect([...to16]).toEqual([to(1), to(2), 0, 0]);
      expect([...decode16(name, to16.subarray(0, 2), new Float32Array(4).subarray(1))]).toEqual([1, 2, 0]);
    });
  });
}
