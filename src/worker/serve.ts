/** The worker's side: backends for whoever connects. */
import { expose, finalizer, transfer, type Endpoint } from 'comlink';
import type { Backend } from '../backend.ts';
import { MlaError } from '../errors.ts';
import { createBackend } from '../index.ts';
import type { MlaInfo } from '../mla.ts';
import type { StepOp } from '../ops.ts';
import { runnerOf } from '../run-ops.ts';
import { endpointOf, type WorkerLike, type WorkerPort } from './endpoint.ts';
import { offerOf, outcome, ready, serving, type Service, type WorkerOptions } from './protocol.ts';

/**
 * Serves whoever connects, each with a backend of its own. Call it once in the worker.
 * @param create how to make a backend; the environment-neutral one when absent (in Node: createBackend of flashmla-web/node)
 */
export function serve(create: (options: WorkerOptions) => Promise<Backend> = createBackend, endpoint?: WorkerLike): void {
  const worker = endpoint ? endpointOf(endpoint) : (globalThis as unknown as Endpoint);
  /** Instances that have a port. */
  const taken = new Set<string>();
  worker.addEventListener('message', (event) => {
    const offered = offerOf((event as MessageEvent).data);
    if (!offered) return;
    const { id, port } = offered;
    if (taken.has(id)) {
      port.close();
      return;
    }
    taken.add(id);
    serveOne(create, port, () => taken.delete(id));
  });
  // Ports of browsers hold messages back until they are told.
  (endpoint as { start?(): void } | undefined)?.start?.();
  // What was offered before, while the script still waited for something, is lost. A port keeps what is sent to it, and would keep this.
  if (!endpoint || endpoint === (globalThis as unknown)) worker.postMessage(serving);
}

function serveOne(create: (options: WorkerOptions) => Promise<Backend>, port: WorkerPort, onEnd: () => void): void {
  const endpoint = endpointOf(port);
  let backend: Backend | undefined;
  let told: MlaInfo | undefined;
  let gone = false;
  const end = (): void => {
    if (gone) return;
    gone = true;
    onEnd();
    port.close();
    void outcome(async () => backend?.destroy());
    backend = undefined;
  };
  const service: Service = {
    open: (options) =>
      outcome(async () => {
        const made = await create(options);
        // Who asked for it may have left meanwhile.
        if (gone) await made.destroy();
        else backend = made;
        return (told = made.info);
      }),
    call: async (method, args) => {
      const result = await outcome(async () => {
        if (!backend) throw new MlaError('destroyed', 'the worker serves no backend');
        const serving = backend;
        // Once.
        if (method === 'destroy') backend = undefined;
        // The other side has it whatever is served: what is missing is told here.
        if (method === 'run') return runnerOf(serving)(args[0] as readonly StepOp[]);
        return (serving[method] as ((...args: unknown[]) => unknown) | undefined)?.apply(serving, args);
      });
      if (backend && backend.info !== told) result.info = told = backend.info;
      const value = 'value' in result ? result.value : undefined;
      return value instanceof ArrayBuffer ? transfer(result, [value]) : result;
    },
    [finalizer]: end,
  };
  // Told where the environment tells it: the other side ended without a word.
  endpoint.addEventListener('close', end);
  expose(service, endpoint);
  endpoint.postMessage(ready);
}
