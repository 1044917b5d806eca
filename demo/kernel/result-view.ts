/** What a decode gave: the verdict, the errors beside what is allowed, time and rates. */
import { COSINE_TOLERANCE, LSE_TOLERANCE, OUT_TOLERANCE } from './check.ts';
import { byId, el } from '../site/dom.ts';
import { count, digits, milliseconds, plural, scientific } from '../site/format.ts';
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

  /** Draws a report, and tells it to listeners. */
  show(report: DecodeReport): void {
    const { timing, cost, check, step, lengths } = report;
    const known = timing.ms > 0;
    const tflops = cost.flops / timing.ms / 1e9;
    const figures = el('dl', { class: 'figures' },
      ...figure('Time a call', known ? milliseconds(timing.ms) : 'under the clock’s step', `${timing.source} time, median of ${timing.runs}${timing.calls > 1 ? ` × ${timing.calls} calls` : ''}`, 'time'),
      ...figure('GB/s', known ? digits(cost.bytes / timing.ms / 1e6) : '–', 'Q, cache and out, each once', 'gbps'),
      ...figure('TFLOP/s', known ? digits(tflops) : '–', known && tflops < 0.1 ? `that is ${digits(tflops * 1000)} GFLOP/s` : 'both products', 'tflops'));

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
    this.idle(`${check.pass ? 'Pass' : 'Fail'}: ${known ? `${milliseconds(timing.ms)} a call, ${digits(cost.bytes / timing.ms / 1e6)} GB/s, ${digits(tflops)} TFLOP/s` : 'too fast for the clock'}.`, true);
  }
}

function figure(name: string, value: string, note: string, id: string): HTMLElement[] {
  return [el('div', {}, el('dt', {}, name), el('dd', {}, el('span', { class: 'value', id: `figure-${id}` }, value), el('span', { class: 'quiet small' }, note)))];
}
