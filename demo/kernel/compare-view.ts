/** The same batch on each tier, as a table. */
import type { Tier } from '../../src/webgpu/tier.ts';
import { byId, el } from '../site/dom.ts';
import { digits, milliseconds } from '../site/format.ts';
import { flopRate, ratesOf } from './rates.ts';
import type { TierRun } from './tier-runs.ts';

const COLUMNS = ['Tier', 'Time a call', 'GB/s', 'Arithmetic', 'Against base', 'Check'];

export class CompareView {
  readonly #body = byId('compare');

  clear(): void {
    this.#body.replaceChildren();
  }

  /** @param waiting tiers that are still to run */
  show(runs: readonly TierRun[], waiting: readonly Tier[]): void {
    const base = runs.find(({ tier }) => tier === 'base')?.report?.timing.ms;
    this.#body.replaceChildren(el('div', { class: 'scroll', tabindex: 0, role: 'region', 'aria-label': 'Tiers compared' },
      el('table', { class: 'numbers', id: 'compare-table' },
        el('thead', {}, el('tr', {}, ...COLUMNS.map((name) => el('th', { scope: 'col' }, name)))),
        el('tbody', {},
          ...runs.map((run) => rowOf(run, base)),
          ...waiting.map((tier) => el('tr', {}, el('th', { scope: 'row' }, tier), el('td', { colspan: COLUMNS.length - 1, class: 'quiet' }, 'to come')))))));
  }
}

function rowOf({ tier, report, fault }: TierRun, base: number | undefined): HTMLElement {
  const name = el('th', { scope: 'row' }, tier);
  if (!report) return el('tr', {}, name, el('td', { colspan: COLUMNS.length - 1, class: 'words' }, `did not run: ${fault}`));
  const { timing: { ms }, cost, check } = report;
  const rates = ratesOf(cost, ms);
  const against = base !== undefined && base > 0 && ms > 0 ? `${digits(base / ms)} ×` : '–';
  const cells = rates ? [milliseconds(ms), digits(rates.gbps), flopRate(rates.tflops), against] : ['under the clock’s step', '–', '–', '–'];
  return el('tr', {}, name, ...cells.map((text) => el('td', {}, text)), el('td', { class: check.pass ? 'good' : 'bad' }, check.pass ? 'pass' : `fail: ${check.fault}`));
}
