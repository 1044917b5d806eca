/**
 * The design's tolerances for a decode result against the oracle. They are those of FlashMLA's own test: an element
 * passes by its absolute or its relative error, and the whole by its cosine distance; NaN and infinities must stand
 * in the same places.
 */
export interface Tolerance {
  readonly abs: number;
  readonly rel: number;
  readonly cosine?: number;
}

export const outTolerance: Tolerance = { abs: 8e-4, rel: 2.01 / 128, cosine: 5e-6 };
export const lseTolerance: Tolerance = { abs: 1e-6, rel: 8.01 / 65536 };

/** What is wrong, in words, or undefined when nothing is. */
export function compare(
  name: string,
  shape: readonly number[],
  expected: ArrayLike<number>,
  got: ArrayLike<number>,
  tolerance: Tolerance,
): string | undefined {
  const count = shape.reduce((n, d) => n * d, 1);
  if (expected.length !== count || got.length !== count) {
    return `${name}: shape [${shape.join(', ')}] has ${count} elements, expected holds ${expected.length}, got ${got.length}`;
  }
  let bad = 0;
  let special = 0;
  let worst = -1;
  let worstBy = 0;
  let product = 0;
  let squares = 0;
  for (let i = 0; i < count; i++) {
    const e = expected[i]!;
    const g = got[i]!;
    if (!Number.isFinite(e) || !Number.isFinite(g)) {
      if (Object.is(e, g)) continue;
      special++;
      if (worstBy < Infinity) [worst, worstBy] = [i, Infinity];
      continue;
    }
    product += e * g;
    squares += e * e + g * g;
    const error = Math.abs(e - g);
    // How many times the looser of the two bounds: above 1 is a failure.
    const by = Math.min(error / tolerance.abs, error / (tolerance.rel * (Math.abs(e) + 1e-6)));
    if (by > 1) bad++;
    if (by > worstBy) [worst, worstBy] = [i, by];
  }
  const problems: string[] = [];
  if (special > 0) problems.push(`${special} of ${count} NaN or infinite where the other is not`);
  if (bad > 0) problems.push(`${bad} of ${count} outside abs ${tolerance.abs} and rel ${tolerance.rel.toPrecision(3)}`);
  if (tolerance.cosine !== undefined && squares > 1e-12) {
    const distance = 1 - (2 * product) / squares;
    if (!(distance <= tolerance.cosine)) problems.push(`cosine distance ${distance.toExponential(2)} above ${tolerance.cosine}`);
  }
  if (problems.length === 0) return undefined;
  const at = worst < 0 ? '' : `; worst at [${indexText(worst, shape)}]: expected ${expected[worst]}, got ${got[worst]}`;
  return `${name}: ${problems.join('; ')}${at}`;
}

function indexText(flat: number, shape: readonly number[]): string {
  const index: number[] = [];
  for (let axis = shape.length - 1; axis >= 0; axis--) {
    index.unshift(flat % shape[axis]!);
    flat = Math.floor(flat / shape[axis]!);
  }
  return index.join(', ');
}

export interface DecodeShape {
  readonly b: number;
  readonly sQ: number;
  readonly hQ: number;
  readonly dV: number;
}

export interface DecodeValues {
  /** [b, s_q, h_q, d_v] */
  readonly out: ArrayLike<number>;
  /** [b, h_q, s_q] */
  readonly lse: ArrayLike<number>;
}

/** Both results of a decode, or only the rows of some sequences. */
export function compareDecode(
  shape: DecodeShape,
  expected: DecodeValues,
  got: DecodeValues,
  sequences?: readonly number[],
): string | undefined {
  const { b, sQ, hQ, dV } = shape;
  const pick = (values: ArrayLike<number>, each: number): ArrayLike<number> =>
    sequences === undefined || values.length !== b * each
      ? values
      : sequences.flatMap((s) => Array.from({ length: each }, (_, i) => values[s * each + i]!));
  const rows = sequences?.length ?? b;
  const problems = [
    compare('out', [rows, sQ, hQ, dV], pick(expected.out, sQ * hQ * dV), pick(got.out, sQ * hQ * dV), outTolerance),
    compare('lse', [rows, hQ, sQ], pick(expected.lse, hQ * sQ), pick(got.lse, hQ * sQ), lseTolerance),
  ].filter((p) => p !== undefined);
  return problems.length === 0 ? undefined : problems.join('\n');
}
