/** The form: reads a batch, refuses in words what cannot be run, and follows the device's power. */
import type { BackendName } from '../../src/mla.ts';
import type { Tier } from '../../src/webgpu/tier.ts';
import {
  MOST_HEADS, MOST_QUERIES, MOST_SEQUENCES, blocksOf, formatLengths, parseLengths, presetLengths, refusal, type Batch, type Power, type Preset,
} from './batch.ts';
import { byId } from '../site/dom.ts';
import { bytes, flops, plural } from '../site/format.ts';
import type { Choice } from './opening.ts';
import { BLOCK_SIZE, TOKEN_BYTES, costOf } from './shape.ts';
import { TIERS_UP, type TierBook } from './tiers.ts';

export interface FormActions {
  readonly run: (batch: Batch) => void;
  readonly choose: (choice: Choice) => void;
}

export class BatchForm {
  readonly #form = byId<HTMLFormElement>('batch-form');
  readonly #preset = byId<HTMLSelectElement>('preset');
  readonly #sequences = byId<HTMLInputElement>('sequences');
  readonly #lengths = byId<HTMLTextAreaElement>('lengths');
  readonly #heads = byId<HTMLInputElement>('heads');
  readonly #queries = byId<HTMLInputElement>('queries');
  readonly #causal = byId<HTMLInputElement>('causal');
  readonly #backend = byId<HTMLSelectElement>('backend');
  readonly #tier = byId<HTMLSelectElement>('tier');
  readonly #run = byId<HTMLButtonElement>('run');
  readonly #size = byId('size');
  readonly #problem = byId('problem');
  #power: Power = 'software';

  constructor(actions: FormActions) {
    this.#preset.addEventListener('change', () => this.#regenerate());
    this.#sequences.addEventListener('input', () => this.#regenerate());
    this.#lengths.addEventListener('input', () => {
      this.#preset.value = 'custom';
      try {
        this.#sequences.value = String(parseLengths(this.#lengths.value).length);
      } catch {
        // Told by #judge.
      }
      this.#judge();
    });
    for (const input of [this.#heads, this.#queries, this.#causal]) input.addEventListener('input', () => this.#judge());
    for (const select of [this.#backend, this.#tier]) select.addEventListener('change', () => actions.choose(this.choice));
    this.#form.addEventListener('submit', (event) => {
      event.preventDefault();
      if (this.#run.getAttribute('aria-disabled') === 'true') return;
      const batch = this.#judge();
      if (batch) actions.run(batch);
      else this.#form.querySelector<HTMLElement>('[aria-invalid=true]')?.focus();
    });
    this.#regenerate();
  }

  get choice(): Choice {
    return { backend: this.#backend.value as BackendName | 'auto', tier: this.#tier.value as Tier | 'auto' };
  }

  set choice({ backend, tier }: Choice) {
    this.#backend.value = backend;
    this.#tier.value = tier;
  }

  /** Only tiers with nothing against them can be chosen. */
  setTiers(book: TierBook): void {
    for (const option of this.#tier.options) {
      const tier = TIERS_UP.find((name) => name === option.value);
      if (tier === undefined) continue;
      const why = book.why(tier);
      option.disabled = why !== undefined;
      option.textContent = why === undefined ? tier : `${tier} (not here)`;
    }
  }

  /** Fills the form, as a visitor would who writes lengths. */
  setBatch({ lengths, heads, sQ, causal }: Batch): void {
    this.#preset.value = 'custom';
    this.#sequences.value = String(lengths.length);
    this.#lengths.value = formatLengths(lengths);
    this.#heads.value = String(heads);
    this.#queries.value = String(sQ);
    this.#causal.checked = causal;
    this.#judge();
  }

  /** The batch in the form, or undefined, with the reason on the page. */
  read(): Batch | undefined {
    return this.#judge();
  }

  /** Sizes follow the device until the visitor writes lengths of their own. */
  setPower(power: Power): void {
    if (power === this.#power) return;
    this.#power = power;
    this.#regenerate();
  }

  setBusy(busy: boolean): void {
    this.#run.setAttribute('aria-disabled', String(busy));
  }

  #regenerate(): void {
    const preset = this.#preset.value as Preset;
    const wanted = whole(this.#sequences, 1, MOST_SEQUENCES);
    if (wanted !== undefined) {
      if (preset !== 'custom') this.#lengths.value = formatLengths(presetLengths(preset, wanted, this.#power));
      else this.#lengths.value = resized(this.#lengths.value, wanted);
    }
    this.#judge();
  }

  #judge(): Batch | undefined {
    const bad: HTMLElement[] = [];
    const problems: string[] = [];
    const blame = (input: HTMLElement, problem: string): void => void (bad.push(input), problems.push(problem));

    const heads = whole(this.#heads, 1, MOST_HEADS);
    const sQ = whole(this.#queries, 1, MOST_QUERIES);
    if (whole(this.#sequences, 1, MOST_SEQUENCES) === undefined) blame(this.#sequences, `Batch size: a whole number from 1 to ${MOST_SEQUENCES}.`);
    if (heads === undefined) blame(this.#heads, `Heads: a whole number from 1 to ${MOST_HEADS}.`);
    if (sQ === undefined) blame(this.#queries, `Query tokens: a whole number from 1 to ${MOST_QUERIES}.`);
    let lengths: number[] | undefined;
    try {
      lengths = parseLengths(this.#lengths.value);
    } catch (error) {
      blame(this.#lengths, `Lengths: ${(error as Error).message}`);
    }
    const batch = lengths && heads && sQ ? { lengths, heads, sQ, causal: this.#causal.checked } : undefined;
    const refused = batch && refusal(batch, batch.lengths, this.#power);
    if (refused) blame(this.#lengths, refused);

    for (const input of [this.#sequences, this.#heads, this.#queries, this.#lengths]) input.setAttribute('aria-invalid', String(bad.includes(input)));
    this.#problem.textContent = problems.join(' ');
    this.#size.textContent = batch ? describeSize(batch) : '';
    return problems.length === 0 ? batch : undefined;
  }
}

function describeSize(batch: Batch): string {
  const tokens = batch.lengths.reduce((sum, n) => sum + n, 0);
  return [
    plural(tokens, 'cached token'), `${plural(blocksOf(batch.lengths), 'block')} of ${BLOCK_SIZE}`, bytes(tokens * TOKEN_BYTES),
    `${flops(costOf(batch, batch.lengths).flops)} a call`,
  ].join(' · ');
}

/** What a visitor wrote, repeated or cut to another number of sequences. */
function resized(text: string, wanted: number): string {
  try {
    const lengths = parseLengths(text);
    return lengths.length === wanted ? text : formatLengths(Array.from({ length: wanted }, (_, i) => lengths[i % lengths.length]!));
  } catch {
    return text;
  }
}

function whole(input: HTMLInputElement, least: number, most: number): number | undefined {
  const value = Number(input.value);
  return input.value.trim() !== '' && Number.isInteger(value) && value >= least && value <= most ? value : undefined;
}
