/** Random keys and queries for benchmarks. */
import { encode16 } from '../bf16.ts';
import type { KvDType } from '../mla.ts';
import { normals, seededRandom } from '../random.ts';

/** Prime, so that tiles meet rows of any length at ever new offsets. */
const TILE = 1_048_573;

/**
 * Bit patterns of N(0, 0.1^2) in `dtype`: one tile of random numbers, repeated to fill. Filling runs at memory
 * speed, which drawing gigabytes of random numbers would not.
 */
export function randomBits(count: number, dtype: KvDType, seed: number): Uint16Array<ArrayBuffer> {
  const out = new Uint16Array(count);
  const tile = encode16(dtype, normals(Math.min(count, TILE), 0.1, seededRandom(seed)));
  for (let i = 0; i < count; i += tile.length) out.set(tile.subarray(0, Math.min(tile.length, count - i)), i);
  return out;
}
