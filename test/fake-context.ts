/** What commands are given in tests: the cpu backend, and output that is kept. */
import type { Context, MlaChoice } from '../src/cli/context.ts';
import { createMla } from '../src/index.ts';
import type { Mla } from '../src/mla.ts';
import { noStore } from '../src/tune-store.ts';

export interface FakeContext extends Context {
  out: string;
  err: string;
  /** What instances were asked for. */
  readonly choices: MlaChoice[];
}

/** A context on the cpu backend that keeps what is written; `wrap` may stand between. */
export function fakeContext({ isTTY = false, wrap = (mla: Mla): Mla => mla } = {}): FakeContext {
  const context = {
    out: '', err: '', choices: [] as MlaChoice[],
    stdout: { write: (text: string) => void (context.out += text) },
    stderr: { write: (text: string) => void (context.err += text), isTTY, columns: 100 },
    createMla: async (choice: MlaChoice) => {
      context.choices.push(choice);
      return wrap(await createMla({ backend: 'cpu' }));
    },
    listBackends: async () => [],
    tuneStore: noStore('a test'),
  };
  return context;
}
