/** A chart of lines over context length, drawn by uPlot: what SweepView loads when it has something to draw. */
import uPlot from 'uplot';
import 'uplot/dist/uPlot.min.css';
import type { Tier } from '../../src/webgpu/tier.ts';
import { el } from '../site/dom.ts';
import { count, digits } from '../site/format.ts';

export interface ChartData {
  /** Tokens, ascending. */
  readonly lengths: readonly number[];
  readonly lines: readonly { readonly tier: Tier; readonly values: readonly (number | null)[] }[];
  readonly unit: string;
}

/** Lines differ in their dashes too, for those who do not see the colours. */
const DASHES: Readonly<Record<Tier, number[]>> = { base: [2, 4], subgroup: [9, 4], matrix: [] };
const HEIGHT = 280;
const FONT = '12px system-ui, sans-serif';

export class SweepChart {
  readonly #host: HTMLElement;
  readonly #onPoint: (index: number | undefined) => void;
  #data: ChartData | undefined;
  #plot: uPlot | undefined;

  /** @param onPoint told of the point that the pointer is at, by its number */
  constructor(host: HTMLElement, onPoint: (index: number | undefined) => void) {
    this.#host = host;
    this.#onPoint = onPoint;
    new ResizeObserver(() => this.#plot && this.#plot.width !== host.clientWidth && this.#plot.setSize({ width: host.clientWidth, height: HEIGHT })).observe(host);
    matchMedia('(prefers-color-scheme: dark)').addEventListener('change', () => this.#data && this.draw(this.#data));
  }

  draw(data: ChartData): void {
    this.#data = data;
    this.#plot?.destroy();
    const box = el('div', { role: 'img', 'aria-label': `${data.unit} by context length, a line a tier. The table below has the figures.` });
    this.#host.replaceChildren(legend(data), box);
    this.#plot = new uPlot(this.#options(data), [[...data.lengths], ...data.lines.map(({ values }) => [...values])], box);
  }

  #options({ lengths, lines, unit }: ChartData): uPlot.Options {
    const style = getComputedStyle(this.#host);
    const color = (name: string): string => style.getPropertyValue(name).trim();
    const axis: uPlot.Axis = { stroke: color('--quiet'), font: FONT, labelFont: FONT, grid: { stroke: color('--line'), width: 1 }, ticks: { stroke: color('--line'), width: 1, size: 5 } };
    return {
      width: this.#host.clientWidth, height: HEIGHT,
      legend: { show: false },
      cursor: { drag: { x: false, y: false }, y: false },
      hooks: { setCursor: [({ cursor }) => this.#onPoint(cursor.left !== undefined && cursor.left >= 0 ? cursor.idx ?? undefined : undefined)] },
      scales: {
        // Room on either side, so that no point lies on the edge.
        x: { time: false, distr: 3, log: 2, range: () => [lengths[0]! / 1.2, lengths.at(-1)! * 1.2] },
        y: { range: (_, __, most) => [0, most > 0 ? most * 1.12 : 1] },
      },
      axes: [
        { ...axis, label: 'tokens a sequence', labelSize: 20, size: 30, splits: () => [...lengths], values: (_, at) => at.map((length) => count(length)) },
        { ...axis, label: unit, labelSize: 20, size: 58, values: (_, at) => at.map((value) => digits(value)) },
      ],
      series: [{}, ...lines.map(({ tier }): uPlot.Series => ({
        label: tier, stroke: color(`--tier-${tier}`), width: 2, dash: DASHES[tier], points: { show: true, size: 7, fill: color(`--tier-${tier}`) },
      }))],
    };
  }
}

function legend({ lines }: ChartData): HTMLElement {
  return el('p', { class: 'legend small', 'aria-hidden': 'true' }, ...lines.map(({ tier }) => el('span', {}, el('i', { class: `line ${tier}` }), tier)));
}
