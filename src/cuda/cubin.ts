/**
 * The compiled kernels: files beside the built package (dist/cuda) or, from sources, native-cuda/bin, with a manifest
 * that says what they are. native-cuda/build.ts writes both.
 */
import { createHash } from 'node:crypto';
import { readFile } from 'node:fs/promises';
import { dirname, join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { describe } from '../errors.ts';
import { unavailable } from './driver.ts';

export const CUBINS = ['decode', 'decode_few', 'combine', 'append', 'gather_q', 'delay'] as const;
export type CubinName = (typeof CUBINS)[number];

export interface CubinEntry {
  readonly bytes: number;
  readonly sha256: string;
}

export interface Manifest {
  /** `13.0.88` */
  readonly nvcc: string;
  /** Lowest driver version that loads them: 1000 * major + 10 * minor. */
  readonly driver: number;
  /** SHA-256 of every source, by path in native-cuda, and of the compiler's flags. */
  readonly sources: Readonly<Record<string, string>>;
  readonly cubins: Readonly<Record<CubinName, CubinEntry>>;
}

export interface Kernels {
  readonly manifest: Manifest;
  readonly images: Readonly<Record<CubinName, ArrayBuffer>>;
}

const REINSTALL = 'Install flashmla-web again, and leave it out of bundles: its cubins are files beside it';

/** Where this module may find them: beside dist/node.js, beside dist/chunks, or among the sources. */
function places(): string[] {
  const here = dirname(fileURLToPath(import.meta.url));
  return [join(here, 'cuda'), join(here, '..', 'cuda'), join(here, '..', '..', 'native-cuda', 'bin')];
}

/** @throws MlaError backend-unavailable when a file is missing or not the manifest's */
export async function readKernels(folders: readonly string[] = places()): Promise<Kernels> {
  const { folder, manifest } = await readManifest(folders);
  const images = {} as Record<CubinName, ArrayBuffer>;
  for (const name of CUBINS) {
    const path = join(folder, `${name}.cubin`);
    const entry = manifest.cubins[name];
    let file: Uint8Array;
    try {
      file = await readFile(path);
    } catch (cause) {
      throw unavailable('a compiled kernel is missing', path, 'no such file', REINSTALL, cause);
    }
    if (entry === undefined || file.length !== entry.bytes || sha256(file) !== entry.sha256) {
      throw unavailable('a compiled kernel is not the one that its manifest names', entry ? `${path} with SHA-256 ${entry.sha256}` : `${name} in the manifest`, `${file.length} B with SHA-256 ${sha256(file)}`, REINSTALL);
    }
    // An ArrayBuffer of its own: the driver is given its address.
    images[name] = new Uint8Array(file).buffer;
  }
  return { manifest, images };
}

async function readManifest(folders: readonly string[]): Promise<{ folder: string; manifest: Manifest }> {
  for (const folder of folders) {
    const path = join(folder, 'manifest.json');
    let text: string;
    try {
      text = await readFile(path, 'utf8');
    } catch {
      continue;
    }
    try {
      const manifest = JSON.parse(text) as Manifest;
      if (typeof manifest.driver === 'number' && typeof manifest.cubins === 'object') return { folder, manifest };
    } catch (cause) {
      throw unavailable('the manifest of the compiled kernels is damaged', path, describe(text), REINSTALL, cause);
    }
    throw unavailable('the manifest of the compiled kernels is damaged', path, describe(text), REINSTALL);
  }
  throw unavailable('the compiled kernels are missing', `manifest.json in ${folders.join(' or ')}`, 'no such file', REINSTALL);
}

export function sha256(data: Uint8Array | string): string {
  return createHash('sha256').update(data).digest('hex');
}
