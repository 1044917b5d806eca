/** Tuning remembered in Node: one JSON file in the user's cache directory. */
import { randomBytes } from 'node:crypto';
import { mkdir, readFile, rename, rm, unlink, writeFile } from 'node:fs/promises';
import { homedir, tmpdir } from 'node:os';
import { dirname, join } from 'node:path';
import type { TuneChoice } from './mla.ts';
import { STORE_FORMAT, readChoice, type TuneStore } from './tune-store.ts';

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
    load: () => read(file),
    save: (key, choice) => inTurn(async () => write(file, new Map(await read(file)).set(key, choice))),
    forget: () => inTurn(() => rm(file, { force: true })),
  };
}

/** What is there and understood. A file that is damaged, of another format or somebody else's counts as none, and the next write replaces it. */
async function read(file: string): Promise<Map<string, TuneChoice>> {
  const entries = new Map<string, TuneChoice>();
  try {
    const { format, choices } = JSON.parse(await readFile(file, 'utf8')) as { format?: unknown; choices?: unknown };
    if (format !== STORE_FORMAT || typeof choices !== 'object' || choices === null || Array.isArray(choices)) return entries;
    for (const [key, value] of Object.entries(choices)) {
      const choice = readChoice(value);
      if (choice) entries.set(key, choice);
    }
  } catch { /* Nothing that can be read. */ }
  return entries;
}

/** Whole or not at all: other processes read and write it too. */
async function write(file: string, entries: ReadonlyMap<string, TuneChoice>): Promise<void> {
  await mkdir(dirname(file), { recursive: true });
  const temporary = `${file}.${process.pid}-${randomBytes(4).toString('hex')}.tmp`;
  try {
    await writeFile(temporary, `${JSON.stringify({ format: STORE_FORMAT, choices: Object.fromEntries(entries) }, null, 1)}\n`);
    await rename(temporary, file);
  } catch (error) {
    await unlink(temporary).catch(() => undefined);
    throw error;
  }
}
