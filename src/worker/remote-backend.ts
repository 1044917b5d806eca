/** The caller's side: a backend whose operations are done by another thread. */
import { transfer } from 'comlink';
import type { Backend, DecodeShape, HostData, TensorSpec, TuneOp } from '../backend.ts';
import { MlaError } from '../errors.ts';
import type { MemoryStats, MlaInfo, TuneReport } from '../mla.ts';
import type { StepOp } from '../ops.ts';
import type { Connection } from './connection.ts';
import { unwrap } from './protocol.ts';

export class RemoteBackend implements Backend {
  info: MlaInfo;
  readonly #connection: Connection;
  /** Why a tensor's creation failed over there: told again to whoever reads it. */
  readonly #faults = new Map<number, unknown>();
  #gone = false;

  constructor(connection: Connection, info: MlaInfo) {
    this.#connection = connection;
    this.info = info;
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
    // Answers that are still owed may not come.
    this.#connection.owed.end(destroyedError());
    await this.#connection.close(done);
  }

  async #call(method: keyof Backend, args: unknown[], moved: Transferable[] = []): Promise<unknown> {
    if (this.#gone) throw destroyedError();
    const message = moved.length > 0 ? transfer(args, moved) : args;
    const answer = this.#connection.call(method, message);
    // The answer to `destroy` itself comes after this side has closed.
    const outcome = await (method === 'destroy' ? answer : this.#connection.owed.wait(answer));
    if (outcome.info) this.info = outcome.info;
    return unwrap(outcome);
  }
}

function destroyedError(): MlaError {
  return new MlaError('destroyed', 'this instance was destroyed', { argument: 'mla', fix: 'Make another with connect' });
}
