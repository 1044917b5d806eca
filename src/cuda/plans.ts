/** Plans on the device: one a step is used by every layer; a few steps may be in flight. */
import type { DecodeOp, TensorId } from '../backend.ts';
import { PLAN_LAYOUT, makePlan } from '../plan.ts';
import { BLOCK_TOKENS, mergeItems, type PlanFacts } from './config.ts';
import type { Allocation, DeviceMemory } from './memory.ts';
import type { Staging } from './staging.ts';

const KEPT = 8;

export interface PlanOnDevice extends PlanFacts {
  readonly allocation: Allocation;
  /** Only of a plan that is kept. */
  readonly table: TensorId | undefined;
  readonly metadataId: number;
  /** Device addresses. */
  readonly at: { readonly parts: number; readonly sequences: number; readonly merges: number; readonly table: number };
}

export class Plans {
  readonly #memory: DeviceMemory;
  readonly #staging: Staging;
  /** Most recently made last. */
  readonly #kept: PlanOnDevice[] = [];

  constructor(memory: DeviceMemory, staging: Staging) {
    this.#memory = memory;
    this.#staging = staging;
  }

  /** @param indices contents of the block table; only one that is a tensor is known to hold the same the next time */
  get(op: DecodeOp, indices: () => Int32Array): PlanOnDevice {
    const table = typeof op.blockTable === 'number' ? op.blockTable : undefined;
    if (table !== undefined) for (const plan of this.#kept) if (plan.table === table && plan.metadataId === op.metadataId) return plan;
    const plan = this.#make(op, table, indices());
    if (table !== undefined) {
      if (this.#kept.length === KEPT) this.#memory.release(this.#kept.shift()!.allocation);
      this.#kept.push(plan);
    }
    return plan;
  }

  /** After the call that it was got for. */
  done(plan: PlanOnDevice): void {
    if (plan.table === undefined) this.#memory.release(plan.allocation);
  }

  /** The tensor's number names nothing any more. */
  forget(table: TensorId): void {
    for (let i = this.#kept.length - 1; i >= 0; i--) if (this.#kept[i]!.table === table) this.#memory.release(this.#kept.splice(i, 1)[0]!.allocation);
  }

  #make(op: DecodeOp, table: TensorId | undefined, indices: Int32Array): PlanOnDevice {
    const { words: plan, parts } = makePlan(op, indices, false);
    const sequencesAt = plan[PLAN_LAYOUT.PLAN_SEQS_AT]!;
    const { items, mostSplits } = mergeItems(new Int32Array(plan.buffer, sequencesAt * 4, op.b * 4), op.sQ * op.hQ);
    const kvBlocks = op.metadata.cacheSeqlens.reduce((sum, length) => sum + Math.ceil(length / BLOCK_TOKENS), 0);
    // The merge's list after it, where its rows of four are aligned.
    const mergesAt = Math.ceil(plan.length / 4) * 4;
    const words = new Uint32Array(mergesAt + items.length);
    words.set(plan);
    words.set(items, mergesAt);
    const allocation = this.#memory.take(words.byteLength, 'plan');
    try {
      this.#staging.upload(allocation.address, words);
    } catch (error) {
      this.#memory.release(allocation);
      throw error;
    }
    const from = allocation.address;
    return {
      allocation, table, metadataId: op.metadataId, parts, kvBlocks, mergeBlocks: items.length / 4, mostSplits,
      at: {
        parts: from + 4 * PLAN_LAYOUT.PLAN_PARTS,
        sequences: from + 4 * sequencesAt,
        merges: from + 4 * mergesAt,
        table: from + 4 * plan[PLAN_LAYOUT.PLAN_TABLE_AT]!,
      },
    };
  }
}
