/** Garbage collection when a test asks for it. */
import { setTimeout } from 'node:timers/promises';
import { setFlagsFromString } from 'node:v8';
import { runInNewContext } from 'node:vm';

/** Collects several times: finalizers, such as those that unload a library, have their turn after a collection. */
export async function collectGarbage(): Promise<void> {
  setFlagsFromString('--expose-gc');
  const collect = runInNewContext('gc') as () => void;
  for (let i = 0; i < 5; i++) {
    await setTimeout(5);
    collect();
  }
  await setTimeout(5);
}
