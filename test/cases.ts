/**
 * Decode problems in the style of FlashMLA's own test: values from N(0, 0.1^2), pages shuffled, 2147480000 in unused
 * table entries, NaN and infinities in every slot that no sequence uses. Lists of them are in case-lists.ts.
 */
import type { DecodeShape } from '../src/backend.ts';
import { encode16 } from '../src/bf16.ts';
import type { DecodeArgs, KvDType } from '../src/mla.ts';
import { Random } from './random.ts';

export interface CaseOptions {
  readonly b: number;
  readonly sQ: number;
  /** Tokens of a sequence; the mean when ragged. */
  readonly sK: number;
  readonly hQ: number;
  readonly hKv?: number;
  readonly dV?: number;
  readonly rope?: number;
  readonly blockSize?: number;
  readonly dtype?: KvDType;
  readonly causal?: boolean;
  /** Lengths from N(s_k, (s_k / 2)^2), at least 1. */
  readonly ragged?: boolean;
  /** About a third of the sequences, and at least one, have length zero. */
  readonly zeros?: boolean;
  /** Exact lengths, in place of all that `sK`, `ragged` and `zeros` say. */
  readonly seqlens?: readonly number[];
  /** Sequences 0 and 1 have the same first block. */
  readonly sharedBlock?: boolean;
  /** NaN and infinities in unused slots; true when absent. */
  readonly poison?: boolean;
  readonly softmaxScale?: number;
  readonly seed?: number;
}

export interface DecodeCase extends DecodeShape {
  readonly name: string;
  readonly numBlocks: number;
  readonly maxBlocksPerSeq: number;
  readonly causal: boolean;
  readonly softmaxScale: number | undefined;
  /** [b, s_q, h_q, d_qk] bits */
  readonly q: Uint16Array;
  /** [num_blocks, block_size, h_kv, d_qk] bits */
  readonly kvCache: Uint16Array;
  /** [b, max_blocks_per_seq] */
  readonly blockTable: Int32Array;
  /** [b] */
  readonly cacheSeqlens: Int32Array;
}

/** What unused entries of a block table hold: reading through one faults or shows. */
export const UNUSED_ENTRY = 2147480000;

type Dimensions = Required<Pick<CaseOptions, 'hKv' | 'dV' | 'rope' | 'blockSize' | 'dtype'>> & CaseOptions;

function dimensions(options: CaseOptions): Dimensions {
  return { hKv: 1, dV: 512, rope: 64, blockSize: 64, dtype: 'bf16', ...options };
}

export function caseName(options: CaseOptions): string {
  const { b, sQ, sK, hQ, hKv, dV, rope, blockSize, dtype, seqlens, softmaxScale } = dimensions(options);
  const flags = (['ragged', 'zeros', 'causal', 'sharedBlock'] as const).filter((flag) => options[flag]);
  const lengths = seqlens === undefined ? `s_k=${sK}` : `lengths ${seqlens.join(',')}`;
  const scale = softmaxScale === undefined ? [] : [`scale ${softmaxScale}`];
  return [`b=${b} s_q=${sQ} ${lengths} h_q=${hQ} h_kv=${hKv} ${dV}+${rope} block ${blockSize} ${dtype}`, ...scale, ...flags].join(' ');
}

/** The lengths that `options` ask for. */
function lengths(options: CaseOptions, random: Random): Int32Array {
  const { b, sK, ragged = false, zeros = false, seqlens, sharedBlock = false, blockSize } = dimensions(options);
  if (seqlens !== undefined) return Int32Array.from(seqlens);
  const result = new Int32Array(b).fill(sK);
  if (ragged) for (let i = 0; i < b; i++) result[i] = Math.min(3 * sK, Math.max(1, Math.round(random.normal(sK, sK / 2))));
  // The last third, in a shuffled batch anywhere; a shared block needs the first two alive and a block long.
  if (zeros) result.fill(0, Math.min(b - 1, Math.ceil((b * 2) / 3)));
  if (sharedBlock) for (const i of [0, 1]) result[i] = Math.max(result[i]!, blockSize);
  else if (zeros) random.shuffle(result);
  return result;
}

export function makeCase(options: CaseOptions): DecodeCase {
  const { b, sQ, hQ, hKv, dV, rope, blockSize, dtype, causal = false, sharedBlock = false, poison = true, seed = 1 } = dimensions(options);
  const dQk = dV + rope;
  const random = new Random(seed * 7919 + b * 31 + sQ * 17 + options.sK * 13 + hQ * 7 + hKv);
  const cacheSeqlens = lengths(options, random);
  const used = Array.from(cacheSeqlens, (length) => Math.ceil(length / blockSize));
  // One spare entry a row, and at least one row entry even when all lengths are zero.
  const maxBlocksPerSeq = Math.max(...used) + 1;
  const numBlocks = used.reduce((n, u) => n + u, 0) + 2;
  const ids = random.shuffle(Int32Array.from({ length: numBlocks }, (_, i) => i));
  const blockTable = new Int32Array(b * maxBlocksPerSeq).fill(UNUSED_ENTRY);
  let next = 0;
  for (let s = 0; s < b; s++) for (let j = 0; j < used[s]!; j++) blockTable[s * maxBlocksPerSeq + j] = ids[next++]!;
  if (sharedBlock) blockTable[maxBlocksPerSeq] = blockTable[0]!;

  const q = encode16(dtype, random.normals(b * sQ * hQ * dQk, 0.1));
  const row = hKv * dQk;
  const kvCache = repeated(encode16(dtype, random.normals(Math.min(PERIOD, numBlocks * blockSize * row), 0.1)), numBlocks * blockSize * row);
  if (poison) {
    const live = usedSlots(blockTable, cacheSeqlens, maxBlocksPerSeq, blockSize, numBlocks);
    // NaN, +inf, -inf
    const bad = dtype === 'bf16' ? [0x7fc0, 0x7f80, 0xff80] : [0x7e00, 0x7c00, 0xfc00];
    for (let slot = 0; slot < live.length; slot++) {
      if (live[slot]) continue;
      for (let d = 0; d < row; d++) kvCache[slot * row + d] = bad[(slot + d) % 3]!;
    }
  }
  return {
    name: caseName(options), b, sQ, hQ, hKv, dQk, dV, blockSize, numBlocks, maxBlocksPerSeq, dtype, causal,
    softmaxScale: options.softmaxScale, q, kvCache, blockTable, cacheSeqlens,
  };
}

/** Most random values a case is made of: a prime, so that where they come round again they start elsewhere in a row. */
const PERIOD = 4194301;

function repeated(values: Uint16Array, length: number): Uint16Array {
  if (values.length === length) return values;
  const result = new Uint16Array(length);
  for (let at = 0; at < length; at += values.length) result.set(at + values.length <= length ? values : values.subarray(0, length - at), at);
  return result;
}

/** [num_blocks * block_size]: 1 where some sequence has a token. */
function usedSlots(table: Int32Array, seqlens: Int32Array, maxBlocks: number, blockSize: number, numBlocks: number): Uint8Array {
  const live = new Uint8Array(numBlocks * blockSize);
  seqlens.forEach((length, s) => {
    for (let t = 0; t < length; t++) live[table[s * maxBlocks + Math.floor(t / blockSize)]! * blockSize + (t % blockSize)] = 1;
  });
  return live;
}

/** The case as arguments of `flashMlaWithKvCache`, all of it in this program's memory. */
export function decodeArgs(c: DecodeCase): DecodeArgs {
  return {
    q: { data: c.q, shape: [c.b, c.sQ, c.hQ, c.dQk], dtype: c.dtype },
    kvCache: { data: c.kvCache, shape: [c.numBlocks, c.blockSize, c.hKv, c.dQk], dtype: c.dtype },
    blockTable: c.blockTable,
    cacheSeqlens: c.cacheSeqlens,
    headDimV: c.dV,
    causal: c.causal,
    ...(c.softmaxScale === undefined ? {} : { softmaxScale: c.softmaxScale }),
  };
}

/** Floating-point operations of the two products. */
export function flops(options: CaseOptions): number {
  const { b, sQ, sK, hQ, dV, rope, seqlens } = dimensions(options);
  const tokens = seqlens === undefined ? b * sK : seqlens.reduce((n, l) => n + l, 0);
  return 2 * sQ * hQ * (2 * dV + rope) * tokens;
}

/** Where number `d` of token `t`'s key lies in the cache. */
export function keyAt(c: DecodeCase, sequence: number, t: number, head: number, d: number): number {
  const block = c.blockTable[sequence * c.maxBlocksPerSeq + Math.floor(t / c.blockSize)]!;
  return ((block * c.blockSize + (t % c.blockSize)) * c.hKv + head) * c.dQk + d;
}
