/** What tuning found, kept from one run to the next. Where and how is the environment's: IndexedDB in a browser, a file in Node. */
import type { TuneChoice } from './mla.ts';

/** Raised when choices come to hold, or their keys to name, something else. What is stored in another format counts as not remembered. */
export const STORE_FORMAT = 2;

/** What is kept of a class: the choice, and the configurations whose results were wrong, with what was wrong of them. */
export interface Remembered extends TuneChoice {
  readonly wrong?: Readonly<Record<string, string>>;
}

export interface TuneStore {
  /** Where, in words. */
  readonly place: string;
  /** All that is remembered, by key; empty when nothing can be read. Never rejects. */
  load(): Promise<ReadonlyMap<string, Remembered>>;
  /** Resolves to why it could not be remembered, undefined when it was. Never rejects. */
  save(key: string, choice: Remembered): Promise<string | undefined>;
  /** Forgets everything. Resolves to why not, undefined when done. Never rejects. */
  forget(): Promise<string | undefined>;
}

/** For environments that keep nothing. */
export function noStore(why: string): TuneStore {
  return { place: `nowhere: ${why}`, load: async () => new Map(), save: async () => why, forget: async () => undefined };
}

/** `value` when it is what this version writes: what is stored may be anybody's. */
export function readRemembered(value: unknown): Remembered | undefined {
  if (!isRecord(value)) return undefined;
  const { config, slots, ms, wrong } = value;
  if (typeof config !== 'string' || !Number.isSafeInteger(slots) || (slots as number) < 1) return undefined;
  if (typeof ms !== 'number' || !Number.isFinite(ms) || ms <= 0) return undefined;
  const choice = { config, slots: slots as number, ms };
  if (wrong === undefined) return choice;
  return isRecord(wrong) && Object.values(wrong).every((why) => typeof why === 'string') ? { ...choice, wrong: wrong as Record<string, string> } : undefined;
}

function isRecord(value: unknown): value is Readonly<Record<string, unknown>> {
  return typeof value === 'object' && value !== null && !Array.isArray(value);
}

/** What a choice depends on besides the class of calls. */
export interface TuneSite {
  readonly version: string;
  readonly vendor: string;
  readonly architecture: string;
  readonly device: string;
  readonly tier: string;
  /** What else is known to change times: limits of the device, toggles of Dawn. */
  readonly variant: string;
}

/** Names a device for the store; a class of calls follows it. What is of another version or device is not found. */
export function siteKey({ version, vendor, architecture, device, tier, variant }: TuneSite): string {
  return `${[version, vendor, architecture, device, tier, variant].map((part) => part.replaceAll('|', '/')).join(' | ')} | `;
}
