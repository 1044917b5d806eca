/** Safetensors files on disk, a tensor at a time: a file may be larger than memory should hold twice. */
import { open, type FileHandle } from 'node:fs/promises';
import { MlaError } from '../errors.ts';
import { parseSafetensorsHeader, safetensorsHeaderBytes, type SafetensorsEntry, type SafetensorsHeader } from '../safetensors.ts';
import { readError } from './failure.ts';

/** Bytes a read call: some systems give no more than 2 GiB at once. */
const CHUNK = 64 << 20;

export class SafetensorsFile {
  readonly path: string;
  readonly header: SafetensorsHeader;
  readonly #handle: FileHandle;

  private constructor(path: string, header: SafetensorsHeader, handle: FileHandle) {
    this.path = path;
    this.header = header;
    this.#handle = handle;
  }

  /** Opens a file and checks its header. @throws MlaError invalid-file */
  static async open(path: string): Promise<SafetensorsFile> {
    const handle = await open(path, 'r').catch((cause: unknown) => {
      throw readError(path, cause);
    });
    try {
      const { size } = await handle.stat();
      const length = safetensorsHeaderBytes(await read(handle, path, 0, Math.min(8, size)), size, path);
      const header = parseSafetensorsHeader(await read(handle, path, 0, length), size, path);
      return new SafetensorsFile(path, header, handle);
    } catch (error) {
      await handle.close();
      throw error instanceof MlaError ? error : readError(path, error);
    }
  }

  /** A tensor's bytes, in a buffer of their own. @throws MlaError invalid-file, out-of-memory */
  read(entry: SafetensorsEntry): Promise<Uint8Array<ArrayBuffer>> {
    return read(this.#handle, this.path, entry.offset, entry.byteLength);
  }

  close(): Promise<void> {
    return this.#handle.close();
  }
}

async function read(handle: FileHandle, path: string, offset: number, length: number): Promise<Uint8Array<ArrayBuffer>> {
  const bytes = allocate(path, length);
  for (let i = 0; i < length;) {
    const { bytesRead } = await handle.read(bytes, i, Math.min(CHUNK, length - i), offset + i).catch((cause: unknown) => {
      throw readError(path, cause);
    });
    if (bytesRead === 0) {
      throw new MlaError('invalid-file', 'ended while it was read', { argument: path, expected: `${offset + length} bytes`, got: `${offset + i}` });
    }
    i += bytesRead;
  }
  return bytes;
}

function allocate(path: string, length: number): Uint8Array<ArrayBuffer> {
  try {
    return new Uint8Array(length);
  } catch (cause) {
    throw new MlaError('out-of-memory', `cannot hold ${length} bytes of the file in memory`, { argument: path, cause });
  }
}
