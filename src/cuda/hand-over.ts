/**
 * Models on a backend whose kernels are those of attention: decode and append run there, all else on the host, by the cpu
 * backend's operations.
 *
 * The hand-over: a tensor is on one side at a time, and moves, whole, to the side that needs it next. So weights cross the bus
 * once, in the first step, and leave the device's memory; queries and what attention makes of them cross once a layer and step;
 * a KV cache stays on the device, for new rows are made on the host and appended by the kernel.
 *
 * Right, not fast: products are those of one thread of JavaScript. Who never runs a model pays nothing but a call.
 */
import type { AppendOp, Backend, CopyBlocksOp, DecodeOp, DecodeShape, HostData, Sync, TensorId, TensorSpec } from '../backend.ts';
import { Pause } from '../cpu/pause.ts';
import { appendLatent } from '../cpu/rope.ts';
import { kept, run } from '../cpu/run.ts';
import { Tensors, type Memory } from '../cpu/tensors.ts';
import { MlaError } from '../errors.ts';
import type { MemoryStats, MlaInfo } from '../mla.ts';
import type { AppendLatentOp, StepOp } from '../ops.ts';

type HostOp = Exclude<StepOp, { op: 'decode' | 'append' | 'appendLatent' }>;

/** The rows that an append brings; the host side counts ids up from 1. */
const ROWS: TensorId = -1;

export class HandOver implements Backend {
  readonly #native: Backend;
  readonly #specs = new Map<TensorId, TensorSpec>();
  /** Tensors that are on the host now. */
  readonly #host = new Map<TensorId, Memory>();
  readonly #tensors = new Tensors((id) => this.#memory(id));
  readonly #pause = new Pause();
  /** What has been asked for and is not done. Never rejects. */
  #queue: Promise<unknown> = Promise.resolve();
  #waiting = 0;
  #destroyed = false;

  /** @param native has no `run` of its own */
  constructor(native: Backend) {
    this.#native = native;
  }

  get info(): MlaInfo {
    return this.#native.info;
  }

  create(spec: TensorSpec, data?: HostData): Sync<void> {
    const done = this.#native.create(spec, data);
    this.#specs.set(spec.id, spec);
    return done;
  }

  async read(id: TensorId): Promise<ArrayBuffer> {
    return this.#inOrder(() => {
      const memory = this.#host.get(id);
      return memory ? Promise.resolve(memory.buffer.slice(0)) : this.#native.read(id);
    });
  }

  release(id: TensorId, discard?: boolean): Sync<void> {
    return this.#inOrder(() => {
      this.#specs.delete(id);
      if (!this.#host.delete(id)) return this.#native.release(id, discard);
    });
  }

  checkDecode(shape: DecodeShape): Sync<void> {
    return this.#native.checkDecode?.(shape);
  }

  decode(op: DecodeOp): Sync<void> {
    if (this.#direct) return this.#native.decode(op);
    const own = kept(op);
    return this.#inOrder(() => this.#step({ op: 'decode', ...own }));
  }

  append(op: AppendOp): Sync<void> {
    if (this.#direct) return this.#native.append(op);
    const own = kept(op);
    return this.#inOrder(() => this.#step({ op: 'append', ...own }));
  }

  copyBlocks(op: CopyBlocksOp): Sync<void> {
    if (this.#direct) return this.#native.copyBlocks(op);
    const own = kept(op);
    return this.#inOrder(async () => {
      await this.#toDevice([own.kvCache]);
      await this.#native.copyBlocks(own);
    });
  }

  /** Resolves when all that runs on the host is done, and the rest enqueued. @throws MlaError of any operation */
  run(ops: readonly StepOp[]): Promise<void> {
    const own = ops.map(kept);
    return this.#enqueue(async () => {
      for (const op of own) await this.#step(op);
    });
  }

  async finished(): Promise<void> {
    return this.#inOrder(() => this.#native.finished());
  }

  timeBegin(): Sync<void> {
    return this.#inOrder(() => this.#native.timeBegin());
  }

  async timeEnd(): Promise<{ ms: number; source: 'device' | 'wall' }> {
    return this.#inOrder(() => this.#native.timeEnd());
  }

  flushCache(): Sync<void> {
    return this.#inOrder(() => this.#native.flushCache());
  }

  memory(): Sync<MemoryStats> {
    return this.#native.memory();
  }

  async destroy(): Promise<void> {
    this.#destroyed = true;
    await this.#queue;
    this.#host.clear();
    await this.#native.destroy();
  }

  /** Whether calls may pass as they come: nothing is under way that they must wait for, and nothing is on the host. */
  get #direct(): boolean {
    return this.#waiting === 0 && this.#host.size === 0;
  }

  #inOrder<T>(work: () => Sync<T>): Sync<T> {
    return this.#direct ? work() : this.#enqueue(work);
  }

  async #enqueue<T>(work: () => Sync<T>): Promise<T> {
    this.#waiting++;
    const done = this.#queue.then(() => {
      if (this.#destroyed) throw new MlaError('destroyed', 'this backend was destroyed');
      return work();
    });
    this.#queue = done.then(() => this.#waiting--, () => this.#waiting--);
    return done;
  }

  async #step(op: StepOp): Promise<void> {
    if (op.op === 'decode') {
      await this.#toDevice([op.q, op.kvCache, op.out, op.lse, ...(typeof op.blockTable === 'number' ? [op.blockTable] : [])]);
      return this.#native.decode(op);
    }
    if (op.op === 'append') {
      await this.#toDevice([op.kvCache, op.latent, ...(op.rope === undefined ? [] : [op.rope])]);
      return this.#native.append(op);
    }
    if (op.op === 'appendLatent') return this.#appendLatent(op);
    await this.#toHost(operands(op));
    for (const _ of run(op, this.#tensors)) {
      await this.#pause.turn();
      if (this.#destroyed) throw new MlaError('destroyed', 'this backend was destroyed');
    }
  }

  /** The rows on the host, as a cache of their own; the kernel takes them to their pages. */
  async #appendLatent(op: AppendLatentOp): Promise<void> {
    const { tokens, dV, rope, kvCache, slots, blockSize } = op;
    await this.#toHost([op.x.tensor, op.normWeight]);
    await this.#toDevice([kvCache]);
    const dQk = dV + rope;
    const rows = new Uint16Array(tokens * dQk);
    appendLatent({ ...op, kvCache: ROWS, slots: Int32Array.from({ length: tokens }, (_, t) => t) }, new Tensors((id) => (id === ROWS ? rows : this.#memory(id))));
    await this.#native.create({ id: ROWS, dtype: 'bf16', shape: [tokens, 1, dQk], argument: 'latent' }, rows);
    try {
      await this.#native.append({ kvCache, latent: ROWS, rope: undefined, slots, tokens, dtype: 'bf16', hKv: 1, dQk, dV, blockSize });
    } finally {
      await this.#native.release(ROWS);
    }
  }

  async #toHost(ids: readonly TensorId[]): Promise<void> {
    for (const id of ids) {
      if (this.#host.has(id)) continue;
      const bytes = await this.#native.read(id);
      const { dtype } = this.#specs.get(id)!;
      this.#host.set(id, dtype === 'f32' ? new Float32Array(bytes) : dtype === 'i32' ? new Int32Array(bytes) : new Uint16Array(bytes));
      await this.#native.release(id);
    }
  }

  async #toDevice(ids: readonly TensorId[]): Promise<void> {
    for (const id of ids) {
      const memory = this.#host.get(id);
      if (!memory) continue;
      await this.#native.create(this.#specs.get(id)!, memory);
      this.#host.delete(id);
    }
  }

  #memory(id: TensorId): Memory {
    const memory = this.#host.get(id);
    if (!memory) throw new MlaError('destroyed', 'no such tensor on this device');
    return memory;
  }
}

/** The tensors that an operation reads and writes. */
function operands(op: HostOp): TensorId[] {
  const all = ((): (TensorId | undefined)[] => {
    switch (op.op) {
      case 'embed': return [op.table, op.out];
      case 'rmsNorm': return [op.x.tensor, op.weight, op.out.tensor];
      case 'matmul': return [op.x.tensor, op.weight.data, op.weight.scales, op.out.tensor];
      case 'rope': return [op.x.tensor, op.out.tensor];
      case 'swiglu':
      case 'takeRows': return [op.x, op.out];
      case 'router': return [op.logits, op.bias, op.ids, op.weights];
      case 'experts': return [op.x, op.weight.data, op.weight.scales, op.ids, op.weights, op.out];
      case 'sample': return [op.logits, op.out];
    }
  })();
  return all.filter((id) => id !== undefined);
}
