/**
 * Output files that are there whole or not at all: written under a temporary name beside the target, renamed when
 * complete, removed when anything fails or the program is interrupted.
 */
import { randomBytes } from 'node:crypto';
import { unlinkSync, writeFileSync } from 'node:fs';
import { access, constants, open, realpath, rename, stat, unlink, type FileHandle } from 'node:fs/promises';
import { dirname, join } from 'node:path';
import { usageError, writeError } from './failure.ts';

const SIGNALS = ['SIGINT', 'SIGTERM', 'SIGHUP'] as const;
/** Bytes a write call: some systems take no more than 2 GiB at once. */
const CHUNK = 64 << 20;

/**
 * Complains now about a path that cannot be written later.
 * @throws MlaError invalid-argument
 */
export async function checkOutput(path: string, argument: string): Promise<void> {
  const existing = await stat(path).catch(() => undefined);
  if (existing?.isDirectory()) throw usageError('is a directory', argument, 'a file name', path);
  const directory = dirname(path);
  const parent = await stat(directory).catch(() => undefined);
  if (!parent?.isDirectory()) throw usageError('is in a directory that does not exist', argument, 'an existing directory', directory);
  const target = existing === undefined || existing.isFile() ? directory : path;
  await access(target, constants.W_OK).catch(() => {
    throw usageError('cannot be written', argument, 'a writable place', path);
  });
}

/**
 * Writes `parts` one after the other to `path`. A link is followed; a device or pipe is written in place.
 * @throws Error when the file system refuses; then no part of the file is left
 */
export async function writeOutput(path: string, parts: Iterable<Uint8Array>): Promise<void> {
  const existing = await stat(path).catch(() => undefined);
  if (existing !== undefined && !existing.isFile()) return writeInPlace(path, parts);
  const target = existing === undefined ? path : await realpath(path);
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
