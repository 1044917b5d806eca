/** The caller's end of one instance's port, and what becomes of the worker behind it. */
import { releaseProxy, wrap, type Endpoint, type Remote } from 'comlink';
import type { Backend } from '../backend.ts';
import { MlaError } from '../errors.ts';
import type { MlaInfo } from '../mla.ts';
import { endpointOf, type WorkerLike, type WorkerPort } from './endpoint.ts';
import { CONNECT, unwrap, type ConnectMessage, type Outcome, type Service, type WorkerOptions } from './protocol.ts';

export class Connection {
  /** Rejects when nothing that is owed will come: the worker has ended, or its script has failed before it answered. */
  readonly failed: Promise<never>;
  readonly #port: WorkerPort;
  readonly #service: Remote<Service>;
  readonly #worker: Endpoint;
  readonly #listeners: readonly (readonly [event: string, listener: (event: Event) => void])[];
  /** Apart from the instance, which listeners must not keep from being collected: then the worker frees what it had for it. */
  readonly #state = { answered: false, ended: false };

  constructor(worker: WorkerLike) {
    const { port1, port2 } = new MessageChannel();
    this.#port = port1;
    this.#worker = endpointOf(worker);
    const state = this.#state;
    let said = '';
    let reject!: (error: MlaError) => void;
    this.failed = new Promise<never>((_, refuse) => (reject = refuse));
    this.failed.catch(() => undefined);
    const ended = (): void => {
      state.ended = true;
      reject(new MlaError('backend-unavailable', `the worker has ended${said}`, { argument: 'worker', fix: 'Keep the worker running until destroy() resolves' }));
    };
    // What Node's workers and what ports emit; in a browser nobody may be told of a worker that was terminated.
    this.#listeners = [
      ['exit', ended],
      ['close', ended],
      ['error', (event) => {
        const message = (event as ErrorEvent).message || 'the script did not load';
        // In Node an error that nobody caught ends the worker; in a browser one that has answered goes on, and the error is its author's.
        said = `: ${message}`;
        if (!state.answered) reject(new MlaError('backend-unavailable', `the worker failed: ${message}`, { argument: 'worker', fix: 'Check the worker script: it must call serve()' }));
      }],
    ];
    for (const [event, listener] of this.#listeners) this.#worker.addEventListener(event, listener);
    const port = endpointOf(port1);
    // A port says so too, but not why: the worker's own word first, where it has one.
    port.addEventListener('close', () => setTimeout(ended));
    this.#service = wrap<Service>(port);
    port1.start();
    // In Node a port keeps its thread alive. Whether a worker does is for whoever made it to say.
    if ('on' in worker && 'terminate' in worker) (port1 as { unref?(): void }).unref?.();
    worker.postMessage({ type: CONNECT, port: port2 } satisfies ConnectMessage as never, [port2] as never);
  }

  /** Has the worker make a backend. @throws MlaError what createMla throws there; invalid-argument for `options` that cannot be posted */
  async open(options: WorkerOptions): Promise<MlaInfo> {
    const opening = this.#service.open(options).catch((cause: Error) => {
      throw new MlaError('invalid-argument', 'they cannot be posted to a worker', { argument: 'options', expected: 'plain data: devices and adapters stay on their thread', got: cause.message, cause });
    });
    const info = unwrap(await Promise.race([opening, this.failed])) as MlaInfo;
    this.#state.answered = true;
    return info;
  }

  call(method: keyof Backend, args: unknown[]): Promise<Outcome<unknown>> {
    return this.#service.call(method, args) as Promise<Outcome<unknown>>;
  }

  /** Leaves the worker, which frees what it has for this instance. */
  close(): void {
    for (const [event, listener] of this.#listeners) this.#worker.removeEventListener(event, listener);
    // The other end closes the port once it has heard.
    if (this.#state.ended) this.#port.close();
    else this.#service[releaseProxy]();
  }
}
