/** A model in files that a user chose or dropped on a page. */
import { MlaError } from '../errors.ts';
import { checkAborted, endedEarly, missingFile, type ModelSource } from './source.ts';

/** A file with its path, or one that knows it (`webkitRelativePath` of a chosen folder, else its name). */
export type ModelFile = File | readonly [path: string, file: Blob];

/**
 * The folder is the one that holds `config.json`, the outermost where several do; the others' files keep their paths from there.
 * @param files a FileList does
 */
export function filesSource(files: Iterable<ModelFile>): ModelSource {
  const paths = [...files].map((file) => ('size' in file ? [file.webkitRelativePath || file.name, file] as const : file));
  const root = rootOf(paths.map(([path]) => path));
  const byName = new Map(paths.filter(([path]) => path.startsWith(root)).map(([path, file]) => [path.slice(root.length), file]));
  const source: ModelSource = {
    name: root.replace(/\/$/, '') || 'files',

    async size(file, signal) {
      checkAborted(signal, file);
      return byName.get(file)?.size;
    },

    async read(file, { offset, length, signal }) {
      checkAborted(signal, file);
      const blob = byName.get(file);
      if (blob === undefined) throw missingFile(source, file);
      const bytes = await readBlob(blob, file, offset, length);
      checkAborted(signal, file);
      return bytes;
    },
  };
  return source;
}

/** @throws MlaError invalid-file: the file is shorter, or changed on disk since it was chosen */
export async function readBlob(blob: Blob, file: string, offset: number, length: number): Promise<Uint8Array<ArrayBuffer>> {
  if (offset + length > blob.size) throw endedEarly(file, offset + length, blob.size);
  try {
    return new Uint8Array(await blob.slice(offset, offset + length).arrayBuffer());
  } catch (cause) {
    throw new MlaError('invalid-file', `cannot be read: ${(cause as Error).message}`, { argument: file, fix: 'Choose the files again if they changed', cause });
  }
}

function rootOf(paths: readonly string[]): string {
  const roots = paths.filter((path) => /(^|\/)config\.json$/.test(path)).map((path) => path.slice(0, -'config.json'.length));
  return roots.sort((a, b) => a.split('/').length - b.split('/').length)[0] ?? '';
}
