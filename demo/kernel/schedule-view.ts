/** The schedule as a picture: a bar a sequence, as long as its blocks, cut where one part ends and the next begins. */
import type { MlaMetadata, SequenceId } from '../../src/mla.ts';
import { colorStyle } from '../site/colors.ts';
import { byId, el, svg } from '../site/dom.ts';
import { explore, partAttributes } from './explore.ts';
import { count, plural } from '../site/format.ts';
import { stretchesOf, type Stretch } from './stretches.ts';

const HEIGHT = 22;

export class ScheduleView {
  readonly #rows = byId('schedule-rows');
  readonly #summary = byId('schedule-summary');
  readonly #readout = byId('schedule-readout');
  readonly #enter: () => void;

  constructor() {
    this.#enter = explore(this.#rows, { readout: this.#readout });
  }

  clear(): void {
    this.#rows.replaceChildren();
    this.#summary.textContent = 'No sequences, no schedule.';
    this.#readout.hidden = true;
  }

  show(metadata: MlaMetadata, sequences: readonly SequenceId[]): void {
    const stretches = stretchesOf(metadata);
    const bars = sequences.map((_, i) => stretches.filter(({ sequence }) => sequence === i));
    const longest = Math.max(...bars.map((bar) => bar[bar.length - 1]!.end));
    this.#rows.replaceChildren(...bars.map((bar, i) => {
      const id = sequences[i]!;
      const total = bar[bar.length - 1]!.end;
      const picture = svg('svg', { class: 'bar', viewBox: `0 0 ${total} ${HEIGHT}`, preserveAspectRatio: 'none', style: `width: ${(100 * total) / longest}%` });
      bar.forEach(({ part, first, end }, k) => {
        const length = metadata.cacheSeqlens[i]!;
        const what = length === 0 ? 'writes its empty result' : `blocks ${end - first === 1 ? first : `${first} to ${end - 1}`}`;
        const split = bar.length > 1 ? `, split ${k + 1} of ${bar.length}` : '';
        const label = `Part ${part}: sequence ${id}, ${what}${split}`;
        picture.append(svg('g', { class: `stretch${part % 2 === 1 ? ' odd' : ''}`, ...partAttributes(label) },
          svg('rect', { x: first, y: 0, width: end - first, height: HEIGHT })));
      });
      // Words do not stretch with the bar, so they lie over it.
      const words = el('div', { class: 'bar-words', 'aria-hidden': 'true', style: `width: ${(100 * total) / longest}%` },
        ...bar.filter(({ first, end }) => (end - first) / longest > 0.045).map(({ part, first, end }) =>
          el('span', { style: `left: ${(100 * first) / total}%; width: ${(100 * (end - first)) / total}%` }, String(part))));
      return el('li', { style: colorStyle(id) }, el('span', { class: 'bar-name' }, `Sequence ${id}`), el('div', { class: 'bar-box' }, picture, words));
    }));
    this.#enter();
    this.#readout.hidden = false;
    this.#summary.textContent = describe(metadata, bars);
  }
}

function describe({ parts, cacheSeqlens }: MlaMetadata, bars: readonly Stretch[][]): string {
  const loads = Array.from({ length: parts }, () => 0);
  for (const { part, first, end } of bars.flat()) loads[part]! += end - first;
  const [least, most] = [Math.min(...loads), Math.max(...loads)];
  const split = bars.filter((bar) => bar.length > 1).length;
  const share = least === most ? plural(most, 'block') : `${count(least)} ${most === least + 1 ? 'or' : 'to'} ${plural(most, 'block')}`;
  const merged = split === 0 ? 'No sequence is split, so there is nothing to merge.' : `${count(split)} of ${plural(cacheSeqlens.length, 'sequence')} ${split === 1 ? 'is' : 'are'} split; the combine step merges the splits by their lse.`;
  return `${plural(parts, 'part')} of ${share}${parts === 1 ? '' : ' each'}. ${merged}`;
}
