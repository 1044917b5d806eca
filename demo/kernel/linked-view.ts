/** The run that a link carried, beside the run here. */
import { byId, el } from '../site/dom.ts';
import { digits, milliseconds } from '../site/format.ts';
import type { Batch } from './batch.ts';
import type { LinkedRun } from './link.ts';
import { flopRate, percent, ratesOf, sharesOf } from './rates.ts';
import { sameBatch, type RunRecord } from './record.ts';
import { costOf } from './shape.ts';

export class LinkedView {
  readonly #section = byId('linked');
  readonly #body = byId('linked-body');
  #run: LinkedRun | undefined;

  clear(): void {
    this.#run = undefined;
    this.#section.hidden = true;
  }

  /** @param why in words for the visitor */
  refuse(why: string): void {
    this.#run = undefined;
    this.#section.hidden = false;
    this.#body.replaceChildren(el('div', { class: 'notice refused', role: 'alert' },
      el('h3', {}, 'The figures in this link cannot be read, and are ignored'), el('p', {}, why)));
  }

  show(run: LinkedRun): void {
    this.#run = run;
    this.#section.hidden = false;
    this.#draw(undefined);
  }

  /** Sets a run here beside it, if it is of the same batch. */
  compare(here: RunRecord): void {
    if (this.#run) this.#draw(here);
  }

  #draw(here: RunRecord | undefined): void {
    const run = this.#run!;
    const same = here && sameBatch(here, run.batch);
    const theirs = columnOf(run);
    const ours = same ? columnOf({ ...here, batch: here, pass: here.check.pass, ...here.ceilings }) : undefined;
    const hint = here && !same
      ? 'The last run here was of another batch. Open the link again to have its batch in the form.'
      : 'The form holds the batch of the link. Run it to see this device beside the other.';
    this.#body.replaceChildren(
      el('div', { class: 'scroll', tabindex: 0, role: 'region', 'aria-labelledby': 'linked-title' }, el('table', { class: 'beside' },
        el('thead', {}, el('tr', {}, ...['', 'From the link', 'Here'].map((name) => (name === '' ? el('td', {}) : el('th', { scope: 'col' }, name))))),
        el('tbody', {}, ...theirs.map(([name, value], i) => el('tr', {}, el('th', { scope: 'row' }, name), el('td', {}, value), el('td', {}, ours?.[i]![1] ?? '–')))))),
      el('p', { class: 'quiet small' }, ours ? `${speed(run.ms, here!.ms)} ` : `${hint} `, 'The figures of the link are the sender’s word: nothing here can check them.'));
  }
}

/** What both a link and a run here say. */
interface Side {
  readonly batch: Batch;
  readonly device: string;
  readonly backend: string;
  readonly tier?: string;
  readonly ms: number;
  readonly source: string;
  readonly pass: boolean;
  readonly reads?: number;
  readonly computes?: number;
}

function columnOf({ batch, ...run }: Side): [string, string][] {
  const rates = ratesOf(costOf(batch, batch.lengths), run.ms);
  const shares = rates && run.reads !== undefined && run.computes !== undefined ? sharesOf(rates, { reads: run.reads, computes: run.computes }) : undefined;
  return [
    ['Device', run.device],
    ['Runs on', run.tier === undefined ? run.backend : `${run.backend}, ${run.tier} tier`],
    ['Time a call', rates ? `${milliseconds(run.ms)} (${run.source})` : '–'],
    ['Reads', rates ? `${digits(rates.gbps)} GB/s${shares ? `, ${percent(shares.read)} of the adapter’s` : ''}` : '–'],
    ['Computes', rates ? `${flopRate(rates.tflops)}${shares ? `, ${percent(shares.compute)} of the adapter’s f32` : ''}` : '–'],
    ['Check', run.pass ? 'pass' : 'fail'],
  ];
}

/** Which of the two is faster, in words. */
function speed(theirs: number, here: number): string {
  if (!(here > 0)) return '';
  const ratio = theirs / here;
  if (ratio > 0.95 && ratio < 1.05) return 'Both take about as long.';
  return ratio > 1 ? `This device is ${digits(ratio)} times as fast.` : `The other device is ${digits(1 / ratio)} times as fast.`;
}
