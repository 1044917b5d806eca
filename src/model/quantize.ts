/** Int8 weights with a scale a row, as `Weight` of ops.ts holds them. */
import { MlaError } from '../errors.ts';

export interface Int8Rows {
  /** [rows, k / 4]: four numbers a word, the first in its lowest byte. */
  readonly data: Int32Array<ArrayBuffer>;
  /** [rows]: number i of a row stands for i * scale. */
  readonly scales: Float32Array<ArrayBuffer>;
}

/**
 * Rounds each row of [rows, k] to 255 even steps about 0, its largest magnitude the last of them.
 * @param k a multiple of 4
 * @param name what errors call it; @param firstRow what they count its rows from
 * @throws MlaError invalid-shape; invalid-argument: a number is not finite
 */
export function quantizeRows(values: Float32Array, k: number, name = 'values', firstRow = 0): Int8Rows {
  if (k % 4 !== 0 || values.length % k !== 0) {
    throw new MlaError('invalid-shape', 'cannot be quantised', { argument: name, expected: 'rows of a multiple of 4 numbers', got: `${values.length} numbers in rows of ${k}` });
  }
  const rows = values.length / k;
  const bytes = new Int8Array(values.length);
  const scales = new Float32Array(rows);
  for (let row = 0; row < rows; row++) {
    const numbers = values.subarray(row * k, (row + 1) * k);
    let most = 0;
    for (const value of numbers) {
      if (!Number.isFinite(value)) throw new MlaError('invalid-argument', 'cannot be quantised', { argument: name, expected: 'finite numbers', got: `${value} in row ${firstRow + row}` });
      most = Math.max(most, Math.abs(value));
    }
    // A row whose largest number is so small that the scale rounds to 0 becomes 0.
    const scale = Math.fround(most / 127);
    scales[row] = scale;
    if (scale > 0) for (let i = 0; i < k; i++) bytes[row * k + i] = Math.max(-127, Math.min(127, Math.round(numbers[i]! / scale)));
  }
  return { data: new Int32Array(bytes.buffer), scales };
}
