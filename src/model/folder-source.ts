/** A model in a folder on disk. Node only. */
import { open, stat } from 'node:fs/promises';
import { join } from 'node:path';
import { MlaError } from '../errors.ts';
import { checkAborted, endedEarly, type ModelSource } from './source.ts';

/** Bytes a read call: some systems give no more than 2 GiB at once, and an abort waits for no more than this. */
const CHUNK = 16 << 20;

export function folderSource(folder: string): ModelSource {
  return {
    name: folder,

    async size(file, signal) {
      checkAborted(signal, file);
      try {
        const stats = await stat(join(folder, file));
        return stats.isFile() ? stats.size : undefined;
      } catch (cause) {
        const { code } = cause as NodeJS.ErrnoException;
        if (code === 'ENOENT' || code === 'ENOTDIR') return undefined;
        throw unreadable(file, cause);
      }
    },

    async read(file, { offset, length, signal }) {
      checkAborted(signal, file);
      try {
        const handle = await open(join(folder, file), 'r');
        try {
          const bytes = new Uint8Array(length);
          for (let i = 0; i < length;) {
            const { bytesRead } = await handle.read(bytes, i, Math.min(CHUNK, length - i), offset + i);
            checkAborted(signal, file);
            if (bytesRead === 0) throw endedEarly(file, offset + length, offset + i);
            i += bytesRead;
          }
          return bytes;
        } finally {
          await handle.close();
        }
      } catch (error) {
        throw error instanceof MlaError ? error : unreadable(file, error);
      }
    },
  };
}

function unreadable(file: string, cause: unknown): MlaError {
  return new MlaError('invalid-file', `cannot be read: ${(cause as Error).message}`, { argument: file, cause });
}
