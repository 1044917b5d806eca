/** The webgpu backend: turns operations into dispatches on one GPUDevice. */
import { isIndex, storedBits, type AppendOp, type Backend, type CopyBlocksOp, type DecodeOp, type HostData, type TensorId, type TensorSpec, type TuneOp } from '../backend.ts';
import { MlaError } from '../errors.ts';
import type { MemoryStats, MlaInfo, TuneReport } from '../mla.ts';
import type { StepOp } from '../ops.ts';
import { classOf } from '../shape-class.ts';
import { siteKey, type TuneStore } from '../tune-store.ts';
import { VERSION } from '../version.ts';
import { encodeAppend } from './append.ts';
import { BindGroups } from './bind-groups.ts';
import { bindingBytes, scheduleInfo, type DeviceTraits } from './config.ts';
import { DecodeCalls } from './decode-calls.ts';
import { openDevice, type DeviceOptions, type GpuContext, type Rest } from './device.ts';
import { KernelCache } from './kernel.ts';
import { DeviceMemory, whenGranted, type Allocation } from './memory.ts';
import { readStorage } from './readback.ts';
import { StepEncoder } from './step.ts';
import { adopted, allocate, type Storage } from './storage.ts';
import { Submission, type Machine } from './submission.ts';
import { TIERS, chooseTier, type Tier, type TierChoice } from './tier.ts';
import { Timer } from './timer.ts';
import type { TuneMode } from './tune-mode.ts';
import { Tuner } from './tuner.ts';

const FLUSH_BYTES = 256 << 20;

/** What Node or a browser brings. */
export interface Environment {
  /** Where tuning is remembered. */
  readonly store: TuneStore;
  /** What else about WebGPU here changes times, such as toggles of Dawn. */
  readonly variant?: string;
  /** Whether it is known to leave bounds checks out of shaders. */
  readonly unchecked?: boolean;
  /** What to do while a software adapter is waited for, if anything. */
  readonly rest?: Rest;
  /** Processors of this machine, where they are known. */
  readonly processors?: number | undefined;
}

/** @throws MlaError backend-unavailable, invalid-argument, device-lost */
export async function createWebGpuBackend(options: DeviceOptions, reason: string, environment: Environment): Promise<Backend> {
  const lost = new Map<Tier, MlaError>();
  for (;;) {
    const gpu = await openDevice(options, environment.rest).catch((error: unknown) => {
      throw [...lost.values()].at(-1) ?? error;
    });
    let probed: Tier | undefined;
    try {
      const choice = await chooseTier(gpu, options.tier, TIERS.filter((tier) => !lost.has(tier)), (tier) => (probed = tier));
      probed = undefined;
      const notes = [...[...lost].map(([tier, { message }]) => `${tier}: ${message}`), ...choice.notes];
      const backend = new WebGpuBackend(gpu, { ...choice, notes }, reason, { ...environment, mode: options.tune ?? (gpu.software ? 'stored' : 'auto') });
      await backend.tuner.load();
      return backend;
    } catch (error) {
      gpu.destroy();
      // A tier's self-test may cost the device itself. An adapter or GPU of ours has another one for the other tiers; a caller's adapter has one only.
      const again = gpu.owned && options.adapter === undefined && options.tier === undefined;
      if (!again || probed === undefined || !(error instanceof MlaError) || error.code !== 'device-lost') throw error;
      lost.set(probed, error);
    }
  }
}

class WebGpuBackend implements Backend {
  info: MlaInfo;
  readonly tuner: Tuner;
  readonly #gpu: GpuContext;
  readonly #memory: DeviceMemory;
  readonly #timer: Timer;
  readonly #tensors = new Map<TensorId, Storage>();
  readonly #machine: Machine;
  readonly #decodes: DecodeCalls;
  readonly #step: StepEncoder;
  readonly #lookup = (id: TensorId): Storage => this.#tensor(id);

  constructor(gpu: GpuContext, { notes, ...tier }: TierChoice, reason: string, { store, variant = '', unchecked = false, processors, mode }: Environment & { mode: TuneMode }) {
    const { limits, vendor, architecture, software } = gpu;
    this.#gpu = gpu;
    const traits: DeviceTraits = { limits, vendor, architecture, kind: software ? 'software' : 'gpu', unchecked, processors, ...tier };
    const bindGroups = new BindGroups(gpu.device);
    this.#memory = new DeviceMemory(gpu, (buffer) => bindGroups.forget(buffer));
    this.#machine = { gpu, memory: this.#memory, kernels: new KernelCache(gpu), bindGroups, traits };
    this.#timer = new Timer(gpu, this.#memory);
    const schedule = scheduleInfo(traits);
    this.info = {
      backend: 'webgpu', reason, device: gpu.name, tier: tier.tier, tierNotes: notes, features: gpu.features, limits: { ...limits }, software,
      schedule,
    };
    this.tuner = new Tuner({
      device: { ...this.#machine, schedule },
      mode, store, prefix: siteKey({
        version: VERSION, vendor, architecture, device: gpu.name, tier: tier.tier,
        variant: `${limits.maxComputeWorkgroupStorageSize} B, ${limits.maxComputeInvocationsPerWorkgroup} threads ${variant}`.trim(),
      }),
      site: [vendor, architecture, gpu.name].join(' | '),
      onWrong: (key, why) => this.#decodes.fault(key, why),
      onChange: () => {
        this.#decodes.retuned();
        const { note } = this.tuner;
        this.info = { ...this.info, schedule: { ...schedule, tuned: this.tuner.schedules() }, ...(note !== undefined && { tuning: note }) };
      },
    });
    this.#decodes = new DecodeCalls(this.#machine, this.tuner, this.#lookup, (note) => {
      const { kernelNotes = [] } = this.info;
      if (!kernelNotes.includes(note)) this.info = { ...this.info, kernelNotes: [...kernelNotes, note] };
    });
    this.#step = new StepEncoder(this.#machine, this.#lookup);
  }

  create(spec: TensorSpec, data?: HostData): void | Promise<void> {
    this.#gpu.check();
    const storage = allocate(spec, this.#memory, this.#gpu.limits, isIndex(spec) && data ? (data as Int32Array).slice() : undefined);
    this.#tensors.set(spec.id, storage);
    return this.#using(storage.allocations, 'filling a tensor', () => data && this.#upload(storage, data));
  }

  adopt(spec: TensorSpec, buffer: GPUBuffer): void {
    this.#gpu.check();
    this.#tensors.set(spec.id, adopted(spec, buffer, this.#gpu.limits));
  }

  async read(id: TensorId): Promise<ArrayBuffer> {
    this.#gpu.check();
    return readStorage(this.#gpu, this.#memory, this.#tensor(id));
  }

  release(id: TensorId, discard = false): void {
    const storage = this.#tensors.get(id);
    if (!storage) return;
    this.#tensors.delete(id);
    if (storage.allocations.length === 0) storage.buffers.forEach((buffer) => this.#machine.bindGroups.forget(buffer));
    for (const allocation of storage.allocations) {
      if (discard) this.#memory.discard(allocation);
      else this.#memory.release(allocation);
    }
    this.#decodes.forget(id);
  }

  decode(op: DecodeOp): void | Promise<void> {
    this.#gpu.check();
    const done = Submission.run(this.#machine, 'decode', this.#timer, (submission) => this.#decodes.encode(op, this.info.schedule, submission));
    this.tuner.called(classOf(op), this.#tensor(op.kvCache));
    return done;
  }

  run(ops: readonly StepOp[]): void | Promise<void> {
    this.#gpu.check();
    const done = Submission.run(this.#machine, 'step', this.#timer, (submission) => this.#step.encode(ops, submission, (op) => this.#decodes.encode(op, this.info.schedule, submission)));
    for (const op of ops) if (op.op === 'decode') this.tuner.called(classOf(op), this.#tensor(op.kvCache));
    return done;
  }

  tune(op: TuneOp): Promise<TuneReport> {
    this.#gpu.check();
    return this.tuner.tune(op);
  }

  append(op: AppendOp): void | Promise<void> {
    this.#gpu.check();
    return Submission.run(this.#machine, 'append', undefined, (submission) => encodeAppend(op, this.#machine, this.#lookup, submission));
  }

  copyBlocks({ kvCache, pairs }: CopyBlocksOp): void | Promise<void> {
    this.#gpu.check();
    const { device } = this.#gpu;
    const { buffers, blocksPerSegment, rowBytes } = this.#tensor(kvCache);
    const place = (block: number): [GPUBuffer, number] => [buffers[Math.floor(block / blocksPerSegment)]!, (block % blocksPerSegment) * rowBytes];
    // Through a bounce buffer: a copy within one buffer is not allowed everywhere.
    const bounce = this.#memory.storage(rowBytes, 'block copy');
    const done = this.#using([bounce], 'copying blocks', () => {
      const encoder = device.createCommandEncoder({ label: 'copy blocks' });
      for (let i = 0; i < pairs.length; i += 2) {
        encoder.copyBufferToBuffer(...place(pairs[i]!), bounce.buffer, 0, rowBytes);
        encoder.copyBufferToBuffer(bounce.buffer, 0, ...place(pairs[i + 1]!), rowBytes);
      }
      device.queue.submit([encoder.finish()]);
    });
    this.#memory.release(bounce);
    return done;
  }

  async finished(): Promise<void> {
    this.#gpu.check();
    await this.#gpu.settle(this.#gpu.device.queue.onSubmittedWorkDone());
  }

  async timeBegin(): Promise<void> {
    this.#gpu.check();
    await this.tuner.timingBegins();
    try {
      await this.#timer.begin();
    } catch (error) {
      this.tuner.timingEnded();
      throw error;
    }
  }

  timeEnd(): Promise<{ ms: number; source: 'device' | 'wall' }> {
    return this.#timer.end().finally(() => this.tuner.timingEnded());
  }

  flushCache(): void | Promise<void> {
    this.#gpu.check();
    const { device, limits } = this.#gpu;
    const bytes = Math.min(FLUSH_BYTES, bindingBytes(limits));
    const scratch = this.#memory.storage(bytes, 'cache flush');
    const done = this.#using([scratch], 'flushing the cache', () => {
      const encoder = device.createCommandEncoder({ label: 'cache flush' });
      encoder.clearBuffer(scratch.buffer, 0, bytes);
      device.queue.submit([encoder.finish()]);
    });
    this.#memory.release(scratch);
    return done;
  }

  /** Does `work` on memory. Where the device has not granted that yet: a promise, which rejects if it does not. */
  #using(allocations: readonly Allocation[], what: string, work: () => void): void | Promise<void> {
    if (allocations.every(({ granted }) => granted)) return work();
    return whenGranted(allocations, this.#gpu.watch(what, work).fault);
  }

  memory(): MemoryStats {
    return { ...this.#memory.stats(), pipelines: this.#machine.kernels.count };
  }

  destroy(): void {
    this.tuner.cancel();
    this.#timer.destroy();
    this.#memory.destroy();
    this.#tensors.clear();
    this.#decodes.clear();
    this.#gpu.destroy();
  }

  #tensor(id: TensorId): Storage {
    const storage = this.#tensors.get(id);
    if (!storage) throw new MlaError('destroyed', 'no such tensor on this device');
    return storage;
  }

  #upload(storage: Storage, data: HostData): void {
    const bits = storedBits(storage.spec, data);
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
}
