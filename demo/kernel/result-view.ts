/** What a decode gave: the verdict, the errors beside what is allowed, time and rates. */
import { COSINE_TOLERANCE, LSE_TOLERANCE, OUT_TOLERANCE } from './check.ts';
import { byId, el } from '../site/dom.ts';
import { count, digits, milliseconds, plural, scientific } from '../site/format.ts';
import type { Ceilings } from './probe.ts';
import { flopRate, percent, ratesOf, sharesOf } from './rates.ts';
import type { DecodeReport, Progress } from './session.ts';

export class ResultView {
  readonly #status = byId('status');
  readonly #bar = byId<HTMLProgressElement>('progress');
  readonly #result = byId('result');
  #said = '';

  /** What is going on. The live region is told once a phase, not once a step of it. */
  progress({ words, part }: Progress): void {
    this.#bar.hidden = false;
    this.#status.classList.remove('told');
    if (part === undefined) this.#bar.removeAttribute('value');
    else this.#bar.value = part;
    const phase = words.split(':')[0]!;
    if (phase !== this.#said) this.#status.textContent = `${phase}…`;
    this.#said = phase;
  }

  /** Nothing is going on; `words` say what came of it. `told`: to listeners only, since the page shows it anyway. */
  idle(words: string, told = false): void {
    this.#bar.hidden = true;
    this.#status.classList.toggle('told', told);
    this.#said = '';
    this.#status.textContent = words;
  }

  /** The cache is no longer what the figures were taken on. */
  stale(): void {
    if (this.#result.childElementCount === 0 || this.#result.classList.contains('stale')) return;
    this.#result.classList.add('stale');
    this.#result.prepend(el('p', { class: 'quiet small' }, 'The figures below are from before the cache changed.'));
  }

  clear(): void {
    this.#result.classList.remove('stale');
    this.#result.replaceChildren();
  }

  /** Draws a report, and tells it to listeners. @param ceilings what the adapter can do at best, where that was measured */
  show({ timing, cost, check, step, lengths }: DecodeReport, ceilings?: Ceilings): void {
    const rates = ratesOf(cost, timing.ms);
    const [flopValue = '–', flopUnit = 'TFLOP/s'] = rates ? flopRate(rates.tflops).split(' ') : [];
    const shares = rates && ceilings && sharesOf(rates, ceilings);
    const figures = el('dl', { class: 'figures' },
      figure({
        id: 'time', name: 'Time a call', value: rates ? milliseconds(timing.ms) : 'under the clock’s step',
        note: `${timing.source} time, median of ${timing.runs}${timing.calls > 1 ? ` × ${timing.calls} calls` : ''}`,
      }),
      figure({
        id: 'gbps', name: 'GB/s', value: rates ? digits(rates.gbps) : '–', part: shares?.read,
        note: shares ? `${percent(shares.read)} of what this adapter reads, ${digits(ceilings!.reads)} GB/s` : 'Q, cache and out, each once',
      }),
      figure({
        id: 'flops', name: flopUnit, value: flopValue, part: shares?.compute,
        note: shares ? `${percent(shares.compute)} of what this adapter computes in f32, ${flopRate(ceilings!.computes)}` : 'both products',
      }));

    const verdict = el('p', { class: `verdict ${check.pass ? 'pass' : 'fail'}`, id: 'verdict' },
      el('span', { 'aria-hidden': 'true' }, check.pass ? '✓ ' : '✗ '), check.pass ? 'Pass' : 'Fail',
      el('span', { class: 'quiet' }, check.pass ? ' – the same as attention in float64' : ` – ${check.fault}`));
    const row = (name: string, value: number, allowed: string): HTMLElement =>
      el('tr', {}, el('th', { scope: 'row' }, name), el('td', {}, scientific(value)), el('td', {}, allowed));
    const table = el('table', {},
      el('thead', {}, el('tr', {}, ...['Largest difference', 'Found', 'Allowed'].map((text) => el('th', { scope: 'col' }, text)))),
      el('tbody', {},
        row('out, absolute', check.outError, `${scientific(OUT_TOLERANCE.abs)} or ${digits(OUT_TOLERANCE.rel * 100)} %`),
        row('lse, absolute', check.lseError, `${scientific(LSE_TOLERANCE.abs)} or ${digits(LSE_TOLERANCE.rel * 100)} %`),
        row('out, cosine distance', check.cosine, scientific(COSINE_TOLERANCE))));

    const rows = check.rows === check.rowsInAll ? `All ${plural(check.rows, 'row')}` : `${count(check.rows)} of ${count(check.rowsInAll)} rows, spread over the heads,`;
    const empty = check.emptyRows === 0 ? '' : ` ${plural(check.emptyRows, 'row')} had nothing to attend to: out is 0 and lse +∞ there.`;
    const notes = el('p', { class: 'quiet small' },
      `${plural(lengths.length, 'sequence')}, ${plural(step.heads, 'head')}, ${plural(step.sQ, 'query token')}${step.causal ? ', causal' : ''}. ${rows} compared.${empty}`);

    this.#result.classList.remove('stale');
    this.#result.replaceChildren(verdict, figures, table, notes);
    this.idle(`${check.pass ? 'Pass' : 'Fail'}: ${rates ? `${milliseconds(timing.ms)} a call, ${digits(rates.gbps)} GB/s, ${flopRate(rates.tflops)}` : 'too fast for the clock'}.`, true);
  }
}

interface Figure {
  readonly id: string;
  readonly name: string;
  readonly value: string;
  readonly note: string;
  /** Of what is possible; drawn as a bar. */
  readonly part?: number | undefined;
}

function figure({ id, name, value, note, part }: Figure): HTMLElement {
  const bar = part !== undefined && el('span', { class: 'share', 'aria-hidden': 'true' }, el('span', { style: `width: ${Math.min(100, 100 * part).toFixed(1)}%` }));
  return el('div', {}, el('dt', {}, name), el('dd', {}, el('span', { class: 'value', id: `figure-${id}` }, value), bar, el('span', { class: 'quiet small', id: `note-${id}` }, note)));
}
