/** Classes of decode calls that one kernel configuration serves best. Pure. */
import type { DecodeOp, TuneOp } from './backend.ts';
import { MlaError, describe } from './errors.ts';
import type { TuneArgs } from './mla.ts';
import { LOADS, checkPositiveInteger, loadOf, rowClass } from './schedule.ts';
import { checkHeadDims } from './validate.ts';

export type ShapeClass = Omit<TuneOp, 'again'>;

/** The class of a decode call: that of its metadata too, which the schedule goes by. */
export function classOf({ sQ, hQ, hKv, dQk, dV, dtype, metadata }: Pick<DecodeOp, 'sQ' | 'hQ' | 'hKv' | 'dQk' | 'dV' | 'dtype' | 'metadata'>): ShapeClass {
  return { rows: rowClass((sQ * hQ) / hKv), hKv, dQk, dV, dtype, load: loadOf(metadata.cacheSeqlens) };
}

/** A class in words: the same for the same class, and what it is remembered by. */
export function shapeClass({ rows, hKv, dQk, dV, dtype, load }: ShapeClass): string {
  return `${dtype} ${dQk}/${dV}, ${rows} rows, ${hKv} KV ${hKv === 1 ? 'head' : 'heads'}, ${load} load`;
}

const CLASS = new RegExp(`^(bf16|f16) (\\d+)/(\\d+), (\\d+) rows, (\\d+) KV heads?, (${LOADS.join('|')}) load$`);

/** The class that `text` says, as `shapeClass` writes it. */
export function parseShapeClass(text: string): ShapeClass | undefined {
  const [, dtype, dQk, dV, rows, hKv, load] = CLASS.exec(text) ?? [];
  if (dtype === undefined) return undefined;
  return { dtype: dtype as ShapeClass['dtype'], dQk: Number(dQk), dV: Number(dV), rows: Number(rows), hKv: Number(hKv), load: load as ShapeClass['load'] };
}

/**
 * What is to be tuned: a class for each load, or for the one asked for.
 * @throws MlaError invalid-argument, invalid-shape, invalid-dtype
 */
export function checkTune(args: TuneArgs): TuneOp[] {
  if (typeof args !== 'object' || args === null) {
    throw new MlaError('invalid-argument', 'no arguments', { argument: 'args', expected: 'an object', got: describe(args) });
  }
  const { numQTokensPerHeadK, numHeadsK = 1, headDim = 576, headDimV = 512, dtype = 'bf16', load, again = false } = args;
  checkPositiveInteger(numQTokensPerHeadK, 'numQTokensPerHeadK');
  checkPositiveInteger(numHeadsK, 'numHeadsK');
  checkPositiveInteger(headDim, 'headDim');
  checkHeadDims(headDim, headDimV, 'headDimV');
  if (dtype !== 'bf16' && dtype !== 'f16') throw new MlaError('invalid-dtype', 'not a 16-bit type', { argument: 'dtype', expected: 'bf16 or f16', got: describe(dtype) });
  if (load !== undefined && !LOADS.includes(load)) throw new MlaError('invalid-argument', 'no such load', { argument: 'load', expected: LOADS.join(', '), got: describe(load) });
  if (typeof again !== 'boolean') throw new MlaError('invalid-argument', 'not a boolean', { argument: 'again', expected: 'true or false', got: describe(again) });
  const shape = { rows: rowClass(numQTokensPerHeadK), hKv: numHeadsK, dQk: headDim, dV: headDimV, dtype, again };
  return (load === undefined ? LOADS : [load]).map((one) => ({ ...shape, load: one }));
}
