/** What the cubins are made from, as hashes: the build writes them into the manifest, a test compares. */
import { readFile, readdir } from 'node:fs/promises';
import { dirname, join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { sha256 } from '../src/cuda/cubin.ts';

export const HERE: string = dirname(fileURLToPath(import.meta.url));
export const BIN: string = join(HERE, 'bin');

export const FLAGS: readonly string[] = ['-std=c++17', '-O3', '-cubin', '-gencode=arch=compute_90a,code=sm_90a', '-Xptxas', '-v'];

/** SHA-256 of each .cu and .cuh by its path, and of the flags. */
export async function sourceHashes(): Promise<Record<string, string>> {
  const files = (await readdir(HERE, { recursive: true })).map((path) => path.replaceAll('\\', '/')).filter((path) => /\.cuh?$/.test(path)).sort();
  const hashes: Record<string, string> = { flags: sha256(FLAGS.join(' ')) };
  for (const path of files) hashes[path] = sha256(await readFile(join(HERE, path)));
  return hashes;
}
