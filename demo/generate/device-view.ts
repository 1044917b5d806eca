/** The machine in a few words, and what that means for the page. */
import type { MlaInfo } from '../../src/mla.ts';
import { backendPill, deviceName, diagnosisNotice, factList, loseDeviceLine } from '../site/device-facts.ts';
import type { Diagnosis } from '../site/diagnosis.ts';
import { byId } from '../site/dom.ts';

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

  /** There is no device any more that could be lost. */
  lost(): void {
    this.#facts.querySelector('#lose')?.closest('p')?.remove();
  }

  show(info: MlaInfo, diagnosis: Diagnosis | undefined): void {
    this.#facts.replaceChildren(factList([deviceName(info), ['Backend', backendPill(info)], ['Why this one', info.reason]]));
    if (info.backend === 'webgpu') this.#facts.append(loseDeviceLine(this.#loseDevice));
    this.#notice.replaceChildren(...(diagnosis ? [diagnosisNotice(diagnosis)] : []));
  }
}
