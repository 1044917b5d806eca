/** What a visitor asks for: presets, free text, and the sizes this page allows. Pure. */
import type { MlaInfo } from '../../src/mla.ts';
import { count, flops, plural } from '../site/format.ts';
import { BLOCK_SIZE, costOf, type Step } from './shape.ts';

export type Preset = 'even' | 'ragged' | 'long' | 'zeros' | 'custom';
export type Power = 'gpu' | 'software';

export const MOST_SEQUENCES = 64;
export const MOST_HEADS = 128;
export const MOST_QUERIES = 8;
/** Rows of Q and out, over the whole batch. */
const MOST_ROWS = 16_384;

export interface Batch extends Step {
  readonly lengths: readonly number[];
}

/** Real GPUs show their worth on long sequences; processors must answer within a second or so. */
export function powerOf(info: Pick<MlaInfo, 'backend' | 'software'> | undefined): Power {
  return info && info.backend !== 'cpu' && !info.software ? 'gpu' : 'software';
}

const CAPS: Readonly<Record<Power, { tokens: number; flops: number; blame: string }>> = {
  // The page keeps a copy of every token for the reference; drivers reset a GPU that takes seconds over one call.
  gpu: { tokens: 65_536, flops: 20e9, blame: 'so that no call keeps a GPU busy for seconds' },
  software: { tokens: 16_384, flops: 1e9, blame: 'since the work runs on the processor here' },
};

/** Lengths of a preset; the mean is near 4096 on a GPU and 256 on a processor. */
export function presetLengths(preset: Exclude<Preset, 'custom'>, sequences: number, power: Power): number[] {
  const mean = Math.min(power === 'gpu' ? 4096 : 256, Math.floor((CAPS[power].tokens * 0.75) / sequences));
  // 0.25, 0.05 .. 1.75 times the mean, as the index wanders over 0 .. 1.
  const ragged = (i: number): number => Math.max(1, Math.round(mean * (0.05 + 1.7 * ((0.618034 * (i + 1) + 0.25) % 1))));
  return Array.from({ length: sequences }, (_, i) => {
    switch (preset) {
      case 'even': return mean;
      case 'ragged': return ragged(i);
      case 'long': return i === 0 ? Math.max(1, Math.round(mean * Math.max(1, sequences * 0.8))) : Math.max(1, mean >> 4) + i;
      case 'zeros': return i % 3 === 1 ? 0 : ragged(i);
    }
  });
}

/** "1024, 257 64 2x700" -> lengths. @throws Error in words for the visitor */
export function parseLengths(text: string): number[] {
  const lengths: number[] = [];
  for (const word of text.split(/[\s,;]+/).filter(Boolean)) {
    const match = /^(?:(\d{1,3})[x×*])?(\d{1,7})$/i.exec(word);
    if (!match) throw new Error(`“${word.slice(0, 20)}” is not a length. Write whole numbers, such as 1024, 257 or 4x512.`);
    const times = match[1] === undefined ? 1 : Number(match[1]);
    for (let i = 0; i < times && lengths.length <= MOST_SEQUENCES; i++) lengths.push(Number(match[2]));
  }
  if (lengths.length === 0) throw new Error('Write at least one length.');
  if (lengths.length > MOST_SEQUENCES) throw new Error(`This page takes up to ${MOST_SEQUENCES} sequences.`);
  return lengths;
}

export function formatLengths(lengths: readonly number[]): string {
  const even = lengths.length > 2 && lengths.every((length) => length === lengths[0]);
  return even ? `${lengths.length}x${lengths[0]}` : lengths.join(', ');
}

/** Why this page will not run a batch, or undefined. */
export function refusal(step: Step, lengths: readonly number[], power: Power): string | undefined {
  const cap = CAPS[power];
  const tokens = lengths.reduce((sum, n) => sum + n, 0);
  if (tokens > cap.tokens) return `${plural(tokens, 'token')} in all are more than the ${count(cap.tokens)} this page takes, ${cap.blame}. Shorten the sequences.`;
  const rows = lengths.length * step.sQ * step.heads;
  if (rows > MOST_ROWS) return `${count(rows)} query rows in all (sequences × query tokens × heads) are more than the ${count(MOST_ROWS)} this page takes. Take fewer of one of them.`;
  const cost = costOf(step, lengths);
  if (cost.flops > cap.flops) return `One call would be ${flops(cost.flops)}, above the ${flops(cap.flops)} this page takes, ${cap.blame}. Take fewer heads, query tokens or cached tokens.`;
  return undefined;
}

export function blocksOf(lengths: readonly number[]): number {
  return lengths.reduce((sum, n) => sum + Math.ceil(n / BLOCK_SIZE), 0);
}

/** Blocks of the pool: what the batch needs and a quarter more, so that it can grow, and can run out. */
export function poolBlocks(lengths: readonly number[]): number {
  const needed = blocksOf(lengths);
  return needed + Math.max(4, Math.ceil(needed / 4));
}
