/** Tuning remembered in Node: one JSON file in the user's cache directory. */
import { randomBytes } from 'node:crypto';
import { link, mkdir, readFile, rename, rm, unlink, writeFile } from 'node:fs/promises';
import { homedir, tmpdir } from 'node:os';
import { dirname, join } from 'node:path';
import { setTimeout as sleep } from 'node:timers/promises';
import { STORE_FORMAT, readRemembered, type Remembered, type TuneStore } from './tune-store.ts';

type Environment = Readonly<Record<string, string | undefined>>;

/** FLASHMLA_CACHE_DIR, else the platform's place for caches. */
export function cacheDirectory(env: Environment = process.env, platform: string = process.platform, home: string = homeDirectory()): string {
  const own = env['FLASHMLA_CACHE_DIR'];
  if (own) return own;
  if (platform === 'darwin') return join(home, 'Library', 'Caches', 'flashmla-web');
  const base = platform === 'win32' ? env['LOCALAPPDATA'] || join(home, 'AppData', 'Local') : env['XDG_CACHE_HOME'] || join(home, '.cache');
  return join(base, 'flashmla-web');
}

/** A user whom the system does not know, as in some containers, has none: then files are temporary. */
function homeDirectory(): string {
  try {
    return homedir();
  } catch {
    return tmpdir();
  }
}

/** Another process writes in a millisecond or two. */
const LOCK_POLL_MS = 5;
/** A lock that stays the same for so many polls was left by a process that ended without a word: some seconds. */
const LOCK_POLLS = 400;

/** Writes of this process to one file, one after the other: each reads what the one before wrote. */
const writing = new Map<string, Promise<unknown>>();

export function fileStore(file: string = join(cacheDirectory(), 'tune.json')): TuneStore {
  const inTurn = (work: () => Promise<void>): Promise<string | undefined> => {
    const done = (writing.get(file) ?? Promise.resolve()).then(work).then(() => undefined, (error: unknown) => `${file}: ${(error as Error).message}`);
    writing.set(file, done);
    return done;
  };
  return {
    place: file,
    load: () => read(file).catch(() => new Map()),
    save: (key, choice) => inTurn(() => locked(file, async () => write(file, new Map(await read(file)).set(key, choice)))),
    forget: () => inTurn(() => locked(file, () => rm(file, { force: true }))),
  };
}

/**
 * What is there and understood. A file that is damaged, of an older format or somebody else's counts as none, and the next write replaces it.
 * @throws Error where it cannot be read, or is of a format to come: that is not to be written over
 */
async function read(file: string): Promise<Map<string, Remembered>> {
  const entries = new Map<string, Remembered>();
  const text = await readFile(file, 'utf8').catch((error: NodeJS.ErrnoException) => {
    if (error.code === 'ENOENT') return '';
    throw error;
  });
  let content: unknown;
  try {
    content = JSON.parse(text);
  } catch {
    return entries;
  }
  const { format, choices } = (content ?? {}) as { format?: unknown; choices?: unknown };
  if (typeof format === 'number' && format > STORE_FORMAT) throw new Error('written by a newer version');
  if (format !== STORE_FORMAT || typeof choices !== 'object' || choices === null || Array.isArray(choices)) return entries;
  for (const [key, value] of Object.entries(choices)) {
    const remembered = readRemembered(value);
    if (remembered) entries.set(key, remembered);
  }
  return entries;
}

/** Does `work` while no other process writes. */
async function locked(file: string, work: () => Promise<void>): Promise<void> {
  await mkdir(dirname(file), { recursive: true });
  const lock = `${file}.lock`;
  const own = `${process.pid}-${randomBytes(8).toString('hex')}`;
  let [theirs, polls]: [owner: string | undefined, polls: number] = [undefined, 0];
  while (!(await taken(lock, own))) {
    const owner = await readFile(lock, 'utf8').catch(() => undefined);
    [theirs, polls] = owner === theirs ? [theirs, polls + 1] : [owner, 0];
    if (polls >= LOCK_POLLS) await dropLock(lock, owner);
    else await sleep(LOCK_POLL_MS);
  }
  try {
    await work();
  } finally {
    await dropLock(lock, own);
  }
}

async function taken(lock: string, own: string): Promise<boolean> {
  try {
    await writeFile(lock, own, { flag: 'wx' });
    return true;
  } catch (error) {
    if ((error as NodeJS.ErrnoException).code === 'EEXIST') return false;
    throw error;
  }
}

/** Takes away the lock of `owner`, and nobody else's: another process may have taken it away, and a third one its place. */
async function dropLock(lock: string, owner: string | undefined): Promise<void> {
  const aside = `${lock}.${randomBytes(4).toString('hex')}`;
  if (!(await rename(lock, aside).then(() => true, () => false))) return;
  if ((await readFile(aside, 'utf8').catch(() => undefined)) !== owner) await link(aside, lock).catch(() => undefined);
  await rm(aside, { force: true });
}

/** Whole or not at all: other processes read it too. */
async function write(file: string, entries: ReadonlyMap<string, Remembered>): Promise<void> {
  const temporary = `${file}.${process.pid}-${randomBytes(4).toString('hex')}.tmp`;
  try {
    await writeFile(temporary, `${JSON.stringify({ format: STORE_FORMAT, choices: Object.fromEntries(entries) }, null, 1)}\n`);
    await rename(temporary, file);
  } catch (error) {
    await unlink(temporary).catch(() => undefined);
    throw error;
  }
}
