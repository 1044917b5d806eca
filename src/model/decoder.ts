/** DeepSeek's decoder on one device: embeds, runs the layers, and chooses the next tokens, a step at a time. */
import type { TensorId } from '../backend.ts';
import type { HostTensor, Mla, MlaTensor, PagedKvCache } from '../mla.ts';
import type { StepOp } from '../ops.ts';
import { runOps, type StepNames } from '../run-ops.ts';
import { idOf } from '../tensor.ts';
import type { SampleRequest, StepRunner } from './engine.ts';
import { denseOps, moeOps, type DenseWeights, type FfnScratch, type MoeWeights } from './ffn.ts';
import type { LayerGroup, LayerStep } from './layer-step.ts';
import { MlaLayer, norm, plain, type MlaDims, type MlaScratch, type MlaWeights } from './mla-layer.ts';
import { embed, matmul, type SplitWeight } from './split-weight.ts';
import { planStep, type StepEntry, type StepPlan } from './step-plan.ts';
import { Workspace } from './workspace.ts';

export interface LoadedLayer {
  readonly attention: MlaWeights;
  /** f32 [hidden]. */
  readonly norm: TensorId;
  readonly ffn: { readonly kind: 'dense'; readonly weights: DenseWeights } | { readonly kind: 'moe'; readonly weights: MoeWeights };
}

export interface LoadedWeights {
  /** bf16 [vocab, hidden]. */
  readonly embed: SplitWeight;
  readonly layers: readonly LoadedLayer[];
  /** f32 [hidden]. */
  readonly norm: TensorId;
  /** [vocab, hidden]; the embedding again where they are tied. */
  readonly head: SplitWeight;
  /** All tensors, to give back. */
  readonly tensors: readonly MlaTensor[];
}

export interface DecoderShape {
  readonly vocab: number;
  readonly dims: MlaDims;
  /** [T, rope / 2, 2] for these positions. */
  angles(positions: Int32Array): Float32Array;
}

export class Decoder implements StepRunner {
  readonly cache: PagedKvCache;
  readonly maxTokens: number;
  readonly shape: DecoderShape;
  readonly #mla: Mla;
  readonly #weights: LoadedWeights;
  readonly #layers: readonly MlaLayer[];
  readonly #workspace: Workspace;
  readonly #scratch: Scratch;

  /** @param maxTokens most tokens a step @throws MlaError out-of-memory, limit-exceeded */
  static async create(mla: Mla, shape: DecoderShape, weights: LoadedWeights, cache: PagedKvCache, maxTokens: number): Promise<Decoder> {
    const workspace = new Workspace(mla);
    try {
      return new Decoder(mla, shape, weights, cache, maxTokens, workspace, await makeScratch(workspace, shape, weights, maxTokens));
    } catch (error) {
      workspace.destroy();
      throw error;
    }
  }

  private constructor(mla: Mla, shape: DecoderShape, weights: LoadedWeights, cache: PagedKvCache, maxTokens: number, workspace: Workspace, scratch: Scratch) {
    this.#mla = mla;
    this.shape = shape;
    this.#weights = weights;
    this.cache = cache;
    this.maxTokens = maxTokens;
    this.#workspace = workspace;
    this.#scratch = scratch;
    this.#layers = weights.layers.map(({ attention }) => new MlaLayer(shape.dims, attention, scratch.mla));
  }

  async step(entries: readonly StepEntry[], requests: readonly (SampleRequest | undefined)[]): Promise<(number | undefined)[]> {
    const plan = planStep(entries, this.maxTokens);
    const asked = entries.map((_, i) => i).filter((i) => requests[i] !== undefined);
    await this.#run(plan, entries, () => (asked.length === 0 ? [] : this.#sampling(plan, asked, requests)));
    const chosen: (number | undefined)[] = entries.map(() => undefined);
    if (asked.length === 0) return chosen;
    const ids = (await this.#scratch.chosen.read()) as Int32Array;
    asked.forEach((i, row) => (chosen[i] = ids[row]));
    return chosen;
  }

  /** The logits of every token of the entries, entry after entry: f32 [tokens, vocab]. For tests and for scoring text. */
  async logits(entries: readonly StepEntry[]): Promise<Float32Array> {
    const plan = planStep(entries, this.maxTokens);
    const { vocab, dims: { hidden, eps } } = this.shape;
    const s = this.#scratch;
    const out = await this.#mla.tensor({ data: new Float32Array(plan.tokens * vocab), shape: [plan.tokens, vocab], dtype: 'f32' });
    try {
      await this.#run(plan, entries, () => [
        norm(plan.tokens, hidden, s.x, this.#weights.norm, eps, s.ffn.normed),
        ...matmul(plan.tokens, vocab, hidden, plain(s.ffn.normed, hidden), this.#weights.head, plain(idOf(out), vocab)),
      ]);
      const byRow = (await out.read()) as Float32Array;
      const inOrder = new Float32Array(byRow.length);
      let at = 0;
      entries.forEach(({ ids }, i) => {
        const first = plan.lastRows[i]! + 1 - ids.length;
        inOrder.set(byRow.subarray(first * vocab, (first + ids.length) * vocab), at * vocab);
        at += ids.length;
      });
      return inOrder;
    } finally {
      out.destroy();
    }
  }

  destroy(): void {
    this.#workspace.destroy();
    for (const tensor of this.#weights.tensors) tensor.destroy();
    this.cache.destroy();
  }

  /** The tokens through all layers, then what `after` adds, in one submission. @throws MlaError pool-exhausted */
  async #run(plan: StepPlan, entries: readonly StepEntry[], after: () => readonly StepOp[]): Promise<void> {
    const { cache } = this;
    const before = entries.map(({ sequence }) => cache.length(sequence));
    const ordered = plan.order.map((i) => entries[i]!);
    const reserved = cache.reserve({ sequences: ordered.map(({ sequence }) => sequence), counts: ordered.map(({ ids }) => ids.length) });
    // Before anything is waited for: whoever leaves meanwhile takes its sequence with it.
    const keys = plan.groups.map(({ entries: members }): GroupKeys => {
      const sequences = members.map((i) => entries[i]!.sequence);
      return { cacheSeqlens: cache.cacheSeqlens(sequences), blockTable: cache.blockTable(sequences) };
    });
    const { slots } = await reserved;
    const positions = new Int32Array(plan.tokens);
    let row = 0;
    for (const i of plan.order) for (let j = 0; j < entries[i]!.ids.length; j++) positions[row++] = before[i]! + j;
    const angles = this.shape.angles(positions);
    const groups = await this.#groups(plan, keys);
    try {
      await runOps(this.#mla, (names) => [
        ...this.#layerOps(plan, { tokens: plan.tokens, angles, slots, blockSize: cache.blockSize, groups: groups.map((group) => group.named(names)) }),
        ...after(),
      ]);
    } finally {
      for (const { table } of groups) table.destroy();
    }
  }

  #layerOps(plan: StepPlan, step: LayerStep): StepOp[] {
    const { hidden, eps } = this.shape.dims;
    const s = this.#scratch;
    const ops: StepOp[] = embed(plan.ids, hidden, this.#weights.embed, s.x);
    this.#weights.layers.forEach(({ norm: weight, ffn }, i) => {
      ops.push(
        ...this.#layers[i]!.ops(step, s.x, idOf(this.cache.tensor(i))),
        ...(ffn.kind === 'dense' ? denseOps(plan.tokens, hidden, s.x, weight, eps, ffn.weights, s.ffn) : moeOps(plan.tokens, hidden, s.x, weight, eps, ffn.weights, s.ffn)),
      );
    });
    return ops;
  }

  /** The rows that are asked for, normed, through the head, and chosen from. */
  #sampling(plan: StepPlan, asked: readonly number[], requests: readonly (SampleRequest | undefined)[]): StepOp[] {
    const { vocab, dims: { hidden, eps } } = this.shape;
    const s = this.#scratch;
    const count = asked.length;
    const seenStart = new Int32Array(count + 1);
    const seen: number[] = [];
    asked.forEach((i, row) => {
      const { repetitionPenalty, seen: tokens } = requests[i]!;
      if (repetitionPenalty !== 1) for (const id of new Set(tokens)) seen.push(id);
      seenStart[row + 1] = seen.length;
    });
    return [
      { op: 'takeRows', rows: Int32Array.from(asked, (i) => plan.lastRows[i]!), n: hidden, x: s.x, out: s.last },
      norm(count, hidden, s.last, this.#weights.norm, eps, s.last),
      ...matmul(count, vocab, hidden, plain(s.last, hidden), this.#weights.head, plain(s.logits, vocab)),
      {
        op: 'sample', vocab, logits: s.logits, seen: Int32Array.from(seen), seenStart, out: idOf(s.chosen),
        rows: asked.map((i) => {
          const { temperature, topK, topP, repetitionPenalty, random } = requests[i]!;
          return { temperature, topK, topP, repetitionPenalty, random };
        }),
      },
    ];
  }

  /** A tensor of each group's block table, so that its plan is made once for all layers; to be destroyed after the step. */
  async #groups(plan: StepPlan, keys: readonly GroupKeys[]): Promise<PreparedGroup[]> {
    const { heads, kvLoraRank, rope } = this.shape.dims;
    const groups: PreparedGroup[] = [];
    for (const [g, { row, sQ, entries: members }] of plan.groups.entries()) {
      const { cacheSeqlens, blockTable } = keys[g]!;
      const metadata = this.#mla.getMlaMetadata({ cacheSeqlens, numQTokensPerHeadK: sQ * heads, numHeadsK: 1, blockSize: this.cache.blockSize });
      const table = await this.#mla.tensor(blockTable);
      const tensors = {
        q: await this.#tensor(`q ${g}`, 'bf16', [this.maxTokens, heads, kvLoraRank + rope]),
        out: await this.#tensor(`out ${g}`, 'bf16', [this.maxTokens, heads, kvLoraRank]),
        lse: await this.#tensor(`lse ${g}`, 'f32', [this.maxTokens, heads]),
      };
      groups.push({
        table,
        named: (names) => ({
          row, b: members.length, sQ, ...tensors, blockTable: idOf(table), maxBlocksPerSeq: table.shape[1]!, metadata, metadataId: names.metadataId(metadata),
        }),
      });
    }
    return groups;
  }

  async #tensor(name: string, dtype: 'f32' | 'bf16', shape: readonly number[]): Promise<TensorId> {
    return idOf(await this.#workspace.get(name, dtype, shape));
  }
}

/** A group's keys in the cache, as they are when its step begins. */
interface GroupKeys {
  readonly cacheSeqlens: Int32Array;
  readonly blockTable: HostTensor;
}

/** A group with its tensors; its metadata gets its name when the step is run. */
interface PreparedGroup {
  readonly table: MlaTensor;
  named(names: StepNames): LayerGroup;
}

interface Scratch {
  /** f32 [T, hidden]: the residual stream. */
  readonly x: TensorId;
  /** f32 [T, hidden]: the rows that logits are wanted of. */
  readonly last: TensorId;
  /** f32 [T, vocab]: of those rows. */
  readonly logits: TensorId;
  /** i32 [T]. */
  readonly chosen: MlaTensor;
  readonly mla: MlaScratch;
  readonly ffn: FfnScratch;
}

async function makeScratch(workspace: Workspace, { vocab, dims }: DecoderShape, { layers }: LoadedWeights, most: number): Promise<Scratch> {
  const { hidden, heads, qLoraRank, kvLoraRank, nope, rope, value } = dims;
  const moe = layers.flatMap(({ ffn }) => (ffn.kind === 'moe' ? [ffn.weights] : []));
  const dense = layers.flatMap(({ ffn }) => (ffn.kind === 'dense' ? [ffn.weights] : [])).concat(moe.flatMap(({ shared }) => shared ?? []));
  // Rows of the feed-forward's inside: a token, or each of its experts.
  const inner = Math.max(1, ...dense.map(({ width }) => width), ...moe.map(({ width, routing }) => width * routing.topK));
  const experts = Math.max(1, ...moe.map(({ routing }) => routing.experts));
  const topK = Math.max(1, ...moe.map(({ routing }) => routing.topK));
  const f32 = async (name: string, width: number): Promise<TensorId> => idOf(await workspace.get(name, 'f32', [most, width]));
  const normed = await f32('normed', hidden);
  return {
    x: await f32('x', hidden),
    last: await f32('last', hidden),
    logits: await f32('logits', vocab),
    chosen: await workspace.get('chosen', 'i32', [most]),
    mla: {
      normed, qLow: await f32('q low', qLoraRank ?? 1), q: await f32('q', heads * (nope + rope)), kv: await f32('kv', kvLoraRank + rope),
      values: await f32('values', heads * value),
    },
    ffn: {
      normed, gateUp: await f32('gate up', 2 * inner), inner: await f32('inner', inner), logits: await f32('router logits', experts),
      ids: idOf(await workspace.get('expert ids', 'i32', [most, topK])), weights: await f32('expert weights', topK),
    },
  };
}
