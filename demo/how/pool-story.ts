/** What a change of a paged cache did, in words, from block tables before and after. Pure. */
import { plural } from '../site/format.ts';

export interface SequenceState {
  readonly id: number;
  readonly length: number;
  readonly blocks: readonly number[];
}

export function appendStory(before: SequenceState, after: SequenceState): string {
  const told = [`Sequence ${after.id}: ${plural(after.length - before.length, 'token')} more.`];
  const at = before.blocks.findIndex((block, i) => block !== after.blocks[i]);
  if (at >= 0) told.push(`Block ${before.blocks[at]} was shared, so it was copied to block ${after.blocks[at]} before the write.`);
  const taken = after.blocks.slice(before.blocks.length);
  if (taken.length > 0) told.push(`${taken.length === 1 ? 'Block' : 'Blocks'} ${listed(taken)} came from the pool.`);
  else if (at < 0) told.push('Its last block had room.');
  return told.join(' ');
}

export function forkStory(parent: SequenceState, child: number): string {
  const shared = parent.blocks.length === 0 ? 'It has no blocks yet.' : `Both hold ${parent.blocks.length === 1 ? 'block' : 'blocks'} ${listed(parent.blocks)}; nothing was copied.`;
  return `Sequence ${child} is a fork of sequence ${parent.id}. ${shared}`;
}

/** @param held blocks that other sequences hold */
export function freeStory({ id, blocks }: SequenceState, held: ReadonlySet<number>): string {
  const [kept, back] = [blocks.filter((block) => held.has(block)), blocks.filter((block) => !held.has(block))];
  const told = [`Sequence ${id} is gone.`];
  if (back.length > 0) told.push(`${back.length === 1 ? 'Block' : 'Blocks'} ${listed(back)} went back to the pool.`);
  if (kept.length > 0) told.push(`${kept.length === 1 ? 'Block' : 'Blocks'} ${listed(kept)} ${kept.length === 1 ? 'stays' : 'stay'}, since another sequence holds ${kept.length === 1 ? 'it' : 'them'}.`);
  return told.join(' ');
}

function listed(numbers: readonly number[]): string {
  if (numbers.length < 2) return String(numbers[0]);
  return `${numbers.slice(0, -1).join(', ')} and ${numbers[numbers.length - 1]}`;
}
