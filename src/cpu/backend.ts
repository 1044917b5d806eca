/** The cpu backend: always there. Operations run in call order on this thread, which they give back every few milliseconds. */
import type { AppendOp, Backend, CopyBlocksOp, DecodeOp, HostData, TensorId, TensorSpec } from '../backend.ts';
import { elementCount } from '../backend.ts';
import { encode16 } from '../bf16.ts';
import { MlaError, describe } from '../errors.ts';
import type { MemoryStats, MlaInfo } from '../mla.ts';
import type { StepOp } from '../ops.ts';
import { Pause } from './pause.ts';
import { kept, run } from './run.ts';
import { Tensors, type Memory } from './tensors.ts';

export function createCpuBackend(reason: string): Backend {
  return new CpuBackend(reason);
}

class CpuBackend implements Backend {
  readonly info: MlaInfo;
  readonly #tensors = new Map<TensorId, Memory>();
  /** Everything enqueued so far. Never rejects: a failure is kept for whoever waits. */
  #queue: Promise<void> = Promise.resolve();
  #failure: unknown;
  #bytes = 0;
  #allocated = 0;
  #destroyed = false;
  readonly #pause = new Pause();
  #measured: number | undefined;

  constructor(reason: string) {
    this.info = {
      backend: 'cpu', reason, device: 'JavaScript on this thread', features: [], limits: {}, software: true,
      schedule: { slots: 1, rowTiles: [128], minTokensPerPart: 64 },
    };
  }

  create(spec: TensorSpec, data?: HostData): void {
    const count = elementCount(spec.shape);
    let memory: Memory;
    try {
      memory = spec.dtype === 'f32' ? new Float32Array(count) : spec.dtype === 'i32' ? new Int32Array(count) : new Uint16Array(count);
    } catch (cause) {
      throw new MlaError('out-of-memory', 'this process has no room for the tensor', {
        argument: spec.argument, expected: 'fewer elements', got: `${count} elements`, cause,
      });
    }
    if (data instanceof Float32Array && memory instanceof Uint16Array) encode16(spec.dtype as 'bf16' | 'f16', data, memory);
    else if (data) memory.set(data);
    this.#tensors.set(spec.id, memory);
    this.#bytes += memory.byteLength;
    this.#allocated++;
  }

  async read(id: TensorId): Promise<ArrayBuffer> {
    const memory = this.#tensor(id);
    await this.finished();
    return memory.buffer.slice(0);
  }

  release(id: TensorId): void {
    const memory = this.#tensors.get(id);
    if (!memory) return;
    this.#tensors.delete(id); // Enqueued work holds the array itself.
    this.#bytes -= memory.byteLength;
  }

  decode(op: DecodeOp): void {
    this.run([{ op: 'decode', ...op }]);
  }

  append(op: AppendOp): void {
    this.#run([{ op: 'append', ...op }], false);
  }

  run(ops: readonly StepOp[]): void {
    this.#run(ops, true);
  }

  copyBlocks({ kvCache, pairs, blockElements }: CopyBlocksOp): void {
    const cache = this.#tensor(kvCache);
    const from = pairs.slice();
    this.#enqueue(() => {
      for (let i = 0; i < from.length; i += 2) cache.copyWithin(from[i + 1]! * blockElements, from[i]! * blockElements, (from[i]! + 1) * blockElements);
    });
  }

  async finished(): Promise<void> {
    await this.#queue;
    if (this.#failure !== undefined) {
      const failure = this.#failure;
      this.#failure = undefined;
      throw failure instanceof MlaError ? failure : new MlaError('internal', `the cpu backend failed: ${describe((failure as Error)?.message ?? failure)}`, { cause: failure });
    }
  }

  async timeBegin(): Promise<void> {
    await this.finished();
    this.#measured = 0;
  }

  async timeEnd(): Promise<{ ms: number; source: 'device' | 'wall' }> {
    await this.finished();
    const ms = this.#measured ?? 0;
    this.#measured = undefined;
    return { ms, source: 'wall' };
  }

  flushCache(): void {
    this.#enqueue(() => {
      new Uint8Array(64 << 20).fill(1);
    });
  }

  memory(): MemoryStats {
    return { bytes: this.#bytes, allocations: this.#tensors.size, allocated: this.#allocated, pipelines: 0 };
  }

  destroy(): void {
    this.#destroyed = true;
    this.#tensors.clear();
    this.#bytes = 0;
  }

  #run(ops: readonly StepOp[], measured: boolean): void {
    const own = ops.map(kept);
    // Tensors as they are now: one that is released before its turn comes is still there.
    const known = new Map(this.#tensors);
    const tensors = new Tensors((id) => found(known, id));
    this.#enqueue(async () => {
      const start = performance.now();
      for (const op of own) for (const _ of run(op, tensors)) await this.#pause.turn();
      if (measured && this.#measured !== undefined) this.#measured += performance.now() - start;
    });
  }

  #tensor(id: TensorId): Memory {
    return found(this.#tensors, id);
  }

  #enqueue(work: () => void | Promise<void>): void {
    this.#queue = this.#queue.then(async () => {
      if (this.#destroyed) return;
      try {
        await work();
      } catch (error) {
        this.#failure ??= error;
      }
    });
  }
}

function found(tensors: ReadonlyMap<TensorId, Memory>, id: TensorId): Memory {
  const memory = tensors.get(id);
  if (!memory) throw new MlaError('destroyed', 'no such tensor on this device');
  return memory;
}
