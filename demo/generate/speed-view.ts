/** Tokens a second, now and on the whole. */
import { byId } from '../site/dom.ts';
import { digits, plural } from '../site/format.ts';
import type { SpeedState } from './protocol.ts';

export class SpeedView {
  readonly #now = byId('speed-now');
  readonly #mean = byId('speed-mean');
  readonly #tokens = byId('speed-tokens');

  show({ now, mean, tokens }: SpeedState): void {
    this.#now.textContent = now === undefined ? '–' : digits(now);
    this.#mean.textContent = mean === undefined ? '–' : digits(mean);
    this.#tokens.textContent = tokens === 0 ? '' : plural(tokens, 'token');
  }
}
