/** The figure of merging: partial LSEs and weights of one query's splits, and how near the merged result is to the whole. */
import type { Mla, MlaInfo } from '../../src/mla.ts';
import { BLOCK_SIZE } from '../kernel/shape.ts';
import { stretchesOf } from '../kernel/stretches.ts';
import { colorStyle } from '../site/colors.ts';
import { byId, el } from '../site/dom.ts';
import { plural, scientific } from '../site/format.ts';
import { largestDifference } from './absorption.ts';
import { openInstance } from './instance.ts';
import { latest } from './latest.ts';
import { mergeByLse, type Merged, type Partial } from './merge.ts';
import { OneQuery, randomQuery, splitOf, type QueryResult } from './one-query.ts';

/** What rounding may do: half a step of bf16, once to each partial output and once to the whole one. */
export function roundingBound(partials: readonly Partial[], whole: Partial): number {
  const largest = (out: ArrayLike<number>): number => Math.max(...Array.from(out, Math.abs));
  return 2 ** -8 * Math.max(largest(whole.out), ...partials.map(({ out }) => largest(out)));
}

export async function mountMergeFigure(): Promise<void> {
  const slots = byId<HTMLInputElement>('merge-slots');
  const mla = await openInstance('auto');
  byId('merge-device').textContent = deviceWords(mla.info);
  let seed = 0;
  let query: OneQuery | undefined;
  const show = latest(async ({ wanted, fresh }: { wanted: number; fresh: boolean }) => {
    try {
      if (fresh || !query) query = await another(mla, ++seed, query);
      draw(await query.decode(wanted), mla.info);
    } catch (error) {
      byId('merge-verdict').textContent = (error as Error).message;
    }
  });
  slots.addEventListener('input', () => {
    byId('merge-slots-value').textContent = partsWords(Number(slots.value));
    show({ wanted: Number(slots.value), fresh: false });
  });
  byId('merge-again').addEventListener('click', () => show({ wanted: Number(slots.value), fresh: true }));
  show({ wanted: Number(slots.value), fresh: false });
}

/** Some numbers of parts are no faster than fewer, which the scheduler then makes. */
function partsWords(wanted: number): string {
  const made = stretchesOf(splitOf(wanted));
  return made.length === wanted ? String(wanted) : `${wanted}, but ${made.length} will do: none has more than ${plural(Math.max(...made.map(({ first, end }) => end - first)), 'block')}`;
}

async function another(mla: Mla, seed: number, former: OneQuery | undefined): Promise<OneQuery> {
  former?.destroy();
  return OneQuery.create(mla, randomQuery(seed));
}

function deviceWords({ backend, device, tier }: MlaInfo): string {
  return backend === 'cpu' ? 'Decoded by the cpu backend in a worker: there is no WebGPU here.' : `Decoded on ${device} by the ${backend} backend${tier === undefined ? '' : `, ${tier} tier`}, in a worker.`;
}

function draw({ splits, partials, whole, merged }: QueryResult, { backend }: MlaInfo): void {
  const byHand = mergeByLse(partials);
  byId('merge-table').replaceChildren(table(splits, partials, byHand));
  const bound = roundingBound(partials, whole);
  const [handOff, packageOff] = [largestDifference(byHand.out, whole.out), largestDifference(merged.out, whole.out)];
  byId('merge-results').replaceChildren(
    ...result('Whole, one softmax', `lse ${lseText(whole.lse)}`, 'whole'),
    ...result(`Merged here from ${plural(partials.length, 'part')}`, `lse ${lseText(byHand.lse)}, out off by ${scientific(handOff)}`, 'hand'),
    ...(backend === 'cpu'
      ? result('Merged by the package', 'the cpu backend does not split', 'package')
      : result('Merged by the package', `lse ${lseText(merged.lse)}, out off by ${scientific(packageOff)}`, 'package')));
  const equal = handOff <= bound && packageOff <= bound;
  byId('merge-verdict').textContent = equal
    ? `Equal but for rounding: partial and whole outputs are read as bf16, which may cost up to ${scientific(bound)}.`
    : `Not equal: off by more than the ${scientific(bound)} that rounding to bf16 may cost. Please report this.`;
}

function table(splits: QueryResult['splits'], partials: readonly Partial[], { weights }: Merged): HTMLTableElement {
  return el('table', {},
    el('thead', {}, el('tr', {}, ...['Part', 'Tokens', 'LSE', 'Weight', ''].map((head) => el('th', { scope: 'col' }, head)))),
    el('tbody', {}, ...splits.map(({ first, end }, i) =>
      el('tr', { style: colorStyle(i) },
        el('th', { scope: 'row' }, String(i)),
        el('td', {}, `${first * BLOCK_SIZE} – ${end * BLOCK_SIZE - 1}`),
        el('td', { class: 'lse' }, lseText(partials[i]!.lse)),
        el('td', { class: 'weight' }, `${(100 * weights[i]!).toFixed(1)} %`),
        el('td', { class: 'weight-bar', 'aria-hidden': 'true' }, el('i', { style: `width: ${100 * weights[i]!}%` }))))));
}

function result(name: string, value: string, id: string): HTMLElement[] {
  return [el('dt', {}, name), el('dd', { id: `merge-${id}` }, value)];
}

const lseText = (lse: number): string => lse.toFixed(4);
