/** The machine in a few words, and what that means for the page. */
import type { MlaInfo } from '../../src/mla.ts';
import type { Diagnosis } from '../site/diagnosis.ts';
import { button, byId, el } from '../site/dom.ts';

export class DeviceView {
  readonly #facts = byId('device-facts');
  readonly #notice = byId('device-notice');
  readonly #idle = [...this.#facts.childNodes];
  readonly #loseDevice: () => void;

  constructor(loseDevice: () => void) {
    this.#loseDevice = loseDevice;
  }

  opening(): void {
    this.#facts.replaceChildren(...this.#idle);
    this.#notice.replaceChildren();
  }

  show(info: MlaInfo, diagnosis: Diagnosis | undefined): void {
    const kind = info.backend === 'cpu' ? 'cpu' : info.software ? 'software' : 'gpu';
    const facts: [string, string | Node][] = [
      ['Device', el('strong', { id: 'device-name' }, info.device)],
      ['Backend', el('span', { class: `pill ${kind}`, id: 'device-backend' }, info.backend)],
      ['Why this one', info.reason],
    ];
    this.#facts.replaceChildren(el('dl', { class: 'facts' }, ...facts.flatMap(([name, value]) => [el('dt', {}, name), el('dd', {}, value)])));
    if (info.backend === 'webgpu') {
      this.#facts.append(el('p', { class: 'quiet small' }, button('Lose the device', 'lose', this.#loseDevice, { class: 'link' }), ' to see what the page does when a driver resets.'));
    }
    this.#notice.replaceChildren();
    if (diagnosis) this.#notice.append(el('div', { class: 'notice' }, el('h3', {}, diagnosis.title), el('p', {}, diagnosis.text)));
  }
}
