/**
 * Links that carry a run in their hash: what was run, on what, and the figures. Pure.
 *
 * A hash may come from anyone: every field is typed and bounded, and a wrong one refuses the whole.
 */
import type { BackendName } from '../../src/mla.ts';
import type { Tier } from '../../src/webgpu/tier.ts';
import { MOST_HEADS, MOST_QUERIES, formatLengths, parseLengths, refusal, type Batch } from './batch.ts';
import type { Choice } from './opening.ts';
import type { RunRecord } from './record.ts';
import { isTier } from './tiers.ts';

/** Raised when the fields change. */
const VERSION = '1';
const KEY = 'run';
const MOST_CHARACTERS = 2000;
const MOST_NAME = 100;

/** What a link says. Nobody has checked its figures. */
export interface LinkedRun {
  readonly batch: Batch;
  /** As the sender had chosen, and what that came to. */
  readonly choice: Choice;
  readonly backend: 'webgpu' | 'cpu';
  readonly tier?: Tier;
  readonly device: string;
  readonly ms: number;
  readonly source: 'device' | 'wall';
  readonly pass: boolean;
  /** The sender's ceilings. */
  readonly reads?: number;
  readonly computes?: number;
}

/** The hash of a run, or undefined where there is no time to carry. */
export function linkHash(run: RunRecord, choice: Choice): string | undefined {
  if (!(run.ms > 0)) return undefined;
  const fields = new URLSearchParams({
    [KEY]: VERSION, lengths: formatLengths(run.lengths).replaceAll(', ', ' '), heads: String(run.heads), queries: String(run.sQ), causal: flag(run.causal),
    choice: `${choice.backend} ${choice.tier}`, on: run.tier === undefined ? run.backend : `${run.backend} ${run.tier}`,
    device: [...run.device.replace(/\p{C}/gu, '')].slice(0, MOST_NAME).join('') || 'unnamed', ms: short(run.ms), clock: run.source, pass: flag(run.check.pass),
    ...(run.ceilings && { reads: short(run.ceilings.reads), computes: short(run.ceilings.computes) }),
  });
  return `#${fields}`;
}

/** What a hash carries; undefined when it is none of these links. @throws Error in words for the visitor */
export function parseLink(hash: string): LinkedRun | undefined {
  const text = hash.replace(/^#/, '');
  if (!text.startsWith(`${KEY}=`)) return undefined;
  if (text.length > MOST_CHARACTERS) throw new Error('It is longer than such links are.');
  const fields = new URLSearchParams(text);
  const field = (name: string): string => fields.get(name) ?? '';
  if (field(KEY) !== VERSION) throw new Error('It was made by another version of this page.');

  const step = { heads: whole(field('heads'), MOST_HEADS, 'heads'), sQ: whole(field('queries'), MOST_QUERIES, 'query tokens'), causal: isSet(field('causal'), 'causal') };
  const lengths = parseLengths(field('lengths'));
  const refused = refusal(step, lengths, 'gpu');
  if (refused !== undefined) throw new Error(refused);

  const [backend = '', tier = ''] = field('choice').split(' ');
  if (!isBackend(backend) || !(tier === 'auto' || isTier(tier))) throw new Error('It names a backend or tier that there is not.');
  const [on = '', onTier] = field('on').split(' ');
  if (!(on === 'cpu' && onTier === undefined) && !(on === 'webgpu' && isTier(onTier))) throw new Error('It does not say what it ran on.');
  const device = field('device');
  if (device === '' || [...device].length > MOST_NAME || /\p{C}/u.test(device)) throw new Error('It does not name a device.');
  const clock = field('clock');
  if (clock !== 'device' && clock !== 'wall') throw new Error('It does not say which clock was used.');
  return {
    batch: { lengths, ...step }, choice: { backend, tier }, backend: on as 'webgpu' | 'cpu', ...(isTier(onTier) && { tier: onTier }), device,
    ms: figure(field('ms'), 'time'), source: clock, pass: isSet(field('pass'), 'check'),
    ...(fields.has('reads') && fields.has('computes') && { reads: figure(field('reads'), 'read rate'), computes: figure(field('computes'), 'compute rate') }),
  };
}

function isBackend(text: string): text is BackendName | 'auto' {
  return text === 'auto' || text === 'webgpu' || text === 'cpu';
}

function whole(text: string, most: number, what: string): number {
  const value = /^\d{1,4}$/.test(text) ? Number(text) : 0;
  if (value < 1 || value > most) throw new Error(`Its number of ${what} is not a whole number from 1 to ${most}.`);
  return value;
}

/** A measured figure: above zero, and no larger than a machine of these days could give. */
function figure(text: string, what: string): number {
  const value = /^\d{1,8}(\.\d{1,10})?(e-?\d{1,2})?$/.test(text) ? Number(text) : NaN;
  if (!(value >= 1e-7 && value <= 1e7)) throw new Error(`Its ${what} is not a figure.`);
  return value;
}

function isSet(text: string, what: string): boolean {
  if (text !== '0' && text !== '1') throw new Error(`It does not say of ${what} whether it is so.`);
  return text === '1';
}

function flag(value: boolean): string {
  return value ? '1' : '0';
}

function short(value: number): string {
  return String(Number(value.toPrecision(4)));
}
