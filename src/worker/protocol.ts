/** What crosses between threads: a port for each instance, and on it operations of a backend and their outcomes. */
import type { finalizer } from 'comlink';
import type { Backend } from '../backend.ts';
import { MlaError, type MlaErrorData } from '../errors.ts';
import type { CreateOptions } from '../index.ts';
import type { MlaInfo } from '../mla.ts';
import type { WorkerLike, WorkerPort } from './endpoint.ts';

/** Options that survive `postMessage`: no devices or adapters. */
export type WorkerOptions = Pick<CreateOptions, 'backend' | 'powerPreference' | 'limits' | 'tier' | 'tune'>;

export const CONNECT = 'flashmla-web connect';
const READY = 'flashmla-web ready';
const SERVING = 'flashmla-web serving';

/** What `connect` posts to the worker itself. All else goes through the port. */
export interface ConnectMessage {
  readonly type: typeof CONNECT;
  /** Of the instance: a port for one that has been offered another one is not taken. */
  readonly id: string;
  readonly port: WorkerPort;
}

export function offer(worker: WorkerLike, id: string, port: MessagePort): void {
  worker.postMessage({ type: CONNECT, id, port } satisfies ConnectMessage as never, [port] as never);
}

/** What an endpoint's `message` brings where it is an offer: other messages are the author's own. */
export function offerOf(data: unknown): ConnectMessage | undefined {
  const message = data as Partial<ConnectMessage> | null | undefined;
  return message?.type === CONNECT && message.port ? (message as ConnectMessage) : undefined;
}

/** What the worker posts to a port that it takes. */
export const ready: { readonly type: typeof READY } = { type: READY };
export const isReady = (data: unknown): boolean => (data as { type?: unknown } | null)?.type === READY;

/** What the worker posts as `serve` is called. */
export const serving: { readonly type: typeof SERVING } = { type: SERVING };
export const isServing = (data: unknown): boolean => (data as { type?: unknown } | null)?.type === SERVING;

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
