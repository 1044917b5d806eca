/** The lengths of a sweep. Pure. */
import { parseLengths, refusal, type Batch, type Power } from './batch.ts';
import { plural } from '../site/format.ts';
import type { Step } from './shape.ts';

const MOST_POINTS = 12;
/** Where a sweep begins and ends unless the visitor says, in tokens. */
const SPAN: Readonly<Record<Power, readonly [number, number]>> = { gpu: [256, 32_768], software: [64, 1024] };

/** Powers of two as far as the device takes a batch of so many sequences. */
export function usualLengths(step: Step, sequences: number, power: Power): number[] {
  const [from, to] = SPAN[power];
  const lengths: number[] = [];
  for (let length = from; length <= to && refusal(step, filled(sequences, length), power) === undefined; length *= 2) lengths.push(length);
  return lengths.length > 0 ? lengths : [from >> 2];
}

/** One batch a length, shortest first. @throws Error in words for the visitor */
export function sweepBatches(text: string, { lengths: { length: sequences }, ...step }: Batch, power: Power): Batch[] {
  const asked = text.trim() === '' ? usualLengths(step, sequences, power) : parseLengths(text);
  const points = [...new Set(asked)].sort((a, b) => a - b);
  if (points.length > MOST_POINTS) throw new Error(`A sweep takes up to ${MOST_POINTS} lengths.`);
  if (points[0] === 0) throw new Error('A sweep begins at one token.');
  return points.map((length) => {
    const lengths = filled(sequences, length);
    const refused = refusal(step, lengths, power);
    if (refused !== undefined) throw new Error(`${plural(sequences, 'sequence')} of ${length} tokens: ${refused}`);
    return { ...step, lengths };
  });
}

function filled(sequences: number, length: number): number[] {
  return Array.from({ length: sequences }, () => length);
}
