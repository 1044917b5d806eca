/** What crosses between threads: a port for each instance, and on it operations of a backend and their outcomes. */
import type { finalizer } from 'comlink';
import type { Backend } from '../backend.ts';
import { MlaError, type MlaErrorData } from '../errors.ts';
import type { CreateOptions } from '../index.ts';
import type { MlaInfo } from '../mla.ts';
import type { WorkerPort } from './endpoint.ts';

/** Options that survive `postMessage`: no devices or adapters. */
export type WorkerOptions = Pick<CreateOptions, 'backend' | 'powerPreference' | 'limits' | 'tier' | 'tune'>;

export const CONNECT = 'flashmla-web connect';

/** What `connect` posts to the worker itself. All else goes through the port. */
export interface ConnectMessage {
  readonly type: typeof CONNECT;
  readonly port: WorkerPort;
}

/** What the worker exposes on a port. */
export interface Service {
  open(options: WorkerOptions): Promise<Outcome<MlaInfo>>;
  call(method: keyof Backend, args: unknown[]): Promise<Outcome<unknown>>;
  /** Nobody is there any more: the proxy was released, or collected as garbage. */
  [finalizer](): void;
}

/** An outcome as data: errors keep their type across threads. `info` comes along when it has changed. */
export type Outcome<T> = ({ value: T } | { error: MlaErrorData }) & { info?: MlaInfo };

export async function outcome<T>(run: () => Promise<T>): Promise<Outcome<T>> {
  try {
    return { value: await run() };
  } catch (error) {
    return { error: error instanceof MlaError ? error.toJSON() : new MlaError('internal', (error as Error)?.message ?? String(error)).toJSON() };
  }
}

export function unwrap(result: unknown): unknown {
  const known = result as Outcome<unknown>;
  if ('error' in known) throw MlaError.fromJSON(known.error);
  return known.value;
}
