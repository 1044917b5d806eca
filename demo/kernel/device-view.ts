/** The panel about the machine: which backend, on what, why, and what that means. */
import type { MlaInfo } from '../../src/mla.ts';
import { backendPill, deviceName, diagnosisNotice, factList, loseDeviceLine, type Fact } from '../site/device-facts.ts';
import { lacksOf, type Diagnosis } from '../site/diagnosis.ts';
import { button, byId, el } from '../site/dom.ts';
import { bytes, digits } from '../site/format.ts';
import type { Ceilings } from './probe.ts';
import { flopRate } from './rates.ts';

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

  /** @param diagnoses what there is to tell about it, the most important first */
  show(info: MlaInfo, diagnoses: readonly Diagnosis[]): void {
    const facts: Fact[] = [
      deviceName(info), ['Backend', el('span', {}, backendPill(info), info.backend !== 'cpu' && info.software ? ' software adapter' : undefined)],
    ];
    if (info.tier !== undefined) facts.push(['Kernel tier', info.tier]);
    facts.push(['Why this one', el('span', { id: 'device-reason' }, info.reason)]);
    if (info.backend === 'webgpu') {
      facts.push(['Clock', info.features.includes('timestamp-query') ? 'on the device (timestamp queries)' : 'wall time (no timestamp queries)']);
      facts.push(['Reads', el('span', { id: 'device-reads' }, 'measured with the first run')]);
      facts.push(['Computes', el('span', { id: 'device-computes' }, 'measured with the first run')]);
    }
    this.#facts.replaceChildren(factList(facts));
    const lacks = lacksOf(info);
    if (lacks.length > 0) {
      this.#facts.append(el('details', { class: 'small' }, el('summary', {}, 'What this device lacks'),
        el('ul', { class: 'plain' }, ...lacks.map(({ title, text }) => el('li', {}, el('strong', {}, title), ` ${text}`)))));
    }
    if (info.backend === 'webgpu') this.#facts.append(loseDeviceLine(this.#actions.loseDevice));
    this.#tell(diagnoses);
  }

  /** What the probe found, or why it found nothing. */
  measured(ceilings: Ceilings | string): void {
    const failed = typeof ceilings === 'string';
    byId('device-reads').textContent = failed ? `not measured: ${ceilings}` : `${digits(ceilings.reads)} GB/s from a buffer of ${bytes(ceilings.bytes)}, measured here`;
    byId('device-computes').textContent = failed ? 'not measured' : `${flopRate(ceilings.computes)} in f32, measured here`;
  }

  failed(diagnosis: Diagnosis, error: Error): void {
    this.#facts.replaceChildren(el('p', { class: 'quiet small' }, error.message));
    this.#tell([diagnosis], button('Use the cpu backend', 'use-cpu', this.#actions.useCpu));
  }

  #tell(diagnoses: readonly Diagnosis[], action?: HTMLElement): void {
    this.#notice.replaceChildren(...diagnoses.map((diagnosis) => diagnosisNotice(diagnosis, action)));
  }
}
