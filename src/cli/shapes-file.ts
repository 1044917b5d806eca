/** Shapes that `--shapes` and `--only` name. */
import { readFile } from 'node:fs/promises';
import { readError, usageError } from './failure.ts';
import { BUILT_IN_SHAPES, parseShapes, type BenchShape } from './shapes.ts';

/** @throws MlaError invalid-file, invalid-argument */
export async function readShapes(file: string | undefined, only: RegExp | undefined): Promise<readonly BenchShape[]> {
  let shapes = BUILT_IN_SHAPES;
  if (file !== undefined) {
    const json = await readFile(file, 'utf8').catch((cause: unknown) => {
      throw readError(file, cause);
    });
    shapes = parseShapes(json, file);
  }
  const chosen = only === undefined ? shapes : shapes.filter((shape) => only.test(shape.name));
  if (chosen.length === 0) {
    throw usageError('matches no shape', '--only', `one of ${shapes.map((shape) => shape.name).join(', ')}`, String(only));
  }
  return chosen;
}
