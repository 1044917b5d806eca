/** The panel about the machine: which backend, on what, why, and what that means. */
import type { MlaInfo } from '../../src/mla.ts';
import type { Diagnosis } from '../site/diagnosis.ts';
import { button, byId, el } from '../site/dom.ts';

export interface DeviceActions {
  readonly useCpu: () => void;
  readonly loseDevice: () => void;
}

export class DeviceView {
  readonly #facts = byId('device-facts');
  readonly #notice = byId('device-notice');
  readonly #actions: DeviceActions;

  constructor(actions: DeviceActions) {
    this.#actions = actions;
  }

  opening(): void {
    this.#facts.replaceChildren(el('p', { class: 'quiet' }, 'Looking for a device…'));
    this.#notice.replaceChildren();
  }

  show(info: MlaInfo, diagnosis: Diagnosis | undefined): void {
    const kind = info.backend === 'cpu' ? 'cpu' : info.software ? 'software' : 'gpu';
    const facts: [string, string | Node][] = [
      ['Device', el('strong', { id: 'device-name' }, info.device)],
      ['Backend', el('span', {}, el('span', { class: `pill ${kind}`, id: 'device-backend' }, info.backend), kind === 'software' ? ' software adapter' : undefined)],
    ];
    if (info.tier !== undefined) facts.push(['Kernel tier', info.tier]);
    facts.push(['Why this one', el('span', { id: 'device-reason' }, info.reason)]);
    if (info.backend === 'webgpu') facts.push(['Clock', info.features.includes('timestamp-query') ? 'on the device (timestamp queries)' : 'wall time (no timestamp queries)']);
    this.#facts.replaceChildren(el('dl', { class: 'facts' }, ...facts.flatMap(([name, value]) => [el('dt', {}, name), el('dd', {}, value)])));
    if (info.backend === 'webgpu') {
      const lose = button('Lose the device', 'lose', this.#actions.loseDevice, { class: 'link' });
      this.#facts.append(el('p', { class: 'quiet small' }, lose, ' to see what the page does when a driver resets.'));
    }
    this.#tell(diagnosis);
  }

  failed(diagnosis: Diagnosis, error: Error): void {
    this.#facts.replaceChildren(el('p', { class: 'quiet small' }, error.message));
    this.#tell(diagnosis, button('Use the cpu backend', 'use-cpu', this.#actions.useCpu));
  }

  #tell(diagnosis: Diagnosis | undefined, action?: HTMLElement): void {
    this.#notice.replaceChildren();
    if (!diagnosis) return;
    this.#notice.append(el('div', { class: 'notice' }, el('h3', {}, diagnosis.title), el('p', {}, diagnosis.text), action && el('p', {}, action)));
  }
}
