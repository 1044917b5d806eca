/**
 * What one step works on: some tokens of some sequences, laid end to end. Pure.
 *
 * Sequences with as many tokens as each other form a group, which one attention call serves: prompts come in chunks, running
 * sequences a token at a time.
 */
import { MlaError } from '../errors.ts';
import type { SequenceId } from '../mla.ts';

/** Tokens of one sequence, in order. */
export interface StepEntry {
  readonly sequence: SequenceId;
  readonly ids: readonly number[];
}

export interface StepGroup {
  /** Row of its first token. */
  readonly row: number;
  /** Tokens of each sequence. */
  readonly sQ: number;
  /** Indices into the step's entries. */
  readonly entries: readonly number[];
}

export interface StepPlan {
  readonly tokens: number;
  readonly ids: Int32Array;
  readonly groups: readonly StepGroup[];
  /** Row of each entry's last token, by entry. */
  readonly lastRows: Int32Array;
  /** Entries in the order of their rows. */
  readonly order: readonly number[];
}

/** @throws MlaError invalid-argument: no tokens, a sequence twice, more than `most` tokens */
export function planStep(entries: readonly StepEntry[], most: number): StepPlan {
  const bySize = new Map<number, number[]>();
  const seen = new Set<SequenceId>();
  let tokens = 0;
  entries.forEach(({ sequence, ids }, i) => {
    if (ids.length === 0) throw new MlaError('invalid-argument', 'no tokens', { argument: `entries[${i}].ids`, expected: 'at least one', got: 'none' });
    if (seen.has(sequence)) throw new MlaError('invalid-argument', 'a sequence twice in one step', { argument: `entries[${i}].sequence`, expected: 'each once', got: String(sequence) });
    seen.add(sequence);
    tokens += ids.length;
    bySize.set(ids.length, [...(bySize.get(ids.length) ?? []), i]);
  });
  if (tokens === 0 || tokens > most) {
    throw new MlaError('invalid-argument', 'not a step', { argument: 'entries', expected: `1 to ${most} tokens`, got: String(tokens) });
  }
  const all = new Int32Array(tokens);
  const lastRows = new Int32Array(entries.length);
  const groups: StepGroup[] = [];
  const order: number[] = [];
  let row = 0;
  for (const [sQ, members] of bySize) {
    groups.push({ row, sQ, entries: members });
    for (const i of members) {
      all.set(entries[i]!.ids, row);
      row += sQ;
      lastRows[i] = row - 1;
      order.push(i);
    }
  }
  return { tokens, ids: all, groups, lastRows, order };
}
