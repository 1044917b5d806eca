/** Decode calls of one device: their configurations, their plans on the device, and their scratch memory. */
import type { DecodeOp, TensorId } from '../backend.ts';
import { MlaError, firstLine } from '../errors.ts';
import type { LoadClass, ScheduleInfo } from '../mla.ts';
import { makePlan, partialBytes, type Plan } from '../plan.ts';
import { roomToGrow } from '../pool.ts';
import { LOADS, mostParts } from '../schedule.ts';
import { classOf } from '../shape-class.ts';
import { takesAnyOrder } from './candidates.ts';
import { bindingBytes, chooseDecodeConfig, type DecodeConfig } from './config.ts';
import { decodeGrid, decodeKernels, encodeDecode, partsKernel, type DecodeKernels } from './dispatch.ts';
import type { Kernel } from './kernel.ts';
import type { Allocation } from './memory.ts';
import { wholeBuffer, type Storage } from './storage.ts';
import type { Machine, Submission } from './submission.ts';
import type { Tuner } from './tuner.ts';

/** Plans kept on the device: one a step is used by every layer, a few steps may be in flight. */
const PLANS_KEPT = 8;

interface PlanOnDevice extends Plan {
  readonly allocation: Allocation;
}

interface Chosen {
  readonly config: DecodeConfig;
  /** Those of the same calls with a load next to theirs, where they are others; absent once something has been done about them. */
  coming: readonly DecodeConfig[] | undefined;
}

export class DecodeCalls {
  readonly #machine: Machine;
  readonly #tuner: Tuner;
  readonly #tensor: (id: TensorId) => Storage;
  readonly #note: (note: string) => void;
  /** What the device has said against configurations, by their keys. */
  readonly #faults = new Map<string, string>();
  readonly #plans = new Map<string, PlanOnDevice>();
  /** The last plan whose block table is no tensor: the layers of one submission share it. */
  #bare: { readonly submission: Submission; readonly table: Int32Array; readonly key: string; readonly plan: PlanOnDevice } | undefined;
  /** By the numbers of a call that they depend on. */
  readonly #chosen = new Map<string, Chosen>();
  #partials: Allocation | undefined;

  /** @param note hears of calls that are not served as the tier says, and why; maybe of one several times */
  constructor(machine: Machine, tuner: Tuner, tensor: (id: TensorId) => Storage, note: (note: string) => void) {
    this.#machine = machine;
    this.#tuner = tuner;
    this.#tensor = tensor;
    this.#note = note;
  }

  /** @throws MlaError limit-exceeded, destroyed, internal */
  encode(op: DecodeOp, schedule: ScheduleInfo, submission: Submission): void {
    const { bindGroups, kernels: cache, traits } = this.#machine;
    const most = traits.limits.maxComputeWorkgroupsPerDimension;
    const kv = this.#tensor(op.kvCache);
    const tensors = { q: this.#tensor(op.q), out: this.#tensor(op.out), lse: this.#tensor(op.lse) };
    const [q, out, lse] = [wholeBuffer(tensors.q, 'q'), wholeBuffer(tensors.out, 'out'), wholeBuffer(tensors.lse, 'lse')];
    const rows = (op.sQ * op.hQ) / op.hKv;
    const { chosen, kernels } = this.#serving(op, rows, kv);
    const { config, coming } = chosen;
    const grid = decodeGrid(op, config, op.metadata.parts);
    if (Math.max(...grid, op.sQ * op.hQ, op.b) > most) {
      throw new MlaError('limit-exceeded', 'problem too large for one dispatch', { argument: 'q', expected: `at most ${most} rows (s_q * h_q) and sequences`, got: `${op.sQ * op.hQ} rows, ${op.b} sequences` });
    }
    if (coming) {
      // A batch that grows must not wait for a compiler.
      for (const next of coming) partsKernel(cache.background, op, next, kv).catch((error: unknown) => this.#refuse(next, error));
      chosen.coming = undefined;
    }
    for (const { allocations } of [kv, tensors.q, tensors.out, tensors.lse]) submission.use(allocations);
    const plan = this.#plan(op, takesAnyOrder(config), submission);
    const partials = this.#partialsOf(op, rows, schedule, submission);
    encodeDecode(submission.pass, bindGroups, kernels, op, config, traits, plan, { q, plan: plan.allocation.buffer, partials, out, lse, kv: kv.buffers });
  }

  /** No call is to be served by the configuration named `key` from now on. */
  fault(key: string, why: string): void {
    this.#faults.set(key, why);
    this.#chosen.clear();
    this.#note(`${key}: ${why}`);
  }

  /** What is chosen may be another thing now. */
  retuned(): void {
    this.#chosen.clear();
  }

  /** A tensor is gone, and the plans made of it are. */
  forget(id: TensorId): void {
    for (const [key, { allocation }] of this.#plans) {
      if (!key.startsWith(`${id}/`)) continue;
      this.#machine.memory.release(allocation);
      this.#plans.delete(key);
    }
  }

  clear(): void {
    this.#plans.clear();
    this.#bare = undefined;
  }

  /**
   * What serves a call. A kernel that the device has refused, of which the call that brought it heard, gives way to the next, and a tier whose kernels it
   * has all refused to the next tier.
   * @throws MlaError limit-exceeded, internal
   */
  #serving(op: DecodeOp, rows: number, kv: Storage): { chosen: Chosen; kernels: DecodeKernels<Kernel> } {
    const { kernels, traits } = this.#machine;
    for (;;) {
      const chosen = this.#choose(op, rows);
      try {
        return { chosen, kernels: decodeKernels(kernels, op, chosen.config, traits, kv) };
      } catch (error) {
        // The merge is the same for all.
        if (!this.#refuse(chosen.config, this.#faultOf(op, chosen.config, kv))) throw error;
      }
    }
  }

  #faultOf(op: DecodeOp, config: DecodeConfig, kv: Storage): unknown {
    try {
      partsKernel(this.#machine.kernels, op, config, kv);
      return undefined;
    } catch (error) {
      return error;
    }
  }

  /** @returns whether `error` is something that the device has against the configuration */
  #refuse({ key }: DecodeConfig, error: unknown): boolean {
    // Nor is what a device says that is gone.
    if (!(error instanceof MlaError) || error.code !== 'internal' || this.#machine.gpu.gone) return false;
    this.fault(key, `the device refuses it: ${firstLine(error.message)}`);
    return true;
  }

  /** @throws MlaError limit-exceeded */
  #choose(op: DecodeOp, rows: number): Chosen {
    const { traits } = this.#machine;
    const shape = classOf(op);
    const key = `${shape.load}/${op.dtype}/${op.dQk}/${op.dV}/${rows}/${op.hKv}/${op.blockSize}`;
    const known = this.#chosen.get(key);
    if (known) return known;
    const choose = (load: LoadClass): ReturnType<typeof chooseDecodeConfig> => chooseDecodeConfig(op, rows, traits, this.#tuner.config({ ...shape, load })?.key, this.#faults);
    const { config, rejected } = choose(shape.load);
    if (!config) {
      throw new MlaError('limit-exceeded', 'no kernel configuration fits this device', { argument: 'q', expected: 'limits that one configuration fits', got: rejected.join('; ') });
    }
    if (config.tier !== traits.tier) {
      const why = rejected.filter((reason) => reason.startsWith(`${traits.tier} `));
      this.#note(`d_qk = ${op.dQk}, d_v = ${op.dV}, blocks of ${op.blockSize}: kernels of the ${config.tier} tier, for ${why.join('; ')}`);
    }
    const at = LOADS.indexOf(shape.load);
    const others = new Map(LOADS.filter((_, i) => Math.abs(i - at) === 1).map((load) => choose(load).config!).map((other) => [other.key, other]));
    others.delete(config.key);
    const chosen: Chosen = { config, coming: [...others.values()] };
    this.#chosen.set(key, chosen);
    return chosen;
  }

  #plan(op: DecodeOp, anyOrder: boolean, submission: Submission): PlanOnDevice {
    const rest = `${op.metadataId}/${anyOrder}/${op.sQ}/${op.dV}/${op.softmaxScale}/${op.causal}`;
    if (typeof op.blockTable !== 'number') {
      if (this.#bare?.submission === submission && this.#bare.table === op.blockTable && this.#bare.key === rest) return this.#bare.plan;
      const plan = this.#upload(makePlan(op, op.blockTable, anyOrder), submission);
      submission.release(plan.allocation);
      this.#bare = { submission, table: op.blockTable, key: rest, plan };
      return plan;
    }
    // Only a block table that is a tensor is known to hold the same numbers the next time.
    const key = `${op.blockTable}/${rest}`;
    const known = this.#plans.get(key);
    if (known) {
      submission.use([known.allocation]);
      return known;
    }
    const plan = this.#upload(makePlan(op, this.#tensor(op.blockTable).host!, anyOrder), submission);
    void plan.allocation.fault.then((refused) => {
      if (!refused || this.#plans.get(key) !== plan) return;
      this.#plans.delete(key);
      this.#machine.memory.discard(plan.allocation);
    });
    if (this.#plans.size >= PLANS_KEPT) {
      const [oldest, { allocation }] = this.#plans.entries().next().value!;
      submission.release(allocation);
      this.#plans.delete(oldest);
    }
    this.#plans.set(key, plan);
    return plan;
  }

  #upload(plan: Plan, submission: Submission): PlanOnDevice {
    const { gpu, memory } = this.#machine;
    const allocation = memory.storage(roomToGrow(plan.words.byteLength), 'plan');
    submission.use([allocation]);
    gpu.device.queue.writeBuffer(allocation.buffer, 0, plan.words);
    return { ...plan, allocation };
  }

  /**
   * Scratch for partial results, as large as the most parts that this shape can be cut into, so that it does not grow
   * as sequences do; where that is more than a binding, as large as these need.
   */
  #partialsOf(op: DecodeOp, rows: number, schedule: ScheduleInfo, submission: Submission): GPUBuffer {
    const parts = Math.max(op.metadata.parts, mostParts(schedule, { rows, numHeadsK: op.hKv, blockSize: op.blockSize }));
    const most = partialBytes(parts, op);
    const bytes = most <= bindingBytes(this.#machine.traits.limits) ? most : partialBytes(op.metadata.parts, op);
    if (!this.#partials || this.#partials.buffer.size < bytes) {
      const larger = this.#machine.memory.storage(bytes, 'partials');
      // Nothing else will ask for its size again.
      if (this.#partials) submission.discard(this.#partials);
      this.#partials = larger;
      void larger.fault.then((refused) => {
        if (!refused || this.#partials !== larger) return;
        this.#partials = undefined;
        this.#machine.memory.discard(larger);
      });
    }
    submission.use([this.#partials]);
    return this.#partials.buffer;
  }
}
