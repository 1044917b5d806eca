/** The page: joins the form, the session in its worker, the texts and the pictures. */
import { MlaError } from '../../src/errors.ts';
import { DEVICE_LOST, diagnose, diagnoseFailure, type Diagnosis } from '../site/diagnosis.ts';
import { button, byId, el } from '../site/dom.ts';
import { Announcer } from './announcer.ts';
import { CacheView } from './cache-view.ts';
import { DeviceView } from './device-view.ts';
import { isKept, SHIPPED_BYTES } from './model-cache.ts';
import { ModelView } from './model-view.ts';
import { PromptForm } from './prompt-form.ts';
import type { ModelFacts, Origin, Sampling, TextId, Update } from './protocol.ts';
import { Session } from './session.ts';
import { SpeedView } from './speed-view.ts';
import { TextList } from './text-list.ts';
import { loadTrouble, textTrouble } from './trouble.ts';

const surroundings = { secure: window.isSecureContext, webgpu: 'gpu' in navigator };
const base = new URL('.', location.href).href;
const SHIPPED: Origin = { kind: 'shipped', base };
const banner = byId('banner');

let session: Session | undefined;
/** The model that is loaded, and where it came from. */
let model: { readonly facts: ModelFacts; readonly origin: Origin } | undefined;
let loading = false;

const form = new PromptForm({ generate: (prompt, sampling) => void generate(prompt, sampling), stopAll: () => stop(...texts.live) });
const announcer = new Announcer(byId('announcer'));
const texts = new TextList({ stop, fork: (id) => void fork(id), end }, announcer);
const cache = new CacheView();
const speed = new SpeedView();
const device = new DeviceView(() => session?.loseDevice());
const modelView = new ModelView({ loadShipped: () => void load(SHIPPED), load: (origin) => void load(origin), abort: () => session?.abortLoad() });

/** Opens a session, and loads the model that was there before, if one was. */
async function start(): Promise<void> {
  const former = model?.origin;
  model = undefined;
  banner.replaceChildren();
  device.opening();
  let opened: Session | undefined;
  try {
    opened = await Session.open({
      update: (update) => opened === session && show(update),
      loading: (step) => opened === session && loading && modelView.progress(step),
      lost: (message) => opened && deviceLost(opened, message),
    });
  } catch (error) {
    refuse(diagnoseFailure('auto', surroundings), error);
    return;
  }
  session = opened;
  device.show(opened.info, diagnose(opened.info, 'auto', surroundings));
  modelView.offer(await isKept(base));
  setReady(true);
  if (former) await load(former);
}

/** @returns whether it has loaded; why not is told */
async function load(origin: Origin): Promise<boolean> {
  const mine = session;
  if (!mine || loading) return false;
  loading = true;
  banner.replaceChildren();
  setReady(false);
  modelView.begin();
  try {
    const facts = await mine.load(origin);
    texts.allGone();
    model = { facts, origin };
    modelView.show(facts, origin.kind === 'shipped');
    return true;
  } catch (error) {
    if (mine === session) await notLoaded(mine, origin, error);
    return false;
  } finally {
    loading = false;
    setReady(session !== undefined);
  }
}

async function notLoaded(from: Session, origin: Origin, error: unknown): Promise<void> {
  if (isLost(error)) return deviceLost(from, error.message);
  if (model) modelView.show(model.facts, model.origin.kind === 'shipped');
  else modelView.offer(await isKept(base));
  if (error instanceof MlaError && error.code === 'aborted') modelView.idle('Loading was aborted. What came whole is kept.');
  else refuse(loadTrouble(error as MlaError, origin.kind), error);
}

async function generate(prompt: string, sampling: Sampling): Promise<void> {
  if (!model && SHIPPED_BYTES > 0 && !(await load(SHIPPED))) return;
  if (!model) return byId('folder').focus();
  await begin(prompt, sampling);
}

async function fork(id: TextId): Promise<void> {
  const parent = texts.get(id);
  const sampling = form.sampling();
  if (parent && sampling) await begin(parent.prompt, sampling, id);
}

async function begin(prompt: string, sampling: Sampling, parent?: TextId): Promise<void> {
  const mine = session;
  if (!mine) return;
  banner.replaceChildren();
  const card = texts.add(prompt, sampling, parent);
  form.setWriting(true);
  try {
    card.begun(await (parent === undefined ? mine.begin(card.id, prompt, sampling) : mine.fork(card.id, parent, sampling)));
    announcer.say(`Text ${card.id} ${parent === undefined ? 'begins' : `goes on from where text ${parent} is`}.`);
  } catch (error) {
    if (mine !== session) return;
    if (isLost(error)) return deviceLost(mine, error.message);
    texts.remove(card.id);
    form.setWriting(texts.live.length > 0);
    refuse(textTrouble(error as MlaError), error);
  }
}

function stop(...ids: TextId[]): void {
  for (const id of ids) session?.stop(id);
}

function end(id: TextId): void {
  session?.end(id);
  texts.remove(id)?.focus();
  form.setWriting(texts.live.length > 0);
}

function show(update: Update): void {
  for (const text of update.texts) texts.update(text);
  form.setWriting(texts.live.length > 0);
  speed.show(update.speed);
  cache.show(update.cache);
}

function setReady(ready: boolean): void {
  form.setReady(ready);
  modelView.setReady(ready);
}

function refuse({ title, text }: Diagnosis, error: unknown): void {
  const { message } = error as Error;
  const code = error instanceof MlaError ? error.code : undefined;
  banner.replaceChildren(el('div', { class: 'notice refused' },
    el('h2', {}, title), el('p', {}, text), el('p', { class: 'quiet small' }, code && el('code', {}, code), code && ': ', message)));
  banner.scrollIntoView({ block: 'nearest' });
}

function deviceLost(from: Session, message: string): void {
  if (from !== session) return;
  session = undefined;
  from.close();
  setReady(false);
  texts.allGone();
  form.setWriting(false);
  cache.clear();
  device.lost();
  modelView.idle('The device was lost.');
  const again = button('Start again', 'start-again', () => void start(), { class: 'primary' });
  banner.replaceChildren(el('div', { class: 'notice lost' },
    el('h2', {}, DEVICE_LOST.title),
    el('p', {}, `${DEVICE_LOST.text} What was written stays on the page.${model ? ' The model is loaded again when you start again.' : ''}`),
    el('p', { class: 'quiet small' }, message),
    el('p', {}, again)));
  again.focus();
}

function isLost(error: unknown): error is MlaError {
  return error instanceof MlaError && error.code === 'device-lost';
}

void start();
