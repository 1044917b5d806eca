/** The webgpu backend: turns operations into dispatches on one GPUDevice. */
import { isIndex, type AppendOp, type Backend, type CopyBlocksOp, type DecodeOp, type HostData, type IndexData, type TensorId, type TensorSpec, type TuneOp } from '../backend.ts';
import { encode16 } from '../bf16.ts';
import { MlaError } from '../errors.ts';
import type { MemoryStats, MlaInfo, TuneReport } from '../mla.ts';
import { APPEND_THREADS, SLOTS_HEADER, appendKernel } from './append.ts';
import { BindGroups } from './bind-groups.ts';
import { chooseDecodeConfig, scheduleInfo, type DecodeConfig, type DeviceTraits } from './config.ts';
import { openDevice, type DeviceOptions, type GpuContext } from './device.ts';
import { decodeGrid, decodeKernels, encodeDecode } from './dispatch.ts';
import { KernelCache, type Kernel } from './kernel.ts';
import { DeviceMemory, type Allocation } from './memory.ts';
import { makePlan, partialBytes, type Plan } from '../plan.ts';
import { roomToGrow } from '../pool.ts';
import { partsTarget } from '../schedule.ts';
import { classOf } from '../shape-class.ts';
import { siteKey, type TuneStore } from '../tune-store.ts';
import { VERSION } from '../version.ts';
import { readStorage } from './readback.ts';
import { adopted, allocate, type Storage } from './storage.ts';
import { chooseTier, type TierChoice } from './tier.ts';
import { Timer } from './timer.ts';
import type { TuneMode } from './tune-mode.ts';
import { Tuner } from './tuner.ts';

/** Plans kept on the device: one a step is used by every layer, a few steps may be in flight. */
const PLANS_KEPT = 8;
const FLUSH_BYTES = 256 << 20;

interface PlanOnDevice extends Plan {
  readonly allocation: Allocation;
}

/** What the environment brings to tuning. */
export interface TuneEnvironment {
  readonly store: TuneStore;
  /** What else about WebGPU here changes times, such as toggles of Dawn. */
  readonly variant?: string;
}

/** @throws MlaError backend-unavailable, invalid-argument, device-lost */
export async function createWebGpuBackend(options: DeviceOptions, reason: string, environment: TuneEnvironment): Promise<Backend> {
  const gpu = await openDevice(options);
  try {
    const tier = await chooseTier(gpu, options.tier);
    const backend = new WebGpuBackend(gpu, tier, reason, { ...environment, mode: options.tune ?? (gpu.software ? 'stored' : 'auto') });
    await backend.tuner.load();
    return backend;
  } catch (error) {
    gpu.destroy();
    throw error;
  }
}

class WebGpuBackend implements Backend {
  info: MlaInfo;
  readonly tuner: Tuner;
  readonly #gpu: GpuContext;
  readonly #traits: DeviceTraits;
  readonly #memory: DeviceMemory;
  readonly #kernels: KernelCache;
  readonly #bindGroups: BindGroups;
  readonly #timer: Timer;
  readonly #tensors = new Map<TensorId, Storage>();
  readonly #plans = new Map<string, PlanOnDevice>();
  /** By the numbers of a call that they depend on. */
  readonly #configs = new Map<string, DecodeConfig>();
  #partials: Allocation | undefined;

  constructor(gpu: GpuContext, { notes, ...tier }: TierChoice, reason: string, { store, variant = '', mode }: TuneEnvironment & { mode: TuneMode }) {
    const { limits, vendor, architecture, software } = gpu;
    this.#gpu = gpu;
    this.#traits = { limits, vendor, architecture, kind: software ? 'software' : 'gpu', ...tier };
    this.#bindGroups = new BindGroups(gpu.device);
    this.#memory = new DeviceMemory(gpu, (buffer) => this.#bindGroups.forget(buffer));
    this.#kernels = new KernelCache(gpu);
    this.#timer = new Timer(gpu, this.#memory);
    const schedule = scheduleInfo(this.#traits);
    this.info = {
      backend: 'webgpu', reason, device: gpu.name, tier: tier.tier, tierNotes: notes, features: gpu.features, limits: { ...limits }, software,
      schedule,
    };
    this.tuner = new Tuner({
      device: { gpu, memory: this.#memory, kernels: this.#kernels, bindGroups: this.#bindGroups, traits: this.#traits, minTokensPerPart: schedule.minTokensPerPart },
      schedule, mode, store, prefix: siteKey({
        version: VERSION, vendor, architecture, device: gpu.name, tier: tier.tier,
        variant: `${limits.maxComputeWorkgroupStorageSize} B, ${limits.maxComputeInvocationsPerWorkgroup} threads ${variant}`.trim(),
      }),
      onChange: () => {
        this.#configs.clear();
        const { note } = this.tuner;
        this.info = { ...this.info, schedule: { ...schedule, tuned: this.tuner.schedules() }, ...(note !== undefined && { tuning: note }) };
      },
    });
  }

  create(spec: TensorSpec, data?: HostData): Promise<void> {
    this.#gpu.check();
    const storage = allocate(spec, this.#memory, this.#gpu.limits, isIndex(spec) && data ? (data as Int32Array).slice() : undefined);
    this.#tensors.set(spec.id, storage);
    if (data) this.#upload(storage, data);
    return Promise.all(storage.allocations.map((a) => a.fault)).then((faults) => {
      const fault = faults.find((f) => f !== undefined);
      if (fault) throw fault;
    });
  }

  adopt(spec: TensorSpec, buffer: GPUBuffer): void {
    this.#gpu.check();
    this.#tensors.set(spec.id, adopted(spec, buffer));
  }

  async read(id: TensorId): Promise<ArrayBuffer> {
    this.#gpu.check();
    return readStorage(this.#gpu, this.#memory, this.#tensor(id));
  }

  release(id: TensorId, discard = false): void {
    const storage = this.#tensors.get(id);
    if (!storage) return;
    this.#tensors.delete(id);
    if (storage.allocations.length === 0) storage.buffers.forEach((buffer) => this.#bindGroups.forget(buffer));
    for (const allocation of storage.allocations) {
      if (discard) this.#memory.discard(allocation);
      else this.#memory.release(allocation);
    }
    for (const key of this.#plans.keys()) if (key.startsWith(`${id}/`)) this.#dropPlan(key);
  }

  decode(op: DecodeOp): void {
    this.#gpu.check();
    const { device, limits } = this.#gpu;
    const kv = this.#tensor(op.kvCache);
    const rows = (op.sQ * op.hQ) / op.hKv;
    const config = this.#config(op, rows);
    const grid = decodeGrid(op, config, op.metadata.parts);
    const most = limits.maxComputeWorkgroupsPerDimension;
    if (Math.max(...grid, op.sQ * op.hQ, op.b) > most) {
      throw new MlaError('limit-exceeded', 'problem too large for one dispatch', { argument: 'q', expected: `at most ${most} rows (s_q * h_q) and sequences`, got: `${op.sQ * op.hQ} rows, ${op.b} sequences` });
    }
    const kernels = decodeKernels(this.#kernels, op, config, this.#traits, kv);
    const [q, out, lse] = [op.q, op.out, op.lse].map((id) => this.#tensor(id).buffers[0]!) as [GPUBuffer, GPUBuffer, GPUBuffer];
    const plan = this.#plan(op);
    const partials = this.#partialsOf(op, rows);

    const encoder = device.createCommandEncoder({ label: 'decode' });
    const pass = encoder.beginComputePass({ label: 'decode', ...this.#timer.pass() });
    encodeDecode(pass, this.#bindGroups, kernels, op, config, this.#traits, plan, { q, plan: plan.allocation.buffer, partials, out, lse, kv: kv.buffers });
    pass.end();
    device.queue.submit([encoder.finish()]);
    if (typeof op.blockTable !== 'number') this.#memory.release(plan.allocation);
    this.tuner.called(classOf(op), kv);
  }

  tune(op: TuneOp): Promise<TuneReport> {
    this.#gpu.check();
    return this.tuner.tune(op);
  }

  append(op: AppendOp): void {
    this.#gpu.check();
    const { device, limits } = this.#gpu;
    const kv = this.#tensor(op.kvCache);
    const kernel: Kernel = appendKernel(this.#kernels, op, kv);
    const rows = op.tokens * op.hKv;
    const words = new Int32Array(SLOTS_HEADER + op.slots.length);
    words[0] = rows;
    words.set(op.slots, SLOTS_HEADER);
    const slots = this.#memory.storage(roomToGrow(words.byteLength), 'slots');
    device.queue.writeBuffer(slots.buffer, 0, words);
    const sources = [op.latent, ...(op.rope === undefined ? [] : [op.rope])].map((id) => this.#tensor(id).buffers[0]!);

    const encoder = device.createCommandEncoder({ label: 'append' });
    const pass = encoder.beginComputePass({ label: 'append' });
    pass.setPipeline(kernel.pipeline);
    pass.setBindGroup(0, this.#bindGroups.get(kernel, [slots.buffer, ...sources, ...kv.buffers], 'append'));
    pass.dispatchWorkgroups(Math.ceil(op.dQk / 2 / APPEND_THREADS), Math.min(rows, limits.maxComputeWorkgroupsPerDimension));
    pass.end();
    device.queue.submit([encoder.finish()]);
    this.#memory.release(slots);
  }

  copyBlocks({ kvCache, pairs }: CopyBlocksOp): void {
    this.#gpu.check();
    const { device } = this.#gpu;
    const { buffers, blocksPerSegment, rowBytes } = this.#tensor(kvCache);
    const place = (block: number): [GPUBuffer, number] => [buffers[Math.floor(block / blocksPerSegment)]!, (block % blocksPerSegment) * rowBytes];
    // Through a bounce buffer: a copy within one buffer is not allowed everywhere.
    const bounce = this.#memory.storage(rowBytes, 'block copy');
    const encoder = device.createCommandEncoder({ label: 'copy blocks' });
    for (let i = 0; i < pairs.length; i += 2) {
      encoder.copyBufferToBuffer(...place(pairs[i]!), bounce.buffer, 0, rowBytes);
      encoder.copyBufferToBuffer(bounce.buffer, 0, ...place(pairs[i + 1]!), rowBytes);
    }
    device.queue.submit([encoder.finish()]);
    this.#memory.release(bounce);
  }

  async finished(): Promise<void> {
    this.#gpu.check();
    await this.#gpu.settle(this.#gpu.device.queue.onSubmittedWorkDone());
  }

  async timeBegin(): Promise<void> {
    this.#gpu.check();
    await this.#timer.begin();
    this.tuner.timing = true;
  }

  timeEnd(): Promise<{ ms: number; source: 'device' | 'wall' }> {
    return this.#timer.end().finally(() => (this.tuner.timing = false));
  }

  flushCache(): void {
    this.#gpu.check();
    const { maxBufferSize, maxStorageBufferBindingSize } = this.#gpu.limits;
    const bytes = Math.min(FLUSH_BYTES, maxBufferSize, maxStorageBufferBindingSize);
    const { device } = this.#gpu;
    const scratch = this.#memory.storage(bytes, 'cache flush');
    const encoder = device.createCommandEncoder({ label: 'cache flush' });
    encoder.clearBuffer(scratch.buffer, 0, bytes);
    device.queue.submit([encoder.finish()]);
    this.#memory.release(scratch);
  }

  memory(): MemoryStats {
    return { ...this.#memory.stats(), pipelines: this.#kernels.count };
  }

  destroy(): void {
    this.tuner.cancel();
    this.#timer.destroy();
    this.#memory.destroy();
    this.#tensors.clear();
    this.#plans.clear();
    this.#gpu.destroy();
  }

  #tensor(id: TensorId): Storage {
    const storage = this.#tensors.get(id);
    if (!storage) throw new MlaError('destroyed', 'no such tensor on this device');
    return storage;
  }

  /** @throws MlaError limit-exceeded */
  #config(op: DecodeOp, rows: number): DecodeConfig {
    const key = `${op.dtype}/${op.dQk}/${op.dV}/${rows}/${op.hKv}`;
    const known = this.#configs.get(key);
    if (known) return known;
    const tuned = this.tuner.config(classOf(op))?.key;
    const { config, rejected } = chooseDecodeConfig(op, rows, this.#traits, tuned);
    if (!config) {
      throw new MlaError('limit-exceeded', 'no kernel configuration fits this device', { argument: 'q', expected: 'limits that one configuration fits', got: rejected.join('; ') });
    }
    this.#configs.set(key, config);
    return config;
  }

  #upload(storage: Storage, data: HostData): void {
    const { dtype } = storage.spec;
    const bits = data instanceof Float32Array && (dtype === 'bf16' || dtype === 'f16') ? encode16(dtype, data) : data;
    const bytes = new Uint8Array(bits.buffer as ArrayBuffer, bits.byteOffset, bits.byteLength);
    const segmentBytes = storage.blocksPerSegment * storage.rowBytes;
    storage.buffers.forEach((buffer, i) => {
      const part = bytes.subarray(i * segmentBytes, Math.min(bytes.length, (i + 1) * segmentBytes));
      const whole = part.length - (part.length % 4);
      this.#gpu.device.queue.writeBuffer(buffer, 0, part, 0, whole);
      if (whole < part.length) {
        const tail = new Uint8Array(4);
        tail.set(part.subarray(whole));
        this.#gpu.device.queue.writeBuffer(buffer, whole, tail);
      }
    });
  }

  #plan(op: DecodeOp): PlanOnDevice {
    // Only a block table that is a tensor is known to hold the same numbers the next time.
    const key = typeof op.blockTable === 'number' ? `${op.blockTable}/${op.metadataId}/${op.sQ}/${op.dV}/${op.softmaxScale}/${op.causal}` : undefined;
    const known = key === undefined ? undefined : this.#plans.get(key);
    if (known) return known;
    const plan = makePlan(op, this.#indices(op.blockTable));
    const allocation = this.#memory.storage(roomToGrow(plan.words.byteLength), 'plan');
    this.#gpu.device.queue.writeBuffer(allocation.buffer, 0, plan.words);
    const made = { ...plan, allocation };
    if (key !== undefined) {
      if (this.#plans.size >= PLANS_KEPT) this.#dropPlan(this.#plans.keys().next().value!);
      this.#plans.set(key, made);
    }
    return made;
  }

  #dropPlan(key: string): void {
    this.#memory.release(this.#plans.get(key)!.allocation);
    this.#plans.delete(key);
  }

  #indices(data: IndexData): Int32Array {
    return typeof data === 'number' ? this.#tensor(data).host! : data;
  }

  /**
   * Scratch for partial results, as large as the most parts that this shape can be cut into, so that it does not grow
   * as sequences do.
   */
  #partialsOf(op: DecodeOp, rows: number): GPUBuffer {
    const parts = Math.max(op.metadata.parts, partsTarget(this.info.schedule, rows, op.hKv));
    const bytes = partialBytes(parts, op);
    if (!this.#partials || this.#partials.buffer.size < bytes) {
      const larger = this.#memory.storage(bytes, 'partials');
      // Nothing else will ask for its size again.
      if (this.#partials) this.#memory.discard(this.#partials);
      this.#partials = larger;
    }
    return this.#partials.buffer;
  }
}
