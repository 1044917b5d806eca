/** What page and worker tell each other outside comlink, which ignores messages that are not its own. */
import type { Ceilings, ProbeOptions } from './probe.ts';

/** To the worker: destroy your device. */
export const LOSE_DEVICE = 'lose-device';

/** To the page. */
export interface DeviceLostNotice {
  readonly notice: 'device-lost';
  readonly message: string;
}

export function isDeviceLost(data: unknown): data is DeviceLostNotice {
  return isNotice(data, 'device-lost');
}

/** To the worker, with a port for the answer: see what your device can do. */
export interface ProbeRequest extends ProbeOptions {
  readonly notice: 'probe';
  readonly port: MessagePort;
}

export function isProbeRequest(data: unknown): data is ProbeRequest {
  return isNotice(data, 'probe');
}

export type ProbeAnswer = { readonly ceilings: Ceilings } | { readonly fault: string };

function isNotice(data: unknown, notice: string): boolean {
  return typeof data === 'object' && data !== null && (data as { notice?: unknown }).notice === notice;
}
