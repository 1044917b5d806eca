/** The page: joins the form, the session in its workers, and the pictures. */
import { MlaError } from '../../src/errors.ts';
import { VERSION } from '../../src/version.ts';
import { Banner } from './banner.ts';
import { powerOf, refusal, type Batch } from './batch.ts';
import { CacheView } from './cache-view.ts';
import { Comparison } from './comparison.ts';
import { DeviceView } from './device-view.ts';
import { diagnose, diagnoseFailure, diagnoseTier } from '../site/diagnosis.ts';
import { painted } from '../site/dom.ts';
import { BatchForm } from './form.ts';
import { linkHash, parseLink } from './link.ts';
import { LinkedView } from './linked-view.ts';
import { openSession, type Choice } from './opening.ts';
import type { Ceilings } from './probe.ts';
import { recordOf } from './record.ts';
import { ResultView } from './result-view.ts';
import { ScheduleView } from './schedule-view.ts';
import type { Session } from './session.ts';
import type { Step } from './shape.ts';
import { ShareView } from './share-view.ts';
import { TierBook } from './tiers.ts';

const surroundings = { secure: window.isSecureContext, webgpu: 'gpu' in navigator };

let session: Session | undefined;
/** The step that the pictures and the next decode are about. */
let step: Step | undefined;
let busy = false;
let lost = false;
/** Raised when a session replaces another: what the older one still has to say is ignored. */
let turn = 0;
/** The comparison that is under way. */
let comparing: Promise<void> | undefined;

const banner = new Banner();
const tiers = new TierBook();
const form = new BatchForm({
  run: (batch) => void act((s) => run(s, batch)),
  choose: (choice) => void start(choice),
});
const result = new ResultView();
const schedule = new ScheduleView();
const device = new DeviceView({
  useCpu() {
    form.choice = { backend: 'cpu', tier: 'auto' };
    void start(form.choice);
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

const comparison = new Comparison({
  batch: () => form.read(),
  power: () => powerOf(session?.info),
  tiers: () => tiers.worthTrying,
  alone: (work) => {
    if (!busy && !lost) comparing = alone(work);
  },
});
const share = new ShareView();
const linked = new LinkedView();

/** Opens a session in place of the one there is, and fills its cache with the batch in the form. */
async function start(choice: Choice): Promise<void> {
  const mine = ++turn;
  const former = session;
  session = undefined;
  lost = false;
  banner.clear();
  device.opening();
  clearResult();
  result.progress({ words: 'Opening the backend' });
  setBusy(true);
  comparison.stop();
  await Promise.all([former?.close(), comparing]);
  let gaveWay: string | undefined;
  try {
    const opened = await openSession(choice, deviceLost);
    if (mine !== turn) return void opened.session.close();
    ({ session, gaveWay } = opened);
  } catch (error) {
    if (mine !== turn) return;
    device.failed(diagnoseFailure(choice.backend, surroundings, (error as Error).message), error as Error);
    cache.clear();
    schedule.clear();
    result.idle('No backend, nothing to run on.');
    setBusy(false);
    return;
  }
  const { info } = session;
  tiers.learn(info);
  if (gaveWay !== undefined) form.choice = { ...choice, tier: 'auto' };
  form.setTiers(tiers);
  form.setPower(powerOf(info));
  device.show(info, [
    ...(gaveWay === undefined ? [] : [diagnoseTier(choice.tier, info.tier!, gaveWay)]),
    ...[diagnose(info, choice.backend, surroundings)].filter((diagnosis) => diagnosis !== undefined),
  ]);
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
  clearResult();
  await fill(s, batch);
  if (s === session) await decode(s);
}

async function decode(s: Session): Promise<void> {
  const { lengths } = current(s);
  const refused = refusal(step!, lengths, powerOf(s.info));
  if (refused) throw new Error(refused);
  const report = await s.decode(step!, (p) => s === session && result.progress(p));
  const ceilings = await probe(s, report.cost.bytes);
  if (s !== session) return;
  result.show(report, ceilings);
  const record = recordOf(report, ceilings);
  const hash = linkHash(record, form.choice);
  share.offer(
    () => JSON.stringify({ made_by: `flashmla-web ${VERSION}`, run: record, ...comparison.records }, null, 1),
    hash && `${location.href.replace(/#.*/, '')}${hash}`);
  linked.compare(record);
}

/** What the adapter can do at best; undefined where that is not known. */
async function probe(s: Session, bytes: number): Promise<Ceilings | undefined> {
  result.progress({ words: 'Measuring what this adapter reads and computes' });
  try {
    const ceilings = await s.ceilings(bytes);
    if (s === session && ceilings) device.measured(ceilings);
    return ceilings;
  } catch (error) {
    if (s === session && !lost) device.measured((error as Error).message);
    return undefined;
  }
}

function clearResult(): void {
  result.clear();
  share.clear();
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
  if (!s) return void start(form.choice);
  const mine = turn;
  await alone(async () => {
    try {
      await work(s);
    } catch (error) {
      if (mine !== turn || lost) return;
      if (error instanceof MlaError && error.code === 'device-lost') return deviceLost(s, error.message);
      result.idle('That was refused.');
      banner.refused(error as Error);
    }
  });
}

/** Keeps all else off the machine while `work` runs. */
async function alone(work: () => Promise<void>): Promise<void> {
  const mine = turn;
  setBusy(true);
  banner.clear();
  try {
    await work();
  } finally {
    if (mine === turn) setBusy(lost);
  }
}

function deviceLost(s: Session, message: string): void {
  if (s !== session || lost) return;
  lost = true;
  setBusy(true);
  result.idle('The device was lost.');
  result.stale();
  banner.lost(message, () => void start(form.choice));
}

function setBusy(value: boolean): void {
  busy = value;
  form.setBusy(value);
  cache.setBusy(value);
  comparison.setBusy(value, session?.info.backend);
}

/** Takes the batch, the choice and the figures that the address carries. @returns whether there were any */
function followLink(): boolean {
  linked.clear();
  try {
    const run = parseLink(location.hash);
    if (!run) return false;
    linked.show(run);
    form.setBatch(run.batch);
    form.choice = run.choice;
    return true;
  } catch (error) {
    linked.refuse((error as Error).message);
    return false;
  }
}

window.addEventListener('hashchange', () => {
  if (followLink()) void start(form.choice);
});
followLink();
void start(form.choice);
