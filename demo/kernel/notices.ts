/** What page and worker tell each other outside comlink, which ignores messages that are not its own. */

/** To the worker: destroy your device. */
export const LOSE_DEVICE = 'lose-device';

/** To the page. */
export interface DeviceLostNotice {
  readonly notice: 'device-lost';
  readonly message: string;
}

export function isDeviceLost(data: unknown): data is DeviceLostNotice {
  return typeof data === 'object' && data !== null && (data as Partial<DeviceLostNotice>).notice === 'device-lost';
}
