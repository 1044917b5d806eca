/** The page's end of the worker that writes. Errors come out of it as they were thrown there. */
import { proxy, wrap, type Remote } from 'comlink';
import { MlaError } from '../../src/errors.ts';
import type { MlaInfo } from '../../src/mla.ts';
import { unwrap, type Begun, type Listener, type ModelFacts, type Origin, type Outcome, type Sampling, type TextId, type WriterService } from './protocol.ts';

export class Session {
  readonly info: MlaInfo;
  readonly #worker: Worker;
  readonly #service: Remote<WriterService>;
  /** Rejects when the worker has failed or was closed: answers that are owed will not come. */
  readonly #over: Rejecter;

  private constructor(info: MlaInfo, worker: Worker, service: Remote<WriterService>, over: Rejecter) {
    this.info = info;
    this.#worker = worker;
    this.#service = service;
    this.#over = over;
  }

  /** @throws MlaError */
  static async open(listener: Listener): Promise<Session> {
    const worker = new Worker(new URL('./worker.ts', import.meta.url), { type: 'module', name: 'flashmla-web' });
    const over = rejecter();
    worker.addEventListener('error', ({ message }) => over.reject(new MlaError('internal', `the worker failed: ${message || 'its script did not load'}`)));
    const service = wrap<WriterService>(worker);
    try {
      const info = unwrap(await Promise.race([service.open(proxy(listener)), over.promise]));
      return new Session(info, worker, service, over);
    } catch (error) {
      worker.terminate();
      throw error;
    }
  }

  /** @throws MlaError */
  load(origin: Origin): Promise<ModelFacts> {
    return this.#answer(this.#service.load(origin));
  }

  abortLoad(): void {
    void this.#service.abortLoad();
  }

  /** @throws MlaError */
  begin(id: TextId, prompt: string, sampling: Sampling): Promise<Begun> {
    return this.#answer(this.#service.begin(id, prompt, sampling));
  }

  /** @throws MlaError */
  fork(id: TextId, from: TextId, sampling: Sampling): Promise<Begun> {
    return this.#answer(this.#service.fork(id, from, sampling));
  }

  stop(id: TextId): void {
    void this.#service.stop(id);
  }

  end(id: TextId): void {
    void this.#service.end(id);
  }

  loseDevice(): void {
    void this.#service.loseDevice();
  }

  close(): void {
    this.#worker.terminate();
    this.#over.reject(new MlaError('destroyed', 'this session was closed'));
  }

  async #answer<T>(answer: Promise<Outcome<T>>): Promise<T> {
    return unwrap(await Promise.race([answer, this.#over.promise]));
  }
}

interface Rejecter {
  readonly promise: Promise<never>;
  readonly reject: (error: MlaError) => void;
}

function rejecter(): Rejecter {
  let reject: Rejecter['reject'] = () => undefined;
  const promise = new Promise<never>((_, r) => {
    reject = r;
  });
  // Nobody may be waiting.
  promise.catch(() => undefined);
  return { promise, reject };
}
