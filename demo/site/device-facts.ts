/** What every page tells of its device in the same way. */
import type { MlaInfo } from '../../src/mla.ts';
import type { Diagnosis } from './diagnosis.ts';
import { button, el } from './dom.ts';

export type Fact = readonly [name: string, value: string | Node];

export function deviceName({ device }: MlaInfo): Fact {
  return ['Device', el('strong', { id: 'device-name' }, device)];
}

/** The backend, coloured by what it runs on. */
export function backendPill({ backend, software }: MlaInfo): HTMLElement {
  const kind = backend === 'cpu' ? 'cpu' : software ? 'software' : 'gpu';
  return el('span', { class: `pill ${kind}`, id: 'device-backend' }, backend);
}

export function factList(facts: readonly Fact[]): HTMLElement {
  return el('dl', { class: 'facts' }, ...facts.flatMap(([name, value]) => [el('dt', {}, name), el('dd', {}, value)]));
}

/** A way to see what a lost device is like. */
export function loseDeviceLine(lose: () => void): HTMLElement {
  return el('p', { class: 'quiet small' }, button('Lose the device', 'lose', lose, { class: 'link' }), ' to see what the page does when a driver resets.');
}

export function diagnosisNotice({ title, text }: Diagnosis, action?: HTMLElement): HTMLElement {
  return el('div', { class: 'notice' }, el('h3', {}, title), el('p', {}, text), action && el('p', {}, action));
}
