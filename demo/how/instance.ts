/** An instance of the package in a worker of its own. */
import type { BackendName, Mla } from '../../src/mla.ts';
import { connect } from '../../src/worker/index.ts';

/** Nothing is tuned: a figure's few calls would not repay it. @throws MlaError backend-unavailable */
export async function openInstance(backend: BackendName | 'auto'): Promise<Mla> {
  const worker = new Worker(new URL('./worker.ts', import.meta.url), { type: 'module', name: `flashmla-web ${backend}` });
  try {
    return await connect(worker, { backend, tune: 'off' });
  } catch (error) {
    worker.terminate();
    throw error;
  }
}
