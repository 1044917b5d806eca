/**
 * The host side of every backend: checks arguments, names tensors, makes metadata, and hands plain operations to
 * a Backend in call order. This is the one implementation of the Mla interface.
 */
import { isIndex, type Backend, type DecodeOp, type DecodeShape, type HostData } from './backend.ts';
import { MlaError, describe } from './errors.ts';
import { PagedCache } from './kv-cache.ts';
import type {
  DType, DecodeArgs, DecodeResult, GpuBufferTensor, HostTensor, KvCacheOptions, MemoryStats, MetadataArgs, Mla, MlaInfo,
  MlaMetadata, MlaTensor, PagedKvCache, TensorInput, TuneArgs, TuneReport,
} from './mla.ts';
import { runnerOf, type BuildStep } from './run-ops.ts';
import { getMlaMetadata } from './schedule.ts';
import { checkTune, shapeClass } from './shape-class.ts';
import { DeviceTensor } from './tensor.ts';
import { checkDecode, inspect } from './validate.ts';

export class MlaHost implements Mla {
  readonly #backend: Backend;
  #nextTensor = 1;
  #nextMetadata = 1;
  readonly #metadataIds = new WeakMap<MlaMetadata, number>();
  readonly #caches = new Set<PagedCache>();
  #destroyed: Promise<void> | undefined;

  constructor(backend: Backend) {
    this.#backend = backend;
  }

  get info(): MlaInfo {
    return this.#backend.info;
  }

  async tensor(input: HostTensor | GpuBufferTensor): Promise<MlaTensor> {
    this.#checkAlive();
    const { tensor } = this.#make(input, 'tensor');
    await settled(tensor);
    return tensor;
  }

  getMlaMetadata(args: MetadataArgs): MlaMetadata {
    if (typeof args !== 'object' || args === null) {
      throw new MlaError('invalid-argument', 'no arguments', { argument: 'args', expected: 'an object', got: describe(args) });
    }
    return getMlaMetadata(args, this.info.schedule);
  }

  async flashMlaWithKvCache(args: DecodeArgs): Promise<DecodeResult> {
    this.#checkAlive();
    const { problem, metadata: given, cacheSeqlens, blockTable, maxBlocksPerSeq, softmaxScale, causal } = checkDecode(args);
    for (const name of ['q', 'kvCache', 'blockTable', 'cacheSeqlens', 'out', 'lse'] as const) this.#checkOwner(args[name], name);
    const { b, sQ, hQ, hKv, dV, dtype, blockSize } = problem;
    const metadata = given ?? this.getMlaMetadata({ cacheSeqlens, numQTokensPerHeadK: (sQ * hQ) / hKv, numHeadsK: hKv, blockSize });

    const borrowed: DeviceTensor[] = [];
    const made: DeviceTensor[] = [];
    const use = (input: TensorInput, name: string): DeviceTensor => {
      const { tensor, temporary } = this.#make(input, name);
      if (temporary) borrowed.push(tensor);
      return tensor;
    };
    const output = (given: MlaTensor | undefined, kind: DType, shape: readonly number[], name: string): DeviceTensor => {
      if (given) return given as DeviceTensor;
      const tensor = this.#create(kind, shape, name);
      made.push(tensor);
      return tensor;
    };
    try {
      const q = use(args.q, 'q');
      const kvCache = use(args.kvCache, 'kvCache');
      const out = output(args.out, dtype, [b, sQ, hQ, dV], 'out');
      const lse = output(args.lse, 'f32', [b, hQ, sQ], 'lse');
      // Field by field: V8 makes a slow object of a spread that is added to, and that is felt in a call of microseconds.
      const op: DecodeOp = {
        b, sQ, hQ, hKv, dV, dtype, blockSize, dQk: problem.dQk, q: q.id, kvCache: kvCache.id, out: out.id, lse: lse.id,
        blockTable: args.blockTable instanceof DeviceTensor ? args.blockTable.id : blockTable,
        maxBlocksPerSeq, metadata, metadataId: this.#metadataId(metadata), softmaxScale, causal,
      };
      const enqueued = this.#backend.decode(op);
      // A device may refuse memory later than at the call.
      if (borrowed.length + made.length === 0) await enqueued;
      else await Promise.all([...[...borrowed, ...made].map(({ ready }) => ready), enqueued]);
      return { out, lse };
    } catch (error) {
      for (const tensor of made) tensor.destroy();
      throw error;
    } finally {
      // Enqueued work still completes on what is given back here.
      for (const tensor of borrowed) tensor.destroy();
    }
  }

  /**
   * Enqueues operations on this instance's tensors, in one submission. Shapes are the caller's business. @see runOps
   * @throws MlaError backend-unavailable (a backend that runs no models), destroyed, invalid-argument
   */
  async run(build: BuildStep): Promise<void> {
    this.#checkAlive();
    const run = runnerOf(this.#backend);
    await run(build({
      id: (tensor, argument) => {
        if (!(tensor instanceof DeviceTensor)) throw new MlaError('invalid-argument', 'not a tensor of a device', { argument, expected: 'what mla.tensor gives', got: describe(tensor) });
        this.#checkOwner(tensor, argument);
        tensor.checkAlive(argument);
        return tensor.id;
      },
      metadataId: (metadata) => this.#metadataId(metadata),
    }));
  }

  /** @see checkRuns @throws MlaError backend-unavailable, limit-exceeded, destroyed */
  async checkRuns(shape: DecodeShape): Promise<void> {
    this.#checkAlive();
    runnerOf(this.#backend);
    await this.#backend.checkDecode?.(shape);
  }

  async createKvCache(options: KvCacheOptions): Promise<PagedKvCache> {
    this.#checkAlive();
    const cache = new PagedCache(options, {
      create: (dtype, shape) => this.#create(dtype, shape, 'numBlocks'),
      borrow: (input, name) => {
        this.#checkAlive();
        this.#checkOwner(input, name);
        return this.#make(input, name);
      },
      append: (op) => this.#backend.append(op),
      copyBlocks: (op) => this.#backend.copyBlocks(op),
      onDestroy: (self) => this.#caches.delete(self),
    });
    this.#caches.add(cache);
    try {
      await cache.ready();
    } catch (error) {
      cache.destroy();
      throw error;
    }
    return cache;
  }

  async finished(): Promise<void> {
    this.#checkAlive();
    await this.#backend.finished();
  }

  async time(run: () => Promise<unknown>): Promise<{ ms: number; source: 'device' | 'wall' }> {
    this.#checkAlive();
    await this.#backend.timeBegin();
    try {
      await run();
    } catch (error) {
      await this.#backend.timeEnd().catch(() => undefined);
      throw error;
    }
    return this.#backend.timeEnd();
  }

  async tune(args: TuneArgs): Promise<TuneReport[]> {
    this.#checkAlive();
    const reports: TuneReport[] = [];
    for (const op of checkTune(args)) {
      const nothing: TuneReport = { shapeClass: shapeClass(op), load: op.load, source: 'none', trials: [], note: `backend ${this.info.backend} has nothing to tune` };
      reports.push((await this.#backend.tune?.(op)) ?? nothing);
    }
    return reports;
  }

  async flushCache(): Promise<void> {
    this.#checkAlive();
    await this.#backend.flushCache();
  }

  async memory(): Promise<MemoryStats> {
    this.#checkAlive();
    return this.#backend.memory();
  }

  destroy(): Promise<void> {
    this.#destroyed ??= (async () => {
      for (const cache of this.#caches) cache.destroy();
      await this.#backend.destroy();
    })();
    return this.#destroyed;
  }

  #checkAlive(): void {
    if (this.#destroyed) throw new MlaError('destroyed', 'this instance was destroyed', { argument: 'mla', fix: 'Make another with createMla' });
  }

  #checkOwner(input: unknown, argument: string): void {
    if (input instanceof DeviceTensor && input.owner !== this.#backend) {
      throw new MlaError('invalid-argument', 'tensor of another instance', { argument, expected: 'a tensor of this instance', got: 'a tensor of another' });
    }
  }

  #metadataId(metadata: MlaMetadata): number {
    let id = this.#metadataIds.get(metadata);
    if (id === undefined) this.#metadataIds.set(metadata, (id = this.#nextMetadata++));
    return id;
  }

  #onTensorDestroy = (tensor: DeviceTensor, discard: boolean): void => {
    if (!this.#destroyed) void Promise.resolve(this.#backend.release(tensor.id, discard)).catch(() => undefined);
  };

  #create(dtype: DType, shape: readonly number[], argument: string, data?: HostData, transfer?: boolean): DeviceTensor {
    const spec = { id: this.#nextTensor++, dtype, shape: [...shape], argument };
    // The host's copy first: with `transfer` the array may be gone afterwards.
    const host = isIndex(spec) && data ? (data as Int32Array).slice() : undefined;
    const ready = Promise.resolve(this.#backend.create(spec, data, transfer));
    ready.catch(() => undefined);
    return new DeviceTensor(this.#backend, spec, { ready, host, onDestroy: this.#onTensorDestroy });
  }

  #make(input: TensorInput, argument: string): { tensor: DeviceTensor; temporary: boolean } {
    if (input instanceof DeviceTensor) {
      input.checkAlive(argument);
      return { tensor: input, temporary: false };
    }
    const { dtype, shape } = inspect(input, argument);
    if ('gpuBuffer' in input) {
      if (!this.#backend.adopt) {
        throw new MlaError('invalid-argument', `backend ${this.info.backend} takes no GPUBuffer`, { argument, expected: 'webgpu in the same thread', got: this.info.backend });
      }
      const spec = { id: this.#nextTensor++, dtype, shape: [...shape], argument };
      this.#backend.adopt(spec, input.gpuBuffer);
      return { tensor: new DeviceTensor(this.#backend, spec, { onDestroy: this.#onTensorDestroy }), temporary: true };
    }
    const { data, transfer } = input as HostTensor;
    return { tensor: this.#create(dtype, shape, argument, data, transfer), temporary: true };
  }
}

/** Waits until the device has granted the tensor's memory. @throws what it answered, the tensor destroyed */
async function settled(tensor: DeviceTensor): Promise<void> {
  try {
    await tensor.ready;
  } catch (error) {
    tensor.destroy();
    throw error;
  }
}
