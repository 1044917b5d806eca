/** Rates over context length, a line a tier: a chart, which is loaded when there is something to draw, and the same as a table. */
import type { Tier } from '../../src/webgpu/tier.ts';
import { byId, el } from '../site/dom.ts';
import { count, digits, milliseconds } from '../site/format.ts';
import { ratesOf } from './rates.ts';
import type { SweepChart } from './sweep-chart.ts';
import type { TierRun } from './tier-runs.ts';

interface Measure {
  readonly name: string;
  readonly of: (run: TierRun) => number | undefined;
  readonly text: (value: number) => string;
}

const MEASURES: Readonly<Record<string, Measure>> = {
  gbps: { name: 'GB/s', of: (run) => rates(run)?.gbps, text: digits },
  tflops: { name: 'TFLOP/s', of: (run) => rates(run)?.tflops, text: digits },
  ms: { name: 'ms a call', of: ({ report }) => (report && report.timing.ms > 0 ? report.timing.ms : undefined), text: milliseconds },
};

export class SweepView {
  readonly #section = byId('sweep');
  readonly #chartBox = byId('sweep-chart');
  readonly #tableBox = byId('sweep-table');
  readonly #measure = byId<HTMLSelectElement>('sweep-measure');
  readonly #readout = byId('sweep-readout');
  #chart: Promise<SweepChart> | undefined;
  #tiers: readonly Tier[] = [];
  #lengths: readonly number[] = [];
  #runs: readonly TierRun[] = [];

  constructor() {
    this.#measure.addEventListener('change', () => void this.#draw());
  }

  clear(): void {
    this.#section.hidden = true;
  }

  /** @param lengths tokens of each sequence, ascending */
  async show(tiers: readonly Tier[], lengths: readonly number[], runs: readonly TierRun[]): Promise<void> {
    [this.#tiers, this.#lengths, this.#runs] = [tiers, lengths, runs];
    this.#section.hidden = false;
    await this.#draw();
  }

  async #draw(): Promise<void> {
    const measure = MEASURES[this.#measure.value]!;
    this.#tableBox.replaceChildren(this.#table(measure));
    this.#chart ??= import('./sweep-chart.ts').then(({ SweepChart }) => new SweepChart(this.#chartBox, (point) => this.#point(point)));
    try {
      (await this.#chart).draw({
        lengths: this.#lengths, unit: measure.name,
        lines: this.#tiers.map((tier) => ({ tier, values: this.#lengths.map((length) => this.#value(measure, tier, length) ?? null) })),
      });
    } catch (error) {
      // The figures are in the table.
      this.#chartBox.replaceChildren(el('p', { class: 'quiet small' }, `The chart could not be drawn: ${(error as Error).message}`));
    }
  }

  #run(tier: Tier, length: number): TierRun | undefined {
    return this.#runs.find((run) => run.tier === tier && run.batch.lengths[0] === length);
  }

  #value(measure: Measure, tier: Tier, length: number): number | undefined {
    const run = this.#run(tier, length);
    return run && measure.of(run);
  }

  #table(measure: Measure): HTMLElement {
    const cell = (tier: Tier, length: number): HTMLElement => {
      const run = this.#run(tier, length);
      if (run?.fault !== undefined) return el('td', { class: 'words' }, `did not run: ${run.fault}`);
      const value = this.#value(measure, tier, length);
      const failed = run?.report?.check.pass === false;
      return el('td', { class: failed ? 'bad' : undefined }, `${value === undefined ? '–' : measure.text(value)}${failed ? ', check failed' : ''}`);
    };
    return el('table', { class: 'numbers' },
      el('caption', {}, `${measure.name} by length`),
      el('thead', {}, el('tr', {}, el('th', { scope: 'col' }, 'Tokens a sequence'), ...this.#tiers.map((tier) => el('th', { scope: 'col' }, tier)))),
      el('tbody', {}, ...this.#lengths.map((length) => el('tr', {}, el('th', { scope: 'row' }, count(length)), ...this.#tiers.map((tier) => cell(tier, length))))));
  }

  /** Tells of the length that the pointer is at. */
  #point(index: number | undefined): void {
    const length = index === undefined ? undefined : this.#lengths[index];
    const measure = MEASURES[this.#measure.value]!;
    this.#readout.textContent = length === undefined ? '' : `${count(length)} tokens a sequence: ${this.#tiers.map((tier) => {
      const value = this.#value(measure, tier, length);
      return `${tier} ${value === undefined ? '–' : measure.text(value)}`;
    }).join(', ')}`;
  }
}

function rates({ report }: TierRun): { gbps: number; tflops: number } | undefined {
  return report && ratesOf(report.cost, report.timing.ms);
}
