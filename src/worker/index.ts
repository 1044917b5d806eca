/**
 * The same interface from another thread.
 *
 * In a worker that the caller constructs: `serve()`. On the caller's side: `connect(worker)`, any number of times. Each instance has a
 * backend of its own over there and talks to it through a port of its own. What crosses the thread is the Backend (plain operations on
 * numbered tensors); checks and cache accounting run on the caller's side, so that both sides behave alike. Arrays are copied
 * unless a HostTensor says `transfer`.
 */
import { MlaError } from '../errors.ts';
import { MlaHost } from '../host.ts';
import type { Mla } from '../mla.ts';
import { Connection } from './connection.ts';
import { hasEnded, type WorkerLike } from './endpoint.ts';
import type { WorkerOptions } from './protocol.ts';
import { RemoteBackend } from './remote-backend.ts';

export type { WorkerLike } from './endpoint.ts';
export type { WorkerOptions } from './protocol.ts';
export { serve } from './serve.ts';

/**
 * An instance whose work is done by a worker that called `serve()`.
 * @throws MlaError what createMla throws there; invalid-argument when `worker` is not one or `options` cannot be posted to it
 */
export async function connect(worker: WorkerLike, options: WorkerOptions = {}): Promise<Mla> {
  if (typeof worker?.postMessage !== 'function') {
    throw new MlaError('invalid-argument', 'not a worker', { argument: 'worker', expected: 'a Worker or MessagePort', got: typeof worker });
  }
  if (hasEnded(worker)) throw new MlaError('backend-unavailable', 'the worker has ended', { argument: 'worker', fix: 'Make a new one' });
  const connection = await Connection.to(worker);
  try {
    return new MlaHost(new RemoteBackend(connection, await connection.open(options)));
  } catch (error) {
    await connection.close();
    throw error;
  }
}
