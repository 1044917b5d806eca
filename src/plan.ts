/**
 * The plan: all that a decode call's two kernels must know of the batch, in one u32 buffer.
 *
 * Header, a row a part, a row a sequence, a row a split sequence, the block table. It is made on the host once per
 * (metadata, block table) and reused by every layer of a step.
 *
 * Sequences are numbered by their places in the schedule's order, except where they are said to be the batch's.
 *
 * Row of a part: the scheduler's first four numbers (first sequence, its first block, last sequence, end in it), then what
 * saves a kernel dependent loads: length of the first sequence, id of its first block here, and the index of the partial
 * result to leave of the first and of the last sequence, -1 when it is not split.
 * Row of a sequence: length, which of the batch's it is, number of its splits, index of its first partial result. A part
 * leaves its partial result of its first sequence at 2 * part, of its last, when that is another, at 2 * part + 1.
 * Row of a split sequence: which of the batch's it is, first part that works on it, number of its splits, index of its first partial result.
 */
import type { DecodeOp } from './backend.ts';
import { PART_STRIDE, inBatchOrder } from './schedule.ts';

/** Where the header's fields and the parts are, for the kernels. */
export const PLAN_LAYOUT = {
  PLAN_S_Q: 0,
  PLAN_SCALE: 1,
  PLAN_SEQS_AT: 2,
  PLAN_TABLE_AT: 3,
  PLAN_TABLE_STRIDE: 4,
  PLAN_SPLIT_AT: 5,
  PLAN_LSE_AT: 6,
  PLAN_GROUP: 7,
  PLAN_H_KV: 8,
  PLAN_BLOCK: 9,
  PLAN_CAUSAL: 10,
  PLAN_PARTS: 12,
} as const;

export interface Plan {
  readonly words: Uint32Array<ArrayBuffer>;
  readonly parts: number;
  /** Sequences that more than one part works on. */
  readonly splitSequences: number;
  /** Most splits of a sequence. */
  readonly mostSplits: number;
}

/** Bytes of partial results: two a part, each s_q * h_q rows of d_v f32, then 8 B a row for the LSE. */
export function partialBytes(parts: number, { sQ, hQ, dV }: Pick<DecodeOp, 'sQ' | 'hQ' | 'dV'>): number {
  return 2 * parts * sQ * hQ * (dV + 2) * 4;
}

/** What of a call a plan is made of. */
export type PlanOp = Pick<DecodeOp, 'metadata' | 'b' | 'sQ' | 'hQ' | 'hKv' | 'dV' | 'blockSize' | 'maxBlocksPerSeq' | 'softmaxScale' | 'causal'>;

/** @param anyOrder whether the kernels take sequences in any order; in the batch's the plan may have fewer parts than the metadata */
export function makePlan(op: PlanOp, blockTable: Int32Array, anyOrder: boolean): Plan {
  const { b, sQ, hQ, dV } = op;
  const metadata = anyOrder ? op.metadata : inBatchOrder(op.metadata);
  const { parts, tileSchedulerMetadata, order, numSplits } = metadata;
  const splits = (place: number): number => numSplits[order[place]! + 1]! - numSplits[order[place]!]!;
  const length = (place: number): number => metadata.cacheSeqlens[order[place]!]!;
  const split: number[] = [];
  for (let place = 0; place < b; place++) if (splits(place) > 1) split.push(place);

  const seqsAt = PLAN_LAYOUT.PLAN_PARTS + parts * PART_STRIDE;
  const splitAt = seqsAt + b * 4;
  const tableAt = splitAt + split.length * 4;
  const words = new Uint32Array(tableAt + blockTable.length);
  const partialRows = 2 * parts * sQ * hQ;
  words[PLAN_LAYOUT.PLAN_S_Q] = sQ;
  new Float32Array(words.buffer)[PLAN_LAYOUT.PLAN_SCALE] = op.softmaxScale * Math.LOG2E;
  words[PLAN_LAYOUT.PLAN_SEQS_AT] = seqsAt;
  words[PLAN_LAYOUT.PLAN_TABLE_AT] = tableAt;
  words[PLAN_LAYOUT.PLAN_TABLE_STRIDE] = op.maxBlocksPerSeq;
  words[PLAN_LAYOUT.PLAN_SPLIT_AT] = splitAt;
  words[PLAN_LAYOUT.PLAN_LSE_AT] = partialRows * (dV / 2);
  words[PLAN_LAYOUT.PLAN_GROUP] = hQ / op.hKv;
  words[PLAN_LAYOUT.PLAN_H_KV] = op.hKv;
  words[PLAN_LAYOUT.PLAN_BLOCK] = op.blockSize;
  words[PLAN_LAYOUT.PLAN_CAUSAL] = op.causal ? 1 : 0;

  const firstPart = new Int32Array(b).fill(-1);
  for (let p = 0; p < parts; p++) {
    const first = tileSchedulerMetadata[p * PART_STRIDE]!;
    const last = tileSchedulerMetadata[p * PART_STRIDE + 2]!;
    for (let place = first; place <= last; place++) if (firstPart[place]! < 0) firstPart[place] = p;
  }
  const partial = (p: number, place: number): number => 2 * p + (tileSchedulerMetadata[p * PART_STRIDE] === place ? 0 : 1);
  for (let p = 0; p < parts; p++) {
    const [first, block, last, end] = tileSchedulerMetadata.subarray(p * PART_STRIDE, p * PART_STRIDE + 4) as unknown as [number, number, number, number];
    const id = length(first) > 0 ? blockTable[order[first]! * op.maxBlocksPerSeq + block]! : 0;
    const partialOf = (place: number): number => (splits(place) > 1 ? partial(p, place) : -1);
    words.set([first, block, last, end, length(first), id, partialOf(first), partialOf(last)], PLAN_LAYOUT.PLAN_PARTS + p * PART_STRIDE);
  }
  const firstPartial = (place: number): number => partial(firstPart[place]!, place);
  for (let place = 0; place < b; place++) {
    const sequence = order[place]!;
    words.set([length(place), sequence, splits(place), firstPartial(place)], seqsAt + place * 4);
    words.set(blockTable.subarray(sequence * op.maxBlocksPerSeq, (sequence + 1) * op.maxBlocksPerSeq), tableAt + place * op.maxBlocksPerSeq);
  }
  split.forEach((place, i) => words.set([order[place]!, firstPart[place]!, splits(place), firstPartial(place)], splitAt + i * 4));
  return { words, parts, splitSequences: split.length, mostSplits: split.reduce((most, place) => Math.max(most, splits(place)), 1) };
}
