import { existsSync, readdirSync, statSync } from 'node:fs';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';

const root = fileURLToPath(new URL('../..', import.meta.url));

/** @throws Error when there is no build, or one older than its sources: the suite would test something else */
export function checkBuilt(): void {
  // The first and the last that a build writes.
  const outputs = ['index.js', 'node.js', 'worker.js', 'cli.js', 'types/index.d.ts', 'types/node.d.ts', 'types/worker/index.d.ts'].map((file) => join(root, 'dist', file));
  const missing = outputs.find((file) => !existsSync(file));
  if (missing !== undefined) throw new Error(`${missing} is not built: run npm run build (npm test does)`);
  const modified = (path: string): number => statSync(path).mtimeMs;
  const newest = (dir: string): number =>
    Math.max(0, ...readdirSync(dir, { withFileTypes: true, recursive: true }).filter((e) => e.isFile()).map((e) => modified(join(e.parentPath, e.name))));
  for (const sources of ['src', 'shaders']) {
    if (newest(join(root, sources)) > Math.min(...outputs.map(modified))) {
      throw new Error(`dist/ is older than ${sources}/: run npm run build (npm test does)`);
    }
  }
}
