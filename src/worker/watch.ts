/** What becomes of a worker while instances of it are open. */
import type { Endpoint } from 'comlink';
import { MlaError } from '../errors.ts';
import { Owed } from '../owed.ts';
import { endpointOf, hasThread, type WorkerLike } from './endpoint.ts';
import { isServing } from './protocol.ts';

/** One instance's interest in a worker. It holds nothing of the instance, which must be collectable while the worker lives. */
export class Watch {
  /** What the worker owes the instance. Ends when nothing will come: it has ended, or its script has failed before it answered. */
  readonly owed: Owed = new Owed();
  /** An error over there that nobody caught is its author's from now on, and not its end. */
  answered = false;
  /** Hears that `serve` has been called over there. */
  onServing: (() => void) | undefined;
  over = false;
  onOver: (() => void) | undefined;
  readonly #worker: WatchedWorker;

  constructor(worker: WorkerLike) {
    this.#worker = WatchedWorker.of(worker);
    this.#worker.add(this);
  }

  /** The worker has ended. */
  end(): void {
    this.over = true;
    this.onOver?.();
    this.owed.end(new MlaError('backend-unavailable', `the worker has ended${this.#worker.said}`, { argument: 'worker', fix: 'Keep the worker running until destroy() resolves' }));
  }

  /** No interest any more. */
  close(): void {
    this.#worker.delete(this);
  }
}

/** One set of listeners for all instances of a worker, there as long as any of them is. */
class WatchedWorker {
  static readonly #all = new WeakMap<WorkerLike, WatchedWorker>();

  static of(worker: WorkerLike): WatchedWorker {
    let watched = WatchedWorker.#all.get(worker);
    if (!watched) WatchedWorker.#all.set(worker, (watched = new WatchedWorker(worker)));
    return watched;
  }

  /** What it died of, in Node, where an error that nobody caught ends it. */
  said = '';
  readonly #endpoint: Endpoint;
  readonly #watches = new Set<Watch>();
  readonly #listeners: readonly (readonly [event: string, listener: (event: Event) => void])[];

  constructor(worker: WorkerLike) {
    this.#endpoint = endpointOf(worker);
    const ended = (): void => this.#watches.forEach((watch) => watch.end());
    this.#listeners = [
      // What Node's workers and what ports emit; in a browser nobody may be told of a worker that was terminated.
      ['exit', ended],
      ['close', ended],
      ['error', (event) => this.#failed((event as ErrorEvent).message || 'the script did not load')],
      // A port keeps what is sent to it. To listen to one is to take its messages from whoever would listen next.
      ...(hasThread(worker) ? [['message', (event: Event) => isServing((event as MessageEvent).data) && this.#watches.forEach((watch) => watch.onServing?.())] as const] : []),
    ];
  }

  add(watch: Watch): void {
    if (this.#watches.size === 0) for (const [event, listener] of this.#listeners) this.#endpoint.addEventListener(event, listener);
    this.#watches.add(watch);
  }

  delete(watch: Watch): void {
    if (!this.#watches.delete(watch) || this.#watches.size > 0) return;
    for (const [event, listener] of this.#listeners) this.#endpoint.removeEventListener(event, listener);
  }

  #failed(message: string): void {
    this.said = `: ${message}`;
    for (const { answered, owed } of this.#watches) {
      if (!answered) owed.end(new MlaError('backend-unavailable', `the worker failed: ${message}`, { argument: 'worker', fix: 'Check the worker script: it must call serve()' }));
    }
  }
}
