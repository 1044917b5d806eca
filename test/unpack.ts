/**
 * Unpacks the archives of @sparticuz/chromium, once, into node_modules/.cache/flashmla-web/.
 *
 * The package's own `inflate` writes into the shared temporary directory and calls a half-written file done when a
 * second process finds it there. Here a directory is filled under a name of its own and renamed into place, so that
 * whoever sees the final name sees all of it.
 */
import { existsSync } from 'node:fs';
import { mkdir, mkdtemp, readFile, rename, rm, writeFile } from 'node:fs/promises';
import { createRequire } from 'node:module';
import { dirname, join, normalize } from 'node:path';
import { fileURLToPath } from 'node:url';
import { promisify } from 'node:util';
import { brotliDecompress } from 'node:zlib';

const decompress = promisify(brotliDecompress);
const root = join(dirname(fileURLToPath(import.meta.url)), '..');
const cacheDir = join(root, 'node_modules', '.cache', 'flashmla-web');

/** Directory of @sparticuz/chromium's archives and its version. */
async function archives(): Promise<{ bin: string; version: string }> {
  const entry = createRequire(import.meta.url).resolve('@sparticuz/chromium');
  const packageDir = join(dirname(entry), '..', '..');
  const { version } = JSON.parse(await readFile(join(packageDir, 'package.json'), 'utf8')) as { version: string };
  return { bin: join(packageDir, 'bin'), version };
}

interface TarEntry {
  readonly name: string;
  readonly mode: number;
  readonly data: Buffer;
}

/** The regular files of a ustar archive. */
function* tarFiles(tar: Buffer): Generator<TarEntry> {
  const text = (at: number, length: number): string => tar.toString('latin1', at, at + length).replace(/\0.*$/s, '');
  const octal = (at: number, length: number): number => Number.parseInt(text(at, length).trim() || '0', 8);
  for (let at = 0; at + 512 <= tar.length && tar[at] !== 0; ) {
    const size = octal(at + 124, 12);
    const type = text(at + 156, 1);
    const prefix = text(at + 257, 5) === 'ustar' ? text(at + 345, 155) : '';
    const name = prefix === '' ? text(at, 100) : `${prefix}/${text(at, 100)}`;
    const data = tar.subarray(at + 512, at + 512 + size);
    if (type === '0' || type === '') yield { name, mode: octal(at + 100, 8) & 0o777, data };
    at += 512 + Math.ceil(size / 512) * 512;
  }
}

async function writeInside(dir: string, name: string, data: Buffer, mode: number): Promise<void> {
  const relative = normalize(name);
  if (relative.startsWith('..') || relative.startsWith('/')) throw new Error(`archive entry outside its directory: ${name}`);
  const path = join(dir, relative);
  await mkdir(dirname(path), { recursive: true });
  await writeFile(path, data, { mode });
}

/**
 * A directory with the contents of `files` (names in @sparticuz/chromium's bin/: a `.tar.br` is unpacked, another
 * `.br` becomes an executable) and the texts of `extra` by name, made on the first call on this machine.
 */
export async function unpack(label: string, files: readonly string[], extra: Readonly<Record<string, string>> = {}): Promise<string> {
  const { bin, version } = await archives();
  const final = join(cacheDir, `${label}-${version}`);
  if (existsSync(final)) return final;

  await mkdir(cacheDir, { recursive: true });
  const filling = await mkdtemp(`${final}.`);
  try {
    for (const file of files) {
      const data = await decompress(await readFile(join(bin, file)));
      if (!file.endsWith('.tar.br')) await writeInside(filling, file.replace(/\.br$/, ''), data, 0o755);
      else for (const entry of tarFiles(data)) await writeInside(filling, entry.name, entry.data, entry.mode);
    }
    for (const [name, text] of Object.entries(extra)) await writeInside(filling, name, Buffer.from(text), 0o644);
    await rename(filling, final);
  } catch (error) {
    await rm(filling, { recursive: true, force: true });
    // Another process may have put it there first.
    if (!existsSync(final)) throw error;
  }
  return final;
}
