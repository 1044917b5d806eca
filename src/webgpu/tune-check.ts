/**
 * Whether what a kernel gave while it was tuned is right: which rows are looked at, what they ought to be, and by how much they may differ.
 * A compiler's mistake that has a kernel skip work makes it quick. Pure.
 */
import { attendRow, type AttendedRow, type Numbers } from '../attend-row.ts';
import type { DecodeOp } from '../backend.ts';
import { isNearLse, isNearOut } from '../bounds.ts';
import type { TuneData } from './tune-data.ts';
import { TUNE_BLOCK, type TuneLoad } from './tune-load.ts';

/** Multiply-adds that are made for the rows of one load: some 20 ms, in double precision. */
const MOST_PRODUCTS = 2e7;

/** A refusal for wrong results begins so. */
export const WRONG = 'wrong results';

/** Of what is tuned, with one query token. */
export type CheckShape = Pick<DecodeOp, 'hQ' | 'hKv' | 'dQk' | 'dV'>;

/** A row of the result. */
export interface Row {
  readonly sequence: number;
  readonly head: number;
}

/** What it ought to be. */
export interface RightRow extends Row, AttendedRow {
  /** Tokens of the sequence. */
  readonly length: number;
}

/** Of the rows that are looked at: of the load's first call, and of the one for checking. */
export interface Right {
  readonly load: readonly RightRow[];
  readonly check: readonly RightRow[];
}

/** Heads of a sequence that are looked at. */
const HEADS = 3;

/** The `n`th head to look at, the last one first: a prime number apart, so that few of them are in all parts of a tile of rows. */
function headAt({ hQ }: CheckShape, n: number): number {
  return (hQ - 1 + 53 * n) % hQ;
}

/** Of every sequence some heads, others each time. */
export function rowsOfAll(shape: CheckShape, { cacheSeqlens }: TuneLoad): Row[] {
  return [...cacheSeqlens.keys()].flatMap((sequence) =>
    [...new Set(Array.from({ length: HEADS }, (_, i) => headAt(shape, sequence * HEADS + i)))].map((head) => ({ sequence, head })));
}

/** Of the shortest sequence and of the longest some heads, as far as they cost little. Where all are long, still one. */
export function rowsOfFew(shape: CheckShape, { cacheSeqlens }: TuneLoad): Row[] {
  const byLength = [...cacheSeqlens.keys()].sort((a, b) => cacheSeqlens[a]! - cacheSeqlens[b]!);
  const sequences = [...new Set([byLength[0]!, byLength.at(-1)!])];
  const rows: Row[] = [];
  let products = 0;
  for (let i = 0; i < HEADS; i++) {
    for (const sequence of sequences) {
      const row = { sequence, head: headAt(shape, rows.length) };
      const more = cacheSeqlens[sequence]! * (shape.dQk + shape.dV);
      if (rows.some((other) => other.sequence === row.sequence && other.head === row.head) || (rows.length > 0 && products + more > MOST_PRODUCTS)) continue;
      products += more;
      rows.push(row);
    }
  }
  return rows;
}

/** What of both is looked at. Stops at each block, so that its caller can give the thread back. */
export function* rightResults(shape: CheckShape, load: TuneLoad, check: TuneLoad, data: TuneData): Generator<void, Right> {
  return { load: yield* rightRows(shape, load, data, rowsOfFew(shape, load)), check: yield* rightRows(shape, check, data, rowsOfAll(shape, check)) };
}

/** What rows of a load's first call ought to be, in double precision. Stops likewise. */
export function* rightRows(shape: CheckShape, load: TuneLoad, data: TuneData, rows: readonly Row[]): Generator<void, RightRow[]> {
  const right: RightRow[] = [];
  for (const row of rows) right.push(yield* rightRow(shape, load, data, row));
  return right;
}

function* rightRow(shape: CheckShape, { cacheSeqlens, maxBlocksPerSeq, blockTables }: TuneLoad, data: TuneData, { sequence, head }: Row): Generator<void, RightRow> {
  const { hQ, hKv, dQk } = shape;
  const length = cacheSeqlens[sequence]!;
  const headKv = Math.floor((head * hKv) / hQ);
  const key = (token: number): Numbers => {
    const inBlock = token % TUNE_BLOCK;
    const block = blockTables[0]![sequence * maxBlocksPerSeq + (token - inBlock) / TUNE_BLOCK]!;
    return { values: data.kv, at: data.kvAt(((block * TUNE_BLOCK + inBlock) * hKv + headKv) * dQk) };
  };
  return { sequence, head, length, ...(yield* attendRow(shape, { values: data.q, at: data.qAt((sequence * hQ + head) * dQk) }, length, key)) };
}

/** What is wrong with a row, in words; undefined where nothing is. */
export function wrongness(right: RightRow, out: Float32Array, lse: number): string | undefined {
  const { head, length } = right;
  const short = (value: number): string => `${Number(value.toPrecision(6))}`;
  const say = (what: string, got: number, is: number): string => `${WRONG}: ${what} ${short(got)} where ${short(is)} is right (row ${head} of a sequence of ${length} tokens)`;
  if (!isNearLse(lse, right.lse)) return say('LSE', lse, right.lse);
  const at = right.out.findIndex((value, d) => !isNearOut(out[d]!, value));
  return at < 0 ? undefined : say(`out[${at}]`, out[at]!, right.out[at]!);
}
