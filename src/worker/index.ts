/**
 * The same interface from another thread.
 *
 * In a worker that the caller constructs: `serve()`. On the caller's side: `connect(worker)`. What crosses the
 * thread is the Backend (plain operations on numbered tensors); checks and cache accounting run on the caller's side, so
 * that both sides behave alike. Arrays are copied unless a HostTensor says `transfer`.
 */
import { expose, releaseProxy, transfer, wrap, type Endpoint, type Remote } from 'comlink';
import type { Backend, DecodeShape, HostData, TensorSpec, TuneOp } from '../backend.ts';
import { MlaError, type MlaErrorData } from '../errors.ts';
import { MlaHost } from '../host.ts';
import { createBackend, type CreateOptions } from '../index.ts';
import type { MemoryStats, Mla, MlaInfo, TuneReport } from '../mla.ts';
import { Owed } from '../owed.ts';
import type { StepOp } from '../ops.ts';
import { runnerOf } from '../run-ops.ts';

/** A Worker, a MessagePort, or Node's worker_threads.Worker or parentPort. */
export type WorkerLike = { postMessage(message: never, transfer?: never): void } & ({ addEventListener: Endpoint['addEventListener'] } | { on(event: string, listener: (...values: unknown[]) => void): unknown });

/** Options that survive `postMessage`: no devices or adapters. */
export type WorkerOptions = Pick<CreateOptions, 'backend' | 'powerPreference' | 'limits' | 'tier' | 'tune'>;

/** An outcome as data: errors keep their type across threads. `info` comes along when it has changed. */
type Outcome<T> = ({ value: T } | { error: MlaErrorData }) & { info?: MlaInfo };

/** What the worker exposes. */
interface Service {
  open(options: WorkerOptions): Promise<Outcome<MlaInfo>>;
  call(method: keyof Backend, args: unknown[]): Promise<Outcome<unknown>>;
}

/**
 * Serves one backend to whoever connects. Call it once in the worker.
 * @param create how to make the backend; the environment-neutral one when absent (in Node: createBackend of flashmla-web/node)
 */
export function serve(create: (options: WorkerOptions) => Promise<Backend> = createBackend, endpoint?: WorkerLike): void {
  let backend: Backend | undefined;
  let told: MlaInfo | undefined;
  const service: Service = {
    open: (options) =>
      outcome(async () => {
        backend = await create(options);
        return (told = backend.info);
      }),
    call: async (method, args) => {
      const result = await outcome(async () => {
        if (!backend) throw new MlaError('destroyed', 'the worker serves no backend');
        // The other side has it whatever is served: what is missing is told here.
        if (method === 'run') return runnerOf(backend)(args[0] as readonly StepOp[]);
        return (backend[method] as ((...args: unknown[]) => unknown) | undefined)?.apply(backend, args);
      });
      if (backend && backend.info !== told) result.info = told = backend.info;
      const value = 'value' in result ? result.value : undefined;
      return value instanceof ArrayBuffer ? transfer(result, [value]) : result;
    },
  };
  expose(service, endpoint && endpointOf(endpoint));
}

/**
 * An instance whose work is done by a worker that called `serve()`.
 * @throws MlaError what createMla throws there; invalid-argument when `worker` is not one
 */
export async function connect(worker: WorkerLike, options: WorkerOptions = {}): Promise<Mla> {
  if (typeof worker?.postMessage !== 'function') {
    throw new MlaError('invalid-argument', 'not a worker', { argument: 'worker', expected: 'a Worker or MessagePort', got: typeof worker });
  }
  const endpoint = endpointOf(worker);
  const service = wrap<Service>(endpoint);
  const failed = failureOf(endpoint);
  const info = unwrap(await Promise.race([service.open(options), failed]));
  return new MlaHost(new RemoteBackend(service, info as MlaInfo, failed));
}

class RemoteBackend implements Backend {
  info: MlaInfo;
  readonly #service: Remote<Service>;
  readonly #failed: Promise<never>;
  /** Ends when the worker does, or this side is destroyed: answers that are still owed may not come. */
  readonly #owed = new Owed();
  /** Why a tensor's creation failed over there: told again to whoever reads it. */
  readonly #faults = new Map<number, unknown>();
  #gone = false;

  constructor(service: Remote<Service>, info: MlaInfo, failed: Promise<never>) {
    this.#service = service;
    this.info = info;
    this.#failed = failed;
    failed.catch((error: unknown) => this.#owed.end(error));
  }

  async create(spec: TensorSpec, data?: HostData, move?: boolean): Promise<void> {
    // A view of part of a buffer is copied: its neighbours are not ours to move.
    const whole = data !== undefined && move === true && data.byteLength === data.buffer.byteLength;
    try {
      await this.#call('create', [spec, data], whole ? [data.buffer as ArrayBuffer] : []);
    } catch (error) {
      this.#faults.set(spec.id, error);
      throw error;
    }
  }

  async read(id: number): Promise<ArrayBuffer> {
    const fault = this.#faults.get(id);
    if (fault !== undefined) throw fault;
    return (await this.#call('read', [id])) as ArrayBuffer;
  }

  async release(id: number, discard?: boolean): Promise<void> {
    this.#faults.delete(id);
    await this.#call('release', [id, discard]);
  }

  checkDecode = async (shape: DecodeShape): Promise<void> => void (await this.#call('checkDecode', [shape]));
  decode: Backend['decode'] = async (op) => void (await this.#call('decode', [op]));
  append: Backend['append'] = async (op) => void (await this.#call('append', [op]));
  run = async (ops: readonly StepOp[]): Promise<void> => void (await this.#call('run', [ops]));
  copyBlocks: Backend['copyBlocks'] = async (op) => void (await this.#call('copyBlocks', [op]));
  finished: Backend['finished'] = async () => void (await this.#call('finished', []));
  timeBegin: Backend['timeBegin'] = async () => void (await this.#call('timeBegin', []));
  timeEnd: Backend['timeEnd'] = async () => (await this.#call('timeEnd', [])) as { ms: number; source: 'device' | 'wall' };
  tune = async (op: TuneOp): Promise<TuneReport | undefined> => (await this.#call('tune', [op])) as TuneReport | undefined;
  flushCache: Backend['flushCache'] = async () => void (await this.#call('flushCache', []));
  memory: Backend['memory'] = async () => (await this.#call('memory', [])) as MemoryStats;

  async destroy(): Promise<void> {
    const done = this.#call('destroy', []);
    this.#gone = true;
    this.#owed.end(destroyedError());
    await Promise.race([done, this.#failed]).catch(() => undefined);
    this.#service[releaseProxy]();
  }

  async #call(method: keyof Backend, args: unknown[], moved: Transferable[] = []): Promise<unknown> {
    if (this.#gone) throw destroyedError();
    const message = moved.length > 0 ? transfer(args, moved) : args;
    const answer = this.#service.call(method, message) as Promise<Outcome<unknown>>;
    // The answer to `destroy` itself comes after this side has closed.
    const outcome = await (method === 'destroy' ? answer : this.#owed.wait(answer));
    if (outcome.info) this.info = outcome.info;
    return unwrap(outcome);
  }
}

function destroyedError(): MlaError {
  return new MlaError('destroyed', 'this instance was destroyed', { argument: 'mla', fix: 'Make another with connect' });
}

/** Node's workers and ports emit values where the web's dispatch events. */
function endpointOf(worker: WorkerLike): Endpoint {
  if (!('on' in worker)) return worker as Endpoint;
  const wrapped = new Map<unknown, (value: never) => void>();
  const emitter = worker as WorkerLike & { on(e: string, l: (value: never) => void): void; off(e: string, l: (value: never) => void): void };
  return {
    postMessage: (message, moved) => worker.postMessage(message as never, moved as never),
    addEventListener: (type, listener) => {
      const on = (value: never): void => {
        const event = type === 'error' ? { message: (value as Error).message } : { data: value };
        if (typeof listener === 'function') listener(event as never);
        else listener.handleEvent(event as never);
      };
      wrapped.set(listener, on);
      emitter.on(type, on);
    },
    removeEventListener: (type, listener) => {
      emitter.off(type, wrapped.get(listener)!);
      wrapped.delete(listener);
    },
  };
}

/** Rejects when the worker's script fails or the worker ends: nothing it owes will come. */
function failureOf(worker: Endpoint): Promise<never> {
  const failed = new Promise<never>((_, reject) => {
    // What Node's workers and what ports emit; in a browser nobody is told of a worker that was terminated.
    for (const ending of ['exit', 'close']) {
      worker.addEventListener(ending, () => reject(new MlaError('backend-unavailable', 'the worker has ended', { argument: 'worker', fix: 'Keep the worker running until destroy() resolves' })));
    }
    worker.addEventListener('error', (event) => {
      const message = (event as ErrorEvent).message || 'the script did not load';
      reject(new MlaError('backend-unavailable', `the worker failed: ${message}`, { argument: 'worker', fix: 'Check the worker script: it must call serve()' }));
    });
  });
  failed.catch(() => undefined);
  return failed;
}

async function outcome<T>(run: () => Promise<T>): Promise<Outcome<T>> {
  try {
    return { value: await run() };
  } catch (error) {
    return { error: error instanceof MlaError ? error.toJSON() : new MlaError('internal', (error as Error)?.message ?? String(error)).toJSON() };
  }
}

function unwrap(result: unknown): unknown {
  const known = result as Outcome<unknown>;
  if ('error' in known) throw MlaError.fromJSON(known.error);
  return known.value;
}
