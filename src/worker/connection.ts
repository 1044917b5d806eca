/** The caller's end of one instance's channel to its worker. */
import { releaseProxy, wrap, type Remote } from 'comlink';
import type { Backend } from '../backend.ts';
import { MlaError } from '../errors.ts';
import type { MlaInfo } from '../mla.ts';
import type { Owed } from '../owed.ts';
import { endpointOf, hasThread, type WorkerLike } from './endpoint.ts';
import { isReady, offer, unwrap, type Outcome, type Service, type WorkerOptions } from './protocol.ts';
import { Watch } from './watch.ts';

/** So long, milliseconds, a worker has to say that it has freed what it had: in a browser nobody is told of one that was terminated. */
const PARTING_MS = 5000;

export class Connection {
  readonly #watch: Watch;
  readonly #port: MessagePort;
  readonly #service: Remote<Service>;

  private constructor(watch: Watch, worker: WorkerLike, port: MessagePort) {
    this.#watch = watch;
    this.#port = port;
    this.#service = wrap<Service>(endpointOf(port));
    leaveAlone(worker, port);
  }

  /** @throws MlaError backend-unavailable: the worker ended, or failed, before it served */
  static async to(worker: WorkerLike): Promise<Connection> {
    const watch = new Watch(worker);
    try {
      return new Connection(watch, worker, await acceptedPort(worker, watch));
    } catch (error) {
      watch.close();
      throw error;
    }
  }

  /** Ends when nothing will come any more. */
  get owed(): Owed {
    return this.#watch.owed;
  }

  /** Has the worker make a backend. @throws MlaError what createMla throws there; invalid-argument for `options` that cannot be posted */
  async open(options: WorkerOptions): Promise<MlaInfo> {
    const opening = (this.#service.open(options) as Promise<Outcome<MlaInfo>>).catch((cause: Error) => {
      throw new MlaError('invalid-argument', 'they cannot be posted to a worker', { argument: 'options', expected: 'plain data: devices and adapters stay on their thread', got: cause.message, cause });
    });
    const info = unwrap(await this.owed.wait(opening)) as MlaInfo;
    this.#watch.answered = true;
    return info;
  }

  call(method: keyof Backend, args: unknown[]): Promise<Outcome<unknown>> {
    return this.#service.call(method, args) as Promise<Outcome<unknown>>;
  }

  /** Leaves the worker, which frees what it has for this instance, once `last` has been answered, or will not be. */
  async close(last?: Promise<unknown>): Promise<void> {
    if (last && !this.#watch.over) await this.#answered(last);
    this.#watch.close();
    // The other end closes the port once it has heard.
    if (this.#watch.over) this.#port.close();
    else this.#service[releaseProxy]();
  }

  #answered(last: Promise<unknown>): Promise<void> {
    return new Promise((resolve) => {
      const timer = setTimeout(resolve, PARTING_MS);
      const done = (): void => {
        clearTimeout(timer);
        resolve();
      };
      last.then(done, done);
      this.#watch.onOver = done;
    });
  }
}

/** In Node a port that somebody listens to keeps the program running. Whether a worker does is for whoever made it to say. */
function leaveAlone(worker: WorkerLike, port: MessagePort): void {
  if (hasThread(worker)) (port as { unref?(): void }).unref?.();
}

/**
 * A port that the worker has taken. One is offered at once, and another one each time that `serve` tells that it was called: an offer before
 * that may be lost. The worker takes one of them.
 */
async function acceptedPort(worker: WorkerLike, watch: Watch): Promise<MessagePort> {
  const id = Math.random().toString(36).slice(2);
  const offered: MessagePort[] = [];
  let accepted: MessagePort | undefined;
  try {
    const accepting = new Promise<MessagePort>((resolve) => {
      watch.onServing = () => {
        const { port1, port2 } = new MessageChannel();
        offered.push(port1);
        const port = endpointOf(port1);
        const onMessage = (event: Event): void => {
          if (!isReady((event as MessageEvent).data)) return;
          port.removeEventListener('message', onMessage);
          resolve(port1);
        };
        port.addEventListener('message', onMessage);
        // The worker's own word of its end first, where it has one: a port does not say why.
        port.addEventListener('close', () => setTimeout(() => port1 === accepted && watch.end()));
        port1.start();
        leaveAlone(worker, port1);
        offer(worker, id, port2);
      };
    });
    watch.onServing!();
    return (accepted = await watch.owed.wait(accepting));
  } finally {
    watch.onServing = undefined;
    for (const port of offered) if (port !== accepted) port.close();
  }
}
