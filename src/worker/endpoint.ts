/** Workers and ports, the web's and Node's, as one kind of thing. */
import type { Endpoint } from 'comlink';

/** A Worker, a MessagePort, or Node's worker_threads.Worker or parentPort. */
export type WorkerLike = { postMessage(message: never, transfer?: never): void } & ({ addEventListener: Endpoint['addEventListener'] } | { on(event: string, listener: (...values: unknown[]) => void): unknown });

/** One end of a channel. */
export type WorkerPort = WorkerLike & { close(): void };

/** Node's workers and ports emit values where the web's dispatch events. */
export function endpointOf(worker: WorkerLike): Endpoint {
  if (!('on' in worker)) return worker as Endpoint;
  const emitter = worker as WorkerLike & { on(e: string, l: (value: never) => void): void; off(e: string, l: (value: never) => void): void };
  const wrapped = new Map<string, Map<unknown, (value: never) => void>>();
  return {
    postMessage: (message, moved) => worker.postMessage(message as never, moved as never),
    addEventListener: (type, listener) => {
      const on = (value: never): void => {
        const event = type === 'error' ? { message: (value as Error | undefined)?.message } : { data: value };
        if (typeof listener === 'function') listener(event as never);
        else listener.handleEvent(event as never);
      };
      wrapped.set(type, (wrapped.get(type) ?? new Map()).set(listener, on));
      emitter.on(type, on);
    },
    removeEventListener: (type, listener) => {
      const on = wrapped.get(type)?.get(listener);
      if (!on) return;
      emitter.off(type, on);
      wrapped.get(type)!.delete(listener);
    },
  };
}

/** Whether it is a worker itself, the web's or Node's, and no port to one. */
export function hasThread(worker: WorkerLike): boolean {
  return 'terminate' in worker;
}

/** Whether it is a worker of Node's that is no more. */
export function hasEnded(worker: WorkerLike): boolean {
  return 'on' in worker && 'threadId' in worker && worker.threadId === -1;
}
