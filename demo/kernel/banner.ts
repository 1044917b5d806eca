/** The place for what went wrong: a refusal, or a lost device with the way back. */
import { MlaError } from '../../src/errors.ts';
import { DEVICE_LOST } from '../site/diagnosis.ts';
import { button, byId, el } from '../site/dom.ts';

const TITLES: Readonly<Record<string, string>> = {
  'pool-exhausted': 'The pool has too few free blocks; nothing was changed',
  'limit-exceeded': 'Larger than this device allows',
  'out-of-memory': 'The device is out of memory',
  internal: 'A defect: please report it',
};

export class Banner {
  readonly #box = byId('banner');

  clear(): void {
    this.#box.replaceChildren();
  }

  refused(error: Error): void {
    const code = error instanceof MlaError ? error.code : undefined;
    this.#box.replaceChildren(el('div', { class: 'notice refused' },
      el('h3', {}, TITLES[code ?? ''] ?? 'Not done'), el('p', {}, error.message), code && el('p', { class: 'quiet small' }, 'Error code: ', el('code', {}, code))));
  }

  /** @param again starts a session in place of the lost one */
  lost(message: string, again: () => void): void {
    const start = button('Start again', 'start-again', again, { class: 'primary' });
    this.#box.replaceChildren(el('div', { class: 'notice lost' },
      el('h3', {}, DEVICE_LOST.title), el('p', {}, `${DEVICE_LOST.text} What was on the device is gone; the page is not.`), el('p', { class: 'quiet small' }, message), el('p', {}, start)));
    start.focus();
  }
}
