/** Classes of decode calls that one kernel configuration serves best. Pure. */
import type { DecodeShape, TuneOp } from './backend.ts';
import { MlaError, describe } from './errors.ts';
import type { TuneArgs } from './mla.ts';
import { checkPositiveInteger, rowClass } from './schedule.ts';
import { checkHeadDims } from './validate.ts';

export type ShapeClass = Omit<TuneOp, 'again'>;

/** The class of a decode call. */
export function classOf({ sQ, hQ, hKv, dQk, dV, dtype }: Omit<DecodeShape, 'b' | 'blockSize'>): ShapeClass {
  return { rows: rowClass((sQ * hQ) / hKv), hKv, dQk, dV, dtype };
}

/** A class in words: the same for the same class, and what it is remembered by. */
export function shapeClass({ rows, hKv, dQk, dV, dtype }: ShapeClass): string {
  return `${dtype} ${dQk}/${dV}, ${rows} rows, ${hKv} KV ${hKv === 1 ? 'head' : 'heads'}`;
}

/** The class that `text` says, as `shapeClass` writes it. */
export function parseShapeClass(text: string): ShapeClass | undefined {
  const [, dtype, dQk, dV, rows, hKv] = /^(bf16|f16) (\d+)\/(\d+), (\d+) rows, (\d+) KV heads?$/.exec(text) ?? [];
  return dtype === undefined ? undefined : { dtype: dtype as ShapeClass['dtype'], dQk: Number(dQk), dV: Number(dV), rows: Number(rows), hKv: Number(hKv) };
}

/** @throws MlaError invalid-argument, invalid-shape, invalid-dtype */
export function checkTune(args: TuneArgs): TuneOp {
  if (typeof args !== 'object' || args === null) {
    throw new MlaError('invalid-argument', 'no arguments', { argument: 'args', expected: 'an object', got: describe(args) });
  }
  const { numQTokensPerHeadK, numHeadsK = 1, headDim = 576, headDimV = 512, dtype = 'bf16', again = false } = args;
  checkPositiveInteger(numQTokensPerHeadK, 'numQTokensPerHeadK');
  checkPositiveInteger(numHeadsK, 'numHeadsK');
  checkPositiveInteger(headDim, 'headDim');
  checkHeadDims(headDim, headDimV, 'headDimV');
  if (dtype !== 'bf16' && dtype !== 'f16') throw new MlaError('invalid-dtype', 'not a 16-bit type', { argument: 'dtype', expected: 'bf16 or f16', got: describe(dtype) });
  if (typeof again !== 'boolean') throw new MlaError('invalid-argument', 'not a boolean', { argument: 'again', expected: 'true or false', got: describe(again) });
  return { rows: rowClass(numQTokensPerHeadK), hKv: numHeadsK, dQk: headDim, dV: headDimV, dtype, again };
}
