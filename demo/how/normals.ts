/** Random numbers of N(0, 1) from a seed: the same everywhere. */
import { seededRandom } from '../../src/random.ts';

/** An endless supply, by Box and Muller: `count` numbers a call. */
export function normalsFrom(seed: number): (count: number) => Float64Array {
  const random = seededRandom(seed);
  return (count) => Float64Array.from({ length: count }, () => Math.sqrt(-2 * Math.log(1 - random())) * Math.cos(2 * Math.PI * random()));
}
