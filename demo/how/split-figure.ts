/** The figure of the schedule: what `getMlaMetadata` makes of the reader's lengths, by sequence and by part. */
import type { MlaMetadata } from '../../src/mla.ts';
import { PART_STRIDE, getMlaMetadata } from '../../src/schedule.ts';
import { parseLengths } from '../kernel/batch.ts';
import { BLOCK_SIZE } from '../kernel/shape.ts';
import { stretchesOf, type Stretch } from '../kernel/stretches.ts';
import { colorStyle } from '../site/colors.ts';
import { byId, el } from '../site/dom.ts';
import { digits, plural } from '../site/format.ts';

const ROWS = 16;
const MOST_SEQUENCES = 12;
const MOST_TOKENS = 1_000_000;

/** The schedule on a machine that runs so many workgroups at once. @throws Error in words for the reader */
export function scheduleOf(lengthsText: string, slots: number): MlaMetadata {
  const lengths = parseLengths(lengthsText);
  if (lengths.length > MOST_SEQUENCES) throw new Error(`This figure draws up to ${MOST_SEQUENCES} sequences.`);
  if (Math.max(...lengths) > MOST_TOKENS) throw new Error('This figure draws up to a million tokens a sequence.');
  return getMlaMetadata({ cacheSeqlens: Int32Array.from(lengths), numQTokensPerHeadK: ROWS, numHeadsK: 1, blockSize: BLOCK_SIZE }, { slots, rowTiles: [ROWS], minTokensPerPart: BLOCK_SIZE });
}

export function mountSplitFigure(): void {
  const lengths = byId<HTMLInputElement>('split-lengths');
  const slots = byId<HTMLInputElement>('split-slots');
  const show = (): void => {
    byId('split-slots-value').textContent = slots.value;
    let problem = '';
    try {
      draw(scheduleOf(lengths.value, Number(slots.value)));
    } catch (error) {
      problem = (error as Error).message;
    }
    byId('split-problem').textContent = problem;
    lengths.setAttribute('aria-invalid', String(problem !== ''));
  };
  lengths.addEventListener('input', show);
  slots.addEventListener('input', show);
  show();
}

function draw(metadata: MlaMetadata): void {
  const stretches = stretchesOf(metadata);
  byId('split-sequences').replaceChildren(sequences(metadata, stretches));
  byId('split-parts').replaceChildren(parts(metadata, stretches));
  byId('split-table').replaceChildren(table(metadata));
  byId('split-words').textContent = describe(metadata, stretches);
}

const blocksIn = ({ first, end }: Stretch): number => end - first;

/** A bar a sequence, as long as its blocks, with the number of the part in each stretch. */
function sequences({ cacheSeqlens }: MlaMetadata, stretches: readonly Stretch[]): HTMLElement {
  const bars = Array.from(cacheSeqlens, (_, s) => stretches.filter(({ sequence }) => sequence === s));
  const longest = Math.max(...bars.map((bar) => bar.at(-1)!.end));
  return el('ol', { class: 'bars' }, ...bars.map((bar, s) =>
    el('li', { style: colorStyle(s) },
      el('span', { class: 'small' }, `Sequence ${s}`, el('span', { class: 'quiet' }, ` ${plural(bar.at(-1)!.end, 'block')}`)),
      el('div', { class: 'bar', role: 'img', 'aria-label': `Sequence ${s}: ${bar.map((one) => `${plural(blocksIn(one), 'block')} in part ${one.part}`).join(', ')}`, style: `width: ${(100 * bar.at(-1)!.end) / longest}%` },
        ...bar.map((one) => el('span', { class: one.part % 2 === 1 ? 'odd' : '', style: `flex-grow: ${blocksIn(one)}` },
          blocksIn(one) / longest > 0.04 ? String(one.part) : ''))))));
}

/** A column a part, each stretch in the colour of its sequence. */
function parts(metadata: MlaMetadata, stretches: readonly Stretch[]): HTMLElement {
  const columns = Array.from({ length: metadata.parts }, (_, p) => stretches.filter(({ part }) => part === p));
  const loads = columns.map((column) => column.reduce((sum, one) => sum + blocksIn(one), 0));
  const most = Math.max(...loads);
  // Where there are many, a number has no room beside the next.
  const every = metadata.parts > 10 ? 5 : 1;
  return el('ol', { class: 'parts' }, ...columns.map((column, p) =>
    el('li', {},
      el('div', {
        class: 'part', style: `height: ${(100 * loads[p]!) / most}%`, role: 'img',
        'aria-label': `Part ${p}: ${column.map((one) => `${plural(blocksIn(one), 'block')} of sequence ${one.sequence}`).join(', ')}`,
      },
        ...column.map((one) => el('span', { class: p % 2 === 1 ? 'odd' : '', style: `${colorStyle(one.sequence)}; flex-grow: ${blocksIn(one)}` }))),
      el('span', { class: 'small quiet' }, p % every === 0 ? String(p) : '\u00a0'))));
}

function table({ tileSchedulerMetadata, parts: count }: MlaMetadata): HTMLTableElement {
  const heads = ['Part', 'First sequence', 'From block', 'Last sequence', 'To block (exclusive)'];
  return el('table', {},
    el('thead', {}, el('tr', {}, ...heads.map((head) => el('th', { scope: 'col' }, head)))),
    el('tbody', {}, ...Array.from({ length: count }, (_, p) =>
      el('tr', {}, el('th', { scope: 'row' }, String(p)), ...[...tileSchedulerMetadata.subarray(p * PART_STRIDE, p * PART_STRIDE + 4)].map((n) => el('td', {}, String(n)))))));
}

function describe({ parts: count, numSplits, cacheSeqlens }: MlaMetadata, stretches: readonly Stretch[]): string {
  const loads = Array.from({ length: count }, () => 0);
  const lengths = Array.from(cacheSeqlens, () => 0);
  for (const one of stretches) {
    loads[one.part]! += blocksIn(one);
    lengths[one.sequence]! += blocksIn(one);
  }
  const [most, longest] = [Math.max(...loads), Math.max(...lengths)];
  const split = [...cacheSeqlens.keys()].filter((s) => numSplits[s + 1]! - numSplits[s]! > 1).length;
  const gain = longest > most ? ` With a workgroup a sequence, the slowest would have ${longest}, ${digits(longest / most)} times as many.` : '';
  return `${plural(count, 'part')} of up to ${plural(most, 'block')}; ${split} of ${plural(cacheSeqlens.length, 'sequence')} ${split === 1 ? 'is' : 'are'} split.${gain}`;
}
