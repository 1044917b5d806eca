/** The form: a prompt and how tokens are chosen, read and checked. */
import { byId } from '../site/dom.ts';
import type { Sampling } from './protocol.ts';

export interface PromptActions {
  readonly generate: (prompt: string, sampling: Sampling) => void;
  readonly stopAll: () => void;
}

interface Numeric {
  readonly input: HTMLInputElement;
  readonly name: string;
  readonly whole: boolean;
}

export class PromptForm {
  readonly #form = byId<HTMLFormElement>('prompt-form');
  readonly #prompt = byId<HTMLTextAreaElement>('prompt');
  readonly #generate = byId<HTMLButtonElement>('generate');
  readonly #stop = byId<HTMLButtonElement>('stop-all');
  readonly #greedy = byId<HTMLInputElement>('greedy');
  readonly #summary = byId('sampling-summary');
  readonly #problem = byId('problem');
  readonly #maxTokens: Numeric = { input: byId('max-tokens'), name: 'Tokens', whole: true };
  readonly #temperature: Numeric = { input: byId('temperature'), name: 'Temperature', whole: false };
  readonly #topK: Numeric = { input: byId('top-k'), name: 'Top-k', whole: true };
  readonly #topP: Numeric = { input: byId('top-p'), name: 'Top-p', whole: false };
  readonly #penalty: Numeric = { input: byId('penalty'), name: 'Repetition penalty', whole: false };
  readonly #seed: Numeric = { input: byId('seed'), name: 'Seed', whole: true };

  constructor({ generate, stopAll }: PromptActions) {
    this.#form.addEventListener('submit', (event) => {
      event.preventDefault();
      if (this.#generate.getAttribute('aria-disabled') === 'true') return;
      const sampling = this.sampling();
      if (sampling) generate(this.#prompt.value, sampling);
    });
    this.#prompt.addEventListener('keydown', (event) => {
      if (event.key !== 'Enter' || !(event.ctrlKey || event.metaKey)) return;
      event.preventDefault();
      this.#form.requestSubmit();
    });
    this.#form.addEventListener('input', () => this.#judge());
    this.#stop.addEventListener('click', () => this.#stop.getAttribute('aria-disabled') !== 'true' && stopAll());
    this.#judge();
  }

  /** Why and where it is wrong is told on the page, and undefined given. */
  sampling(): Sampling | undefined {
    const sampling = this.#judge();
    if (sampling) return sampling;
    const wrong = this.#form.querySelector<HTMLElement>('[aria-invalid=true]');
    const folded = wrong?.closest('details');
    if (folded) folded.open = true;
    wrong?.focus();
    return undefined;
  }

  setReady(ready: boolean): void {
    this.#generate.setAttribute('aria-disabled', String(!ready));
  }

  setWriting(writing: boolean): void {
    this.#stop.setAttribute('aria-disabled', String(!writing));
  }

  #judge(): Sampling | undefined {
    const problems: string[] = [];
    const read = ({ input, name, whole }: Numeric): number => {
      const value = Number(input.value);
      const [least, most] = [Number(input.min), Number(input.max)];
      const good = input.value.trim() !== '' && !input.validity.badInput && value >= least && value <= most && (!whole || Number.isInteger(value));
      input.setAttribute('aria-invalid', String(!good));
      if (!good) problems.push(`${name}: a ${whole ? 'whole ' : ''}number from ${least} to ${most}.`);
      return value;
    };
    const greedy = this.#greedy.checked;
    for (const { input } of [this.#temperature, this.#topK, this.#topP, this.#seed]) {
      input.disabled = greedy;
      input.setAttribute('aria-invalid', 'false');
    }
    const [maxTokens, repetitionPenalty] = [read(this.#maxTokens), read(this.#penalty)];
    const seed = this.#seed.input;
    const sampling: Sampling = greedy ? { maxTokens, repetitionPenalty, temperature: 0 } : {
      maxTokens, repetitionPenalty, temperature: read(this.#temperature), topK: read(this.#topK), topP: read(this.#topP),
      seed: seed.value === '' && !seed.validity.badInput ? Math.floor(Math.random() * 2 ** 32) : read(this.#seed),
    };
    this.#problem.textContent = problems.join(' ');
    this.#summary.textContent = problems.length > 0 ? '' : `: ${describeSampling(sampling, seed.value !== '')}`;
    return problems.length === 0 ? sampling : undefined;
  }
}

/** @param withSeed whether the seed is worth a word */
export function describeSampling({ temperature, topK, topP, repetitionPenalty, seed }: Sampling, withSeed: boolean): string {
  const penalty = repetitionPenalty === 1 ? '' : `, penalty ${repetitionPenalty}`;
  if (temperature === 0) return `greedy${penalty}`;
  return `temperature ${temperature}${topK === 0 ? '' : `, top-k ${topK}`}${topP === 1 ? '' : `, top-p ${topP}`}${penalty}${withSeed ? `, seed ${seed}` : ''}`;
}
