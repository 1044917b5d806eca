/** The schedule, sequence by sequence. Pure. */
import type { MlaMetadata } from '../../src/mla.ts';
import { blockUnits } from '../../src/schedule.ts';

/** Consecutive blocks of one sequence that one part takes. */
export interface Stretch {
  readonly part: number;
  /** Position in the batch. */
  readonly sequence: number;
  readonly first: number;
  /** Exclusive. */
  readonly end: number;
}

/** What the rows of `tileSchedulerMetadata` say. A sequence of no tokens counts as one block. */
export function stretchesOf({ tileSchedulerMetadata, order, cacheSeqlens, blockSize, parts }: MlaMetadata): Stretch[] {
  const stretches: Stretch[] = [];
  const stride = tileSchedulerMetadata.length / parts;
  for (let part = 0; part < parts; part++) {
    const [from, begin, to, end] = tileSchedulerMetadata.subarray(part * stride, part * stride + 4) as unknown as [number, number, number, number];
    for (let place = from; place <= to; place++) {
      const sequence = order[place]!;
      stretches.push({ part, sequence, first: place === from ? begin : 0, end: place === to ? end : blockUnits(cacheSeqlens[sequence]!, blockSize) });
    }
  }
  return stretches;
}
