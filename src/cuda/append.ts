/** Launcher of native-cuda/append.cu: new tokens into their pages. */
import type { AppendOp } from '../backend.ts';
import { MlaError } from '../errors.ts';
import type { CudaContext } from './context.ts';
import { HostBlock } from './driver.ts';
import { Launch } from './launch.ts';
import type { Modules } from './modules.ts';
import { APPEND_PARAMS, writeAppendParams } from './params.ts';

const THREADS = 256;
const ROWS = THREADS / 32; // a warp each
const CHUNK_ELEMENTS = 8; // 16 B
const MOST_I32 = 2 ** 31 - 1;

export class AppendKernel {
  readonly #params: HostBlock;
  readonly #launch: Launch;

  constructor(context: CudaContext, modules: Modules) {
    this.#params = new HostBlock(context.driver, APPEND_PARAMS.bytes);
    this.#launch = new Launch(context, 'append', modules.function('append', 'append'), this.#params.address, { threads: THREADS });
  }

  /** @throws MlaError limit-exceeded */
  run({ tokens, hKv, dQk, dV }: AppendOp, at: { cache: number; latent: number; rope: number; slots: number }): void {
    const rows = tokens * hKv;
    if (rows > MOST_I32) throw new MlaError('limit-exceeded', 'too many tokens for one launch', { argument: 'latent', expected: `at most ${MOST_I32} rows`, got: String(rows) });
    writeAppendParams(this.#params, { ...at, rows, hKv, latentChunks: (at.rope === 0 ? dQk : dV) / CHUNK_ELEMENTS, rowChunks: dQk / CHUNK_ELEMENTS });
    this.#launch.run(Math.ceil(rows / ROWS));
  }
}
