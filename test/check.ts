/** Steps that the suites share: run a case, check it against the oracle, and catch a refusal. */
import { expect } from 'vitest';
import { decode16 } from '../src/bf16.ts';
import { MlaError, type MlaErrorCode } from '../src/errors.ts';
import type { DecodeArgs, DecodeResult, Mla } from '../src/mla.ts';
import { decodeArgs, type DecodeCase } from './cases.ts';
import { compareDecode, type DecodeValues } from './compare.ts';
import { referenceDecode, type ReferenceResult } from './reference.ts';

/** Both results, read and given back. */
export async function take({ out, lse }: DecodeResult): Promise<{ out: Float32Array; lse: Float32Array }> {
  const values = { out: (await out.read()) as Float32Array, lse: (await lse.read()) as Float32Array };
  out.destroy();
  lse.destroy();
  return values;
}

/** Decodes a case; `change` replaces some of its arguments. */
export async function run(mla: Mla, c: DecodeCase, change: Partial<DecodeArgs> = {}): Promise<{ out: Float32Array; lse: Float32Array }> {
  return take(await mla.flashMlaWithKvCache({ ...decodeArgs(c), ...change }));
}

export function oracle(c: DecodeCase, sequences?: readonly number[]): ReferenceResult {
  const { softmaxScale, ...rest } = c;
  return referenceDecode(
    { ...rest, q: decode16(c.dtype, c.q), kvCache: valuesOf(c, sequences), ...(softmaxScale === undefined ? {} : { softmaxScale }) },
    sequences,
  );
}

/** The cache's values; of blocks that these sequences do not use, zeros: a large cache is slow to convert whole. */
function valuesOf(c: DecodeCase, sequences: readonly number[] | undefined): Float32Array {
  if (sequences === undefined) return decode16(c.dtype, c.kvCache);
  const values = new Float32Array(c.kvCache.length);
  const size = c.blockSize * c.hKv * c.dQk;
  for (const s of sequences) {
    for (let j = 0; j < Math.ceil(c.cacheSeqlens[s]! / c.blockSize); j++) {
      const from = c.blockTable[s * c.maxBlocksPerSeq + j]! * size;
      values.set(decode16(c.dtype, c.kvCache.subarray(from, from + size)), from);
    }
  }
  return values;
}

/** Fails unless `got` is right. */
export function expectRight(c: DecodeCase, got: DecodeValues, sequences?: readonly number[]): void {
  expect(compareDecode(c, oracle(c, sequences), got, sequences)).toBeUndefined();
}

/**
 * Fails unless `action` throws or rejects with an MlaError that has one of the codes and names the argument:
 * `blockTable` is named by `blockTable` and by `blockTable[1][0]`.
 */
export async function expectRefusal(action: () => unknown, codes: MlaErrorCode | readonly MlaErrorCode[], argument?: string): Promise<MlaError> {
  let error: unknown;
  try {
    await action();
  } catch (caught) {
    error = caught;
  }
  expect(error, 'nothing was thrown').toBeDefined();
  if (!(error instanceof MlaError)) throw error;
  expect(Array.isArray(codes) ? codes : [codes], error.message).toContain(error.code);
  if (argument !== undefined) {
    const named = error.argument ?? '';
    const found = named === argument || [`${argument}[`, `${argument}.`].some((start) => named.startsWith(start));
    expect(found, `names ${named}, not ${argument}: ${error.message}`).toBe(true);
    expect(error.message).toContain(argument);
  }
  return error;
}
