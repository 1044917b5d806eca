/**
 * Output files that are there whole or not at all: written under a temporary name beside the target, renamed when
 * complete, removed when anything fails or the program is interrupted.
 */
import { randomBytes } from 'node:crypto';
import { unlinkSync, writeFileSync, type Stats } from 'node:fs';
import { access, constants, open, readlink, realpath, rename, stat, unlink, type FileHandle } from 'node:fs/promises';
import { basename, dirname, join, resolve } from 'node:path';
import { usageError, writeError } from './failure.ts';

const SIGNALS = ['SIGINT', 'SIGTERM', 'SIGHUP'] as const;
/** Bytes a write call: some systems take no more than 2 GiB at once. */
const CHUNK = 64 << 20;

/**
 * Complains now about what cannot be written later, and about a file that would take the place of an input or of another output.
 * @param outputs paths by argument, as `inputs`; what is not asked for is undefined
 * @throws MlaError invalid-argument
 */
export async function checkOutputs(outputs: Readonly<Record<string, string | undefined>>, inputs: Readonly<Record<string, string | undefined>> = {}): Promise<void> {
  const taken = new Map<string, string>();
  for (const [argument, path] of Object.entries(inputs)) if (path !== undefined) taken.set(await identity(await destination(path)), argument);
  for (const [argument, path] of Object.entries(outputs)) {
    if (path === undefined) continue;
    const to = await destination(path);
    await checkOutput(to, path, argument);
    const same = await identity(to);
    const other = taken.get(same);
    if (other !== undefined) throw usageError(`is the same file as ${other}`, argument, 'another file', path);
    // What goes to a device or pipe does not replace what went there before.
    if (same !== DEVICE) taken.set(same, argument);
  }
}

const DEVICE = 'device';

/** A path behind all links, and what is there. */
interface Destination {
  readonly file: string;
  readonly existing: Stats | undefined;
}

/** What two names of one file have in common. */
async function identity({ file, existing }: Destination): Promise<string> {
  if (existing === undefined) return join(await realpath(dirname(file)).catch(() => dirname(file)), basename(file));
  return existing.isFile() ? `${existing.dev}:${existing.ino}` : DEVICE;
}

/** Where links lead, whether or not there is a file yet. */
async function destination(path: string): Promise<Destination> {
  let file = path;
  // A chain without end has no file; what comes of that is the system's to say.
  for (let links = 0; links < 40; links++) {
    const to = await readlink(file).catch(() => undefined);
    if (to === undefined) break;
    file = resolve(await realpath(dirname(file)), to);
  }
  return { file, existing: await stat(file).catch(() => undefined) };
}

async function checkOutput({ file, existing }: Destination, path: string, argument: string): Promise<void> {
  if (existing?.isDirectory()) throw usageError('is a directory', argument, 'a file name', path);
  const directory = dirname(file);
  const parent = await stat(directory).catch(() => undefined);
  if (!parent?.isDirectory()) throw usageError('is in a directory that does not exist', argument, 'an existing directory', directory);
  const target = existing === undefined || existing.isFile() ? directory : file;
  await access(target, constants.W_OK).catch(() => {
    throw usageError('cannot be written', argument, 'a writable place', path);
  });
}

/**
 * Writes `parts` one after the other to `path`. A link is followed; a file keeps its mode; a device or pipe is written in place.
 * @throws Error when the file system refuses; then no part of the file is left
 */
export async function writeOutput(path: string, parts: Iterable<Uint8Array>): Promise<void> {
  const { file: target, existing } = await destination(path);
  if (existing !== undefined && !existing.isFile()) return writeInPlace(path, parts);
  const temporary = join(dirname(target), `.flashmla-${process.pid}-${randomBytes(4).toString('hex')}.tmp`);
  const interrupted = (signal: NodeJS.Signals): void => {
    try {
      unlinkSync(temporary);
    } catch { /* Renamed already. */ }
    forget();
    process.kill(process.pid, signal);
  };
  const forget = (): void => SIGNALS.forEach((signal) => process.removeListener(signal, interrupted));
  SIGNALS.forEach((signal) => process.on(signal, interrupted));
  try {
    // Made without leaving this turn: a file that an open under way makes after the signal would stay.
    writeFileSync(temporary, '', { flag: 'wx' });
    const handle = await open(temporary, 'r+');
    try {
      if (existing !== undefined) await handle.chmod(existing.mode & 0o7777);
      await writeAll(handle, parts);
    } finally {
      await handle.close();
    }
    await rename(temporary, target);
  } catch (cause) {
    await unlink(temporary).catch(() => undefined);
    throw writeError(path, cause);
  } finally {
    forget();
  }
}

async function writeInPlace(path: string, parts: Iterable<Uint8Array>): Promise<void> {
  try {
    const handle = await open(path, 'w');
    try {
      await writeAll(handle, parts);
    } finally {
      await handle.close();
    }
  } catch (cause) {
    throw writeError(path, cause);
  }
}

async function writeAll(handle: FileHandle, parts: Iterable<Uint8Array>): Promise<void> {
  for (const part of parts) {
    for (let i = 0; i < part.length;) {
      i += (await handle.write(part, i, Math.min(CHUNK, part.length - i))).bytesWritten;
    }
  }
}
