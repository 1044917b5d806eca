/** A decode result against the float64 reference, by the tolerances of FlashMLA's own test. */
import { widenOne, type ReferenceResult } from './reference.ts';

export const OUT_TOLERANCE = { abs: 8e-4, rel: 2.01 / 128 } as const;
export const LSE_TOLERANCE = { abs: 1e-6, rel: 8.01 / 65536 } as const;
export const COSINE_TOLERANCE = 5e-6;

export interface CheckReport {
  readonly pass: boolean;
  /** Rows (sequence, query token, head) compared, and those the result has. */
  readonly rows: number;
  readonly rowsInAll: number;
  /** Of those compared: rows with nothing to attend to. */
  readonly emptyRows: number;
  /** Largest absolute differences. */
  readonly outError: number;
  readonly lseError: number;
  readonly cosine: number;
  /** The first thing that is out of bounds, in words. */
  readonly fault?: string;
}

/** Gathers rows; `report` judges them. */
export class Checker {
  #rows = 0;
  #emptyRows = 0;
  #outError = 0;
  #lseError = 0;
  #product = 0;
  #squares = 0;
  #fault: string | undefined;

  /** @param out [d_v] bits of bf16 */
  add(name: string, out: Uint16Array, lse: number, want: ReferenceResult): void {
    this.#rows++;
    if (want.lse === Infinity) this.#emptyRows++;
    for (let d = 0; d < want.out.length; d++) {
      const got = widenOne(out[d]!);
      const expected = want.out[d]!;
      const error = difference(got, expected);
      this.#outError = Math.max(this.#outError, error);
      this.#product += got * expected;
      this.#squares += got * got + expected * expected;
      if (!within(error, expected, OUT_TOLERANCE)) this.#fault ??= `out of ${name}, column ${d}: ${got}, expected ${expected}`;
    }
    const error = difference(lse, want.lse);
    this.#lseError = Math.max(this.#lseError, error);
    if (!within(error, want.lse, LSE_TOLERANCE)) this.#fault ??= `lse of ${name}: ${lse}, expected ${want.lse}`;
  }

  report(rowsInAll: number): CheckReport {
    const cosine = this.#squares === 0 ? 0 : Math.max(0, 1 - (2 * this.#product) / this.#squares);
    if (!(cosine <= COSINE_TOLERANCE)) this.#fault ??= `cosine distance of out: ${cosine}`;
    return {
      pass: this.#fault === undefined, rows: this.#rows, rowsInAll, emptyRows: this.#emptyRows,
      outError: this.#outError, lseError: this.#lseError, cosine,
      ...(this.#fault !== undefined && { fault: this.#fault }),
    };
  }
}

/** Zero where both are the same infinity; infinite where one is NaN or the other infinite. */
function difference(got: number, expected: number): number {
  if (Object.is(got, expected)) return 0;
  const error = Math.abs(got - expected);
  return Number.isNaN(error) ? Infinity : error;
}

function within(error: number, expected: number, { abs, rel }: { abs: number; rel: number }): boolean {
  return error <= abs || (Number.isFinite(error) && error <= rel * Math.abs(expected));
}
