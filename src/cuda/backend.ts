/** The cuda backend: turns operations into launches on one stream of a Hopper GPU. What it has no kernels for: see hand-over.ts. */
import { storedBits, type AppendOp, type Backend, type CopyBlocksOp, type DecodeOp, type DecodeShape, type HostData, type IndexData, type TensorId, type TensorSpec } from '../backend.ts';
import { MlaError } from '../errors.ts';
import type { MemoryStats, MlaInfo } from '../mla.ts';
import { mostParts } from '../schedule.ts';
import { AppendKernel } from './append.ts';
import { CombineKernels } from './combine.ts';
import { D_QK, checkShape, chooseDecodeConfig, partialsLayout, scheduleInfo } from './config.ts';
import { CudaContext } from './context.ts';
import { readKernels, type Kernels } from './cubin.ts';
import { DecodeKernels } from './decode.ts';
import { DelayKernel } from './delay.ts';
import { findDevice, versionText } from './device.ts';
import { HostBlock, loadDriver, type DriverTable } from './driver.ts';
import { GatherQKernel } from './gather-q.ts';
import { HandOver } from './hand-over.ts';
import { DeviceMemory, type Allocation } from './memory.ts';
import { Modules } from './modules.ts';
import { COMBINE_PARAMS_AT, DECODE_PARAMS, writeDecodeParams } from './params.ts';
import { Plans } from './plans.ts';
import { Staging } from './staging.ts';
import { allocate, type Storage } from './storage.ts';
import { TensorMaps } from './tensor-map.ts';
import { Timer } from './timer.ts';

/** What a cache flush writes: at least so much, and at least the L2 cache so many times. */
const FLUSH_BYTES = 256 << 20;
const FLUSH_CACHES = 2;

export interface CudaOptions {
  /** Ordinal of the device; the first of compute capability 9.0 when absent. */
  readonly cudaDevice?: number;
}

/** Where the parts come from: replaced in tests. */
export interface CudaSources {
  loadDriver(): Promise<DriverTable>;
  readKernels(): Promise<Kernels>;
}

/** @throws MlaError backend-unavailable, missing-dependency, invalid-argument */
export async function createCudaBackend(
  { cudaDevice }: CudaOptions,
  reason: string,
  { loadDriver: driverOf, readKernels: kernelsOf }: CudaSources = { loadDriver, readKernels },
): Promise<Backend> {
  const driver = await driverOf();
  const kernels = await kernelsOf();
  const context = new CudaContext(driver, findDevice(driver, kernels.manifest.driver, cudaDevice));
  try {
    return new HandOver(new CudaBackend(context, kernels, reason));
  } catch (error) {
    context.destroy();
    throw error;
  }
}

class CudaBackend implements Backend {
  readonly info: MlaInfo;
  readonly #context: CudaContext;
  readonly #modules: Modules;
  readonly #memory: DeviceMemory;
  readonly #staging: Staging;
  readonly #plans: Plans;
  readonly #maps: TensorMaps;
  readonly #timer: Timer;
  /** DecodeParams, of which CombineParams are a part. */
  readonly #params: HostBlock;
  readonly #decode: DecodeKernels;
  readonly #combine: CombineKernels;
  readonly #append: AppendKernel;
  readonly #gatherQ: GatherQKernel;
  readonly #tensors = new Map<TensorId, Storage>();
  #partials: { readonly allocation: Allocation; readonly bytes: number } | undefined;

  constructor(context: CudaContext, kernels: Kernels, reason: string) {
    this.#context = context;
    const { driver, device } = context;
    this.#modules = new Modules(context, kernels);
    try {
      this.#params = new HostBlock(driver, DECODE_PARAMS.bytes);
      this.#decode = new DecodeKernels(context, this.#modules, this.#params.address);
      this.#combine = new CombineKernels(context, this.#modules, this.#params.address + COMBINE_PARAMS_AT);
      this.#append = new AppendKernel(context, this.#modules);
      this.#gatherQ = new GatherQKernel(context, this.#modules);
      const delay = new DelayKernel(context, this.#modules);
      this.#timer = new Timer(context, (nanoseconds) => delay.run(nanoseconds));
      this.#memory = new DeviceMemory(context);
    } catch (error) {
      this.#modules.destroy();
      throw error;
    }
    this.#staging = new Staging(context);
    this.#plans = new Plans(this.#memory, this.#staging);
    this.#maps = new TensorMaps(context);
    this.info = {
      backend: 'cuda', reason, device: device.name, software: false,
      features: ['compute capability 9.0', `driver for CUDA ${versionText(device.driverVersion)}`, `kernels from nvcc ${kernels.manifest.nvcc}`],
      limits: { multiProcessors: device.multiProcessors, memoryBytes: device.memoryBytes, l2CacheBytes: device.l2Bytes, blockSharedMemoryBytes: device.sharedMemoryBytes },
      schedule: scheduleInfo(device.multiProcessors),
    };
  }

  create(spec: TensorSpec, data?: HostData): void {
    this.#context.enter();
    const storage = allocate(spec, this.#memory, this.#context, data);
    if (data) {
      try {
        this.#staging.upload(storage.allocation.address, storedBits(spec, data));
      } catch (error) {
        this.#memory.discard(storage.allocation);
        throw error;
      }
    }
    this.#tensors.set(spec.id, storage);
  }

  async read(id: TensorId): Promise<ArrayBuffer> {
    this.#context.enter();
    const { allocation, byteLength } = this.#tensor(id);
    return this.#staging.read(allocation.address, byteLength);
  }

  release(id: TensorId, discard = false): void {
    const storage = this.#tensors.get(id);
    if (!storage) return;
    this.#tensors.delete(id);
    this.#context.enterToFree();
    if (discard) this.#memory.discard(storage.allocation);
    else this.#memory.release(storage.allocation);
    if (storage.host) this.#plans.forget(id);
  }

  checkDecode(shape: DecodeShape): void {
    checkShape(shape);
  }

  decode(op: DecodeOp): void {
    this.#context.enter();
    checkShape(op);
    const kv = this.#tensor(op.kvCache);
    const [q, out, lse] = [this.#address(op.q), this.#address(op.out), this.#address(op.lse)];
    const plan = this.#plans.get(op, () => this.#indices(op.blockTable));
    let gathered: Allocation | undefined;
    try {
      const config = chooseDecodeConfig(op, plan, this.#context.device.multiProcessors);
      const { rows } = config;
      const queryRows = op.b * op.sQ * op.hQ;
      if (config.gatherQ) gathered = this.#memory.take(queryRows * D_QK * 2, 'queries');
      const partialOut = this.#partialsOf(op, plan.parts, rows);
      writeDecodeParams(this.#params, {
        kvMaps: this.#maps.cache(kv.allocation.address, op.dtype, op.hKv, kv.spec.shape[0]!, config.boxTokens),
        qMaps: this.#maps.queries(gathered?.address ?? q, op.dtype, queryRows, config.boxRows),
        ...plan.at, tableStride: op.maxBlocksPerSeq,
        rows, group: op.hQ / op.hKv, hKv: op.hKv, sQ: op.sQ, causal: op.causal, softmaxScale: op.softmaxScale,
        out, lse, partialOut, partialInfo: partialOut + partialsLayout(plan.parts, op.sQ, op.hQ).infoAt,
      });
      this.#timer.before();
      if (gathered) this.#gatherQ.run(op, q, gathered.address);
      this.#decode.run(config);
      if (config.combine) this.#combine.run(config.combine);
      this.#timer.after();
    } finally {
      if (gathered) this.#memory.release(gathered);
      this.#plans.done(plan);
    }
  }

  append(op: AppendOp): void {
    this.#context.enter();
    const cache = this.#address(op.kvCache);
    const latent = this.#address(op.latent);
    const rope = op.rope === undefined ? 0 : this.#address(op.rope);
    const slots = this.#memory.take(op.slots.byteLength, 'slots');
    try {
      this.#staging.upload(slots.address, op.slots);
      this.#append.run(op, { cache, latent, rope, slots: slots.address });
    } finally {
      this.#memory.release(slots);
    }
  }

  copyBlocks({ kvCache, pairs, blockElements }: CopyBlocksOp): void {
    this.#context.enter();
    const { driver, stream } = this.#context;
    const cache = this.#address(kvCache);
    const bytes = blockElements * 2;
    for (let i = 0; i < pairs.length; i += 2) {
      this.#context.check(driver.calls.cuMemcpyDtoDAsync_v2(cache + pairs[i + 1]! * bytes, cache + pairs[i]! * bytes, bytes, stream), 'copying blocks');
    }
  }

  async finished(): Promise<void> {
    this.#context.enter();
    await this.#context.wait(this.#context.fence());
  }

  timeBegin(): void {
    this.#context.enter();
    this.#timer.begin();
  }

  timeEnd(): Promise<{ ms: number; source: 'device' | 'wall' }> {
    return this.#timer.end();
  }

  flushCache(): void {
    this.#context.enter();
    const { driver, device, stream } = this.#context;
    const bytes = Math.max(FLUSH_BYTES, FLUSH_CACHES * device.l2Bytes);
    const scratch = this.#memory.take(bytes, 'cache flush');
    try {
      this.#context.check(driver.calls.cuMemsetD32Async(scratch.address, 0, Math.ceil(bytes / 4), stream), 'flushing the cache');
    } finally {
      this.#memory.release(scratch);
    }
  }

  memory(): MemoryStats {
    return { ...this.#memory.stats(), pipelines: this.#modules.count };
  }

  async destroy(): Promise<void> {
    await this.#context.close();
    this.#context.enterToFree();
    this.#tensors.clear();
    this.#staging.destroy();
    this.#memory.destroy();
    this.#modules.destroy();
    this.#context.destroy();
  }

  #tensor(id: TensorId): Storage {
    const storage = this.#tensors.get(id);
    if (!storage) throw new MlaError('destroyed', 'no such tensor on this device');
    return storage;
  }

  #address(id: TensorId): number {
    return this.#tensor(id).allocation.address;
  }

  #indices(data: IndexData): Int32Array {
    return typeof data === 'number' ? this.#tensor(data).host! : data;
  }

  /**
   * Scratch for partial results, as large as the most parts that this shape can be cut into, so that it does not grow
   * as sequences do.
   */
  #partialsOf(op: DecodeOp, parts: number, rows: number): number {
    const { bytes } = partialsLayout(Math.max(parts, mostParts(this.info.schedule, { rows, numHeadsK: op.hKv, blockSize: op.blockSize })), op.sQ, op.hQ);
    if (!this.#partials || this.#partials.bytes < bytes) {
      const allocation = this.#memory.take(bytes, 'partials');
      // Nothing else will ask for its size again.
      if (this.#partials) this.#memory.discard(this.#partials.allocation);
      this.#partials = { allocation, bytes };
    }
    return this.#partials.allocation.address;
  }
}
