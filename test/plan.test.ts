/** What a plan says, against the schedule and the block table that it was made from. */
import fc from 'fast-check';
import { describe, expect, test } from 'vitest';
import type { DecodeOp } from '../src/backend.ts';
import { PLAN_LAYOUT, makePlan } from '../src/plan.ts';
import { getMlaMetadata, inBatchOrder } from '../src/schedule.ts';

const problems = fc.record({
  lengths: fc.array(fc.oneof(fc.constant(0), fc.integer({ min: 1, max: 2000 })), { minLength: 1, maxLength: 20 }),
  slots: fc.integer({ min: 1, max: 140 }),
  scheduledInAnyOrder: fc.boolean(),
  takenInAnyOrder: fc.boolean(),
  seed: fc.integer({ min: 1, max: 1 << 20 }),
});

describe('a plan', () => {
  test('tells each part and each sequence what the schedule means for it', () => {
    fc.assert(
      fc.property(problems, ({ lengths, slots, scheduledInAnyOrder, takenInAnyOrder, seed }) => {
        const cacheSeqlens = Int32Array.from(lengths);
        const b = lengths.length;
        const scheduled = getMlaMetadata(
          { cacheSeqlens, numQTokensPerHeadK: 16, numHeadsK: 1 }, { slots, rowTiles: [64], minTokensPerPart: 64, anyOrder: scheduledInAnyOrder },
        );
        // What the plan is to say.
        const metadata = takenInAnyOrder ? scheduled : inBatchOrder(scheduled);
        const sequenceAt = (place: number): number => metadata.order[place]!;
        const maxBlocksPerSeq = 32;
        const table = Int32Array.from({ length: b * maxBlocksPerSeq }, (_, i) => (i * 7919 + seed) % 100_003);
        const op = { metadata: scheduled, b, sQ: 1, hQ: 16, hKv: 1, dQk: 576, dV: 512, blockSize: 64, maxBlocksPerSeq, softmaxScale: 1, causal: false } as unknown as DecodeOp;
        const { words, parts, splitSequences } = makePlan(op, table, takenInAnyOrder);
        const i32 = new Int32Array(words.buffer);
        expect(parts).toBe(metadata.parts);
        expect(parts).toBeLessThanOrEqual(scheduled.parts);

        // Every partial result has an owner of its own, and a sequence finds its own in the order of its splits.
        const left = new Map<number, number[]>();
        const owners = new Set<number>();
        for (let p = 0; p < parts; p++) {
          const [first, block, last, end, length, id, ofFirst, ofLast] = i32.subarray(PLAN_LAYOUT.PLAN_PARTS + p * 8) as unknown as number[];
          expect([first, block, last, end]).toEqual([...metadata.tileSchedulerMetadata.subarray(p * 8, p * 8 + 4)]);
          expect(length).toBe(lengths[sequenceAt(first!)]);
          expect(id).toBe(length! > 0 ? table[sequenceAt(first!) * maxBlocksPerSeq + block!] : 0);
          if (first === last) expect(ofLast).toBe(ofFirst);
          for (const [place, partial] of new Map([[first!, ofFirst!], [last!, ofLast!]])) {
            const sequence = sequenceAt(place);
            if (metadata.numSplits[sequence + 1]! - metadata.numSplits[sequence]! === 1) {
              expect(partial).toBe(-1);
              continue;
            }
            expect(Math.floor(partial / 2)).toBe(p);
            expect(owners.has(partial)).toBe(false);
            owners.add(partial);
            left.set(sequence, [...(left.get(sequence) ?? []), partial]);
          }
        }
        expect(splitSequences).toBe(left.size);
        const splitRows: number[] = [];
        for (let place = 0; place < b; place++) {
          const i = sequenceAt(place);
          const row = i32.subarray(words[PLAN_LAYOUT.PLAN_SEQS_AT]! + place * 4) as unknown as [number, number, number, number];
          const [length, sequence, splits, firstPartial] = row;
          expect([length, sequence, splits]).toEqual([lengths[i], i, metadata.numSplits[i + 1]! - metadata.numSplits[i]!]);
          const tableAt = words[PLAN_LAYOUT.PLAN_TABLE_AT]! + place * maxBlocksPerSeq;
          expect(i32.subarray(tableAt, tableAt + maxBlocksPerSeq)).toEqual(table.subarray(i * maxBlocksPerSeq, (i + 1) * maxBlocksPerSeq));
          const own = left.get(i);
          if (!own) continue;
          const firstPart = Math.floor(firstPartial / 2);
          expect(own).toEqual(Array.from({ length: splits }, (_, s) => (s === 0 ? firstPartial : 2 * (firstPart + s))));
          splitRows.push(i, firstPart, splits, firstPartial);
        }
        expect(words.length).toBe(words[PLAN_LAYOUT.PLAN_TABLE_AT]! + table.length);
        expect([...i32.subarray(words[PLAN_LAYOUT.PLAN_SPLIT_AT]!, words[PLAN_LAYOUT.PLAN_TABLE_AT]!)]).toEqual(splitRows);
      }),
    );
  });
});
