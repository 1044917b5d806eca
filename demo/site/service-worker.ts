/** A plugin for Vite: builds sw.ts into ./sw.js, with the list of the built files and a hash over them. */
import { createHash } from 'node:crypto';
import { join } from 'node:path';
import { build, type Plugin, type Rolldown } from 'vite';
import { MODEL_FOLDER } from './cache-names.ts';

/** The files to keep, sorted, and their version, which changes with any byte of any of them or of the worker's script. */
export interface SiteManifest {
  readonly files: readonly string[];
  readonly version: string;
}

export function manifestOf(contents: ReadonlyMap<string, string | Uint8Array>, script: string): SiteManifest {
  const files = [...contents.keys()].filter((file) => !file.startsWith(MODEL_FOLDER)).sort();
  const hash = createHash('sha256').update(script);
  for (const file of files) hash.update(`\0${file}\0`).update(contents.get(file)!);
  return { files, version: hash.digest('hex').slice(0, 16) };
}

export function serviceWorker(): Plugin {
  return {
    name: 'site-service-worker',
    apply: 'build',
    enforce: 'post',
    async generateBundle(_, bundle) {
      const script = await scriptAlone();
      const contents = new Map(Object.entries(bundle).map(([file, output]) => [file, output.type === 'chunk' ? output.code : output.source]));
      const { files, version } = manifestOf(contents, script);
      this.emitFile({ type: 'asset', fileName: 'sw.js', source: `const SITE_FILES = ${JSON.stringify(files)}, SITE_VERSION = ${JSON.stringify(version)};\n${script}` });
    },
  };
}

/** The worker in one classic script, which all browsers take: it shares no chunk with the pages. */
async function scriptAlone(): Promise<string> {
  const [made] = (await build({
    configFile: false,
    logLevel: 'warn',
    build: { write: false, target: 'es2022', lib: { entry: join(import.meta.dirname, 'sw.ts'), formats: ['iife'], name: 'site' } },
  })) as Rolldown.RolldownOutput[];
  return made!.output[0].code;
}
