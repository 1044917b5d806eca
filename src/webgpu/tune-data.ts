/**
 * The numbers that tuning works on: random ones of both signs, the same every time. The cache is a stretch of them over and over, Q another. Pure.
 *
 * A stretch is a prime number of words, so that no two tokens of a cache begin at the same place in it, nor do two rows of Q. Scores come out with a
 * deviation of about 1, as a model's do: each key counts, and a number of O stays so large that one block in another's place shows.
 */
import { decode16, encode16 } from '../bf16.ts';
import { seededRandom } from '../random.ts';

/** Where a stretch is in `bits`, in bytes. */
export interface Stretch {
  readonly at: number;
  readonly bytes: number;
}

/** Words of two numbers: 1 MiB, and 128 KiB. */
const KV_WORDS = 262_139;
const Q_WORDS = 32_749;
export const KV_STRETCH: Stretch = { at: 0, bytes: 4 * KV_WORDS };
export const Q_STRETCH: Stretch = { at: KV_STRETCH.bytes, bytes: 4 * Q_WORDS };
const STEP = 1 << 14;
/** Numbers lie between this and its negative: then their deviation is 1. */
const LARGEST = Math.sqrt(3);

export class TuneData {
  /** Both stretches, as the device is to have them. */
  readonly bits: Uint16Array<ArrayBuffer>;
  /** Their values; behind each its first `width` once more, so that every row is in one piece. */
  readonly kv: Float32Array;
  readonly q: Float32Array;

  /** Works them out, in steps of a millisecond or two. */
  static *make(dtype: 'bf16' | 'f16', width: number): Generator<void, TuneData> {
    const random = seededRandom(1);
    const values = new Float32Array((KV_STRETCH.bytes + Q_STRETCH.bytes) / 2);
    const bits = new Uint16Array(values.length);
    for (let at = 0; at < values.length; at += STEP) {
      const [some, their] = [values.subarray(at, at + STEP), bits.subarray(at, at + STEP)];
      for (let i = 0; i < some.length; i++) some[i] = LARGEST * (2 * random() - 1);
      encode16(dtype, some, their);
      decode16(dtype, their, some);
      yield;
    }
    return new TuneData(bits, values, width);
  }

  private constructor(bits: Uint16Array<ArrayBuffer>, values: Float32Array, width: number) {
    this.bits = bits;
    const unrolled = ({ at, bytes }: Stretch): Float32Array => {
      const stretch = values.subarray(at / 2, (at + bytes) / 2);
      const all = new Float32Array(stretch.length + width);
      all.set(stretch);
      all.set(stretch.subarray(0, width), stretch.length);
      return all;
    };
    this.kv = unrolled(KV_STRETCH);
    this.q = unrolled(Q_STRETCH);
  }

  /** Where in `kv` the cache's `i`th number is. */
  kvAt(i: number): number {
    return i % (KV_STRETCH.bytes / 2);
  }

  /** Where in `q` the `i`th of Q is. */
  qAt(i: number): number {
    return i % (Q_STRETCH.bytes / 2);
  }
}
