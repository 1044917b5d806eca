/** The page: joins the form, the session in its workers, and the pictures. */
import { MlaError } from '../../src/errors.ts';
import type { BackendName } from '../../src/mla.ts';
import { powerOf, refusal, type Batch } from './batch.ts';
import { CacheView } from './cache-view.ts';
import { DeviceView } from './device-view.ts';
import { diagnose, diagnoseFailure } from '../site/diagnosis.ts';
import { button, byId, el, painted } from '../site/dom.ts';
import { BatchForm } from './form.ts';
import { ResultView } from './result-view.ts';
import { ScheduleView } from './schedule-view.ts';
import { Session } from './session.ts';
import type { Step } from './shape.ts';

const surroundings = { secure: window.isSecureContext, webgpu: 'gpu' in navigator };
const banner = byId('banner');

let session: Session | undefined;
/** The step that the pictures and the next decode are about. */
let step: Step | undefined;
let busy = false;
let lost = false;
/** Raised when a session replaces another: what the older one still has to say is ignored. */
let turn = 0;

const form = new BatchForm({
  run: (batch) => void act((s) => run(s, batch)),
  backend: (backend) => void start(backend),
});
const result = new ResultView();
const schedule = new ScheduleView();
const device = new DeviceView({
  useCpu() {
    form.backend = 'cpu';
    void start('cpu');
  },
  loseDevice: () => session?.loseDevice(),
});
const cache = new CacheView({
  append: () => void act(async (s) => {
    await s.appendToAll();
    await changed(s, 'Every sequence is one token longer.');
  }),
  fork: (id) => void act(async (s) => {
    const child = await s.fork(id);
    await changed(s, `Sequence ${child} is a fork of sequence ${id}: they share blocks until one of them writes.`);
  }),
  free: (id) => void act(async (s) => {
    await s.free(id);
    await changed(s, `Sequence ${id} is freed. Blocks that nobody else holds are back in the pool.`);
  }),
  decode: () => void act(decode),
});

/** Opens a session in place of the one there is, and fills its cache with the batch in the form. */
async function start(backend: BackendName | 'auto'): Promise<void> {
  const mine = ++turn;
  const former = session;
  session = undefined;
  lost = false;
  banner.replaceChildren();
  device.opening();
  result.clear();
  result.progress({ words: 'Opening the backend' });
  setBusy(true);
  await former?.close();
  try {
    const opened = await Session.open(backend, deviceLost);
    if (mine !== turn) return void opened.close();
    session = opened;
  } catch (error) {
    if (mine !== turn) return;
    device.failed(diagnoseFailure(backend, surroundings), error as Error);
    cache.clear();
    schedule.clear();
    result.idle('No backend, nothing to run on.');
    setBusy(false);
    return;
  }
  form.setPower(powerOf(session.info));
  device.show(session.info, diagnose(session.info, backend, surroundings));
  setBusy(false);
  const batch = form.read();
  if (batch) await act((s) => fill(s, batch));
  if (mine === turn && !lost && batch) result.idle('Ready. Run decodes this batch and checks it.');
}

async function fill(s: Session, batch: Batch): Promise<void> {
  step = batch;
  result.progress({ words: 'Filling the cache' });
  try {
    await s.fill(batch, (p) => s === session && result.progress(p));
  } finally {
    await draw(s);
  }
}

async function run(s: Session, batch: Batch): Promise<void> {
  result.clear();
  await fill(s, batch);
  if (s === session) await decode(s);
}

async function decode(s: Session): Promise<void> {
  const { lengths } = current(s);
  const refused = refusal(step!, lengths, powerOf(s.info));
  if (refused) throw new Error(refused);
  const report = await s.decode(step!, (p) => s === session && result.progress(p));
  if (s === session) result.show(report);
}

/** Lengths of the sequences that the cache holds now. */
function current(s: Session): { lengths: number[] } {
  return { lengths: s.cache ? s.sequences.map((id) => s.cache!.length(id)) : [] };
}

/** After an operation on the cache. */
async function changed(s: Session, words: string): Promise<void> {
  await draw(s);
  if (s !== session || lost) return;
  result.stale();
  result.idle(words);
}

/** In steps that leave the page time to answer. */
async function draw(s: Session): Promise<void> {
  if (s !== session) return;
  if (s.cache) await cache.show(s.cache, s.sequences);
  else cache.clear();
  await painted();
  if (s !== session) return;
  const metadata = step && s.metadata(step);
  if (metadata) schedule.show(metadata, s.sequences);
  else schedule.clear();
}

/** Does one thing at a time with the session; a refusal is told and changes nothing. */
async function act(work: (s: Session) => Promise<void>): Promise<void> {
  const s = session;
  if (busy || lost) return;
  if (!s) return void start(form.backend);
  const mine = turn;
  setBusy(true);
  banner.replaceChildren();
  try {
    await work(s);
  } catch (error) {
    if (mine !== turn) return;
    if (error instanceof MlaError && error.code === 'device-lost') deviceLost(s, error.message);
    else refused(error as Error);
  } finally {
    if (mine === turn) setBusy(lost);
  }
}

function refused(error: Error): void {
  result.idle('That was refused.');
  const code = error instanceof MlaError ? error.code : undefined;
  banner.replaceChildren(el('div', { class: 'notice refused' },
    el('h3', {}, TITLES[code ?? ''] ?? 'Not done'), el('p', {}, error.message), code && el('p', { class: 'quiet small' }, 'Error code: ', el('code', {}, code))));
}

const TITLES: Readonly<Record<string, string>> = {
  'pool-exhausted': 'The pool has too few free blocks; nothing was changed',
  'limit-exceeded': 'Larger than this device allows',
  'out-of-memory': 'The device is out of memory',
  internal: 'A defect: please report it',
};

function deviceLost(s: Session, message: string): void {
  if (s !== session || lost) return;
  lost = true;
  setBusy(true);
  result.idle('The device was lost.');
  result.stale();
  const again = button('Start again', 'start-again', () => void start(form.backend), { class: 'primary' });
  banner.replaceChildren(el('div', { class: 'notice lost' },
    el('h3', {}, 'The GPU device was lost'),
    el('p', {}, 'A driver reset, a sleeping laptop or a busy system can do this. What was on the device is gone; the page is not.'),
    el('p', { class: 'quiet small' }, message),
    el('p', {}, again)));
  again.focus();
}

function setBusy(value: boolean): void {
  busy = value;
  form.setBusy(value);
  cache.setBusy(value);
}

void start(form.backend);
