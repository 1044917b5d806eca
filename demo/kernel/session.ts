/** One instance of the package in its worker, a paged cache in it, and the reference that knows what it holds. */
import { transfer, wrap, type Remote } from 'comlink';
import type { BackendName, Mla, MlaInfo, MlaMetadata, PagedKvCache, SequenceId } from '../../src/mla.ts';
import { connect } from '../../src/worker/index.ts';
import { poolBlocks, type Batch } from './batch.ts';
import type { Tier } from '../../src/webgpu/tier.ts';
import type { CheckReport } from './check.ts';
import { measure, type Timing } from './measure.ts';
import { LOSE_DEVICE, isDeviceLost, type ProbeAnswer, type ProbeRequest } from './notices.ts';
import type { Ceilings } from './probe.ts';
import type { ReferenceService } from './reference-worker.ts';
import { BLOCK_SIZE, D_QK, D_V, costOf, type Cost, type Step } from './shape.ts';

export interface Progress {
  readonly words: string;
  /** 0 .. 1, where it is known. */
  readonly part?: number;
}

/** What a session runs on. */
export interface DeviceChoice {
  readonly backend: BackendName | 'auto';
  /** webgpu: the kernel tier; the best that works when absent. */
  readonly tier?: Tier;
}

export interface DecodeOptions {
  /** Time for measurements; see measure. */
  readonly budgetMs?: number;
  /** Multiplications that the reference may cost; see TokenStore. */
  readonly checkBudget?: number;
}

export interface DecodeReport {
  readonly info: MlaInfo;
  readonly step: Step;
  readonly lengths: Int32Array;
  readonly cost: Cost;
  readonly timing: Timing;
  readonly check: CheckReport;
}

/** Appends that fill a cache: sequences grow side by side, as in a server, so that their blocks mix. */
const FILL_ROUNDS = 24;

export class Session {
  readonly mla: Mla;
  readonly #worker: Worker;
  readonly #referenceWorker: Worker;
  readonly #reference: Remote<ReferenceService>;
  #cache: PagedKvCache | undefined;
  #sequences: SequenceId[] = [];
  #seed = 1;
  /** By the size asked for. */
  readonly #ceilings = new Map<number, Ceilings>();

  private constructor(mla: Mla, worker: Worker) {
    this.mla = mla;
    this.#worker = worker;
    this.#referenceWorker = new Worker(new URL('./reference-worker.ts', import.meta.url), { type: 'module', name: 'float64 reference' });
    this.#reference = wrap<ReferenceService>(this.#referenceWorker);
  }

  /** @throws MlaError backend-unavailable */
  static async open(choice: DeviceChoice, onLost: (session: Session, message: string) => void): Promise<Session> {
    const worker = new Worker(new URL('./worker.ts', import.meta.url), { type: 'module', name: 'flashmla-web' });
    try {
      // Tuning in the background would be in the figures: `decode` tunes before it measures.
      const session = new Session(await connect(worker, { ...choice, tune: 'stored' }), worker);
      worker.addEventListener('message', ({ data }) => {
        if (isDeviceLost(data)) onLost(session, data.message);
      });
      return session;
    } catch (error) {
      worker.terminate();
      throw error;
    }
  }

  get info(): MlaInfo {
    return this.mla.info;
  }

  get cache(): PagedKvCache | undefined {
    return this.#cache;
  }

  get sequences(): readonly SequenceId[] {
    return this.#sequences;
  }

  /** A new cache with a batch of random tokens. */
  async fill({ lengths }: Batch, progress: (p: Progress) => void): Promise<void> {
    this.#cache?.destroy();
    this.#cache = undefined;
    this.#sequences = [];
    await this.#reference.reset(this.#seed++);
    const cache = await this.mla.createKvCache({ numBlocks: poolBlocks(lengths), blockSize: BLOCK_SIZE, headDim: D_QK, headDimV: D_V });
    this.#cache = cache;
    this.#sequences = lengths.map(() => cache.createSequence());
    const longest = Math.max(...lengths);
    const round = Math.max(1, Math.ceil(longest / FILL_ROUNDS / BLOCK_SIZE)) * BLOCK_SIZE;
    for (let done = 0; done < longest; done += round) {
      progress({ words: 'Filling the cache', part: done / longest });
      await this.#append(lengths.map((length) => Math.max(0, Math.min(round, length - done))));
    }
    await this.mla.finished();
  }

  /** One token more for every sequence. @throws MlaError pool-exhausted: nothing has changed */
  appendToAll(): Promise<void> {
    return this.#append(this.#sequences.map(() => 1));
  }

  async #append(counts: number[]): Promise<void> {
    const sequences = [...this.#sequences];
    const plan = await this.#cache!.reserve({ sequences, counts });
    const data = await this.#reference.append(sequences, counts);
    await this.#cache!.write(plan, { latent: { data, shape: [plan.tokens, 1, D_QK], dtype: 'bf16', transfer: true } });
  }

  async fork(sequence: SequenceId): Promise<SequenceId> {
    const id = this.#cache!.fork(sequence);
    this.#sequences.push(id);
    await this.#reference.fork(sequence, id);
    return id;
  }

  async free(sequence: SequenceId): Promise<void> {
    this.#cache!.free(sequence);
    this.#sequences = this.#sequences.filter((id) => id !== sequence);
    await this.#reference.free(sequence);
  }

  /** The schedule of the next decode, or undefined without sequences. */
  metadata({ heads, sQ }: Step): MlaMetadata | undefined {
    if (!this.#cache || this.#sequences.length === 0) return undefined;
    return this.mla.getMlaMetadata({ cacheSeqlens: this.#cache.cacheSeqlens(this.#sequences), numQTokensPerHeadK: sQ * heads, numHeadsK: 1, blockSize: BLOCK_SIZE });
  }

  /** Decodes random queries over the cache, takes the time and checks the result. */
  async decode(step: Step, progress: (p: Progress) => void, { budgetMs, checkBudget }: DecodeOptions = {}): Promise<DecodeReport> {
    const { mla } = this;
    const { heads, sQ, causal } = step;
    if (this.info.backend === 'webgpu' && !this.info.software) {
      progress({ words: 'Choosing kernel configurations, once a device' });
      await mla.tune({ numQTokensPerHeadK: sQ * heads });
    }
    const cache = this.#cache!;
    const sequences = [...this.#sequences];
    const lengths = cache.cacheSeqlens(sequences);
    const b = sequences.length;
    const metadata = this.metadata(step)!;
    const data = await this.#reference.query(b * sQ * heads);
    const q = await mla.tensor({ data, shape: [b, sQ, heads, D_QK], dtype: 'bf16', transfer: true });
    try {
      const args = { q, kvCache: cache.tensor(), blockTable: cache.blockTable(sequences), cacheSeqlens: lengths, headDimV: D_V, causal, metadata };
      progress({ words: this.info.backend === 'webgpu' ? 'Compiling kernels, first call' : 'First call' });
      const { out, lse } = await mla.flashMlaWithKvCache(args);
      try {
        await mla.finished();
        const timing = await measure(mla, () => mla.flashMlaWithKvCache({ ...args, out, lse }), (run, most) =>
          progress({ words: `Running: measurement ${run}`, part: run / most }), budgetMs);
        progress({ words: 'Checking against the float64 reference' });
        const bits = (await out.readBits()) as Uint16Array<ArrayBuffer>;
        const check = await this.#reference.check(transfer({ ...step, sequences, ...(checkBudget !== undefined && { budget: checkBudget }), out: bits, lse: (await lse.readBits()) as Float32Array }, [bits.buffer]));
        return { info: this.info, step, lengths, cost: costOf(step, lengths), timing, check };
      } finally {
        out.destroy();
        lse.destroy();
      }
    } finally {
      q.destroy();
    }
  }

  /**
   * What the device reads and computes at best, beside a working set of `bytes`; undefined on the cpu backend. Nothing else
   * may run meanwhile.
   * @throws Error when the probe failed
   */
  async ceilings(bytes: number): Promise<Ceilings | undefined> {
    if (this.info.backend !== 'webgpu') return undefined;
    const size = 2 ** Math.ceil(Math.log2(bytes));
    const known = this.#ceilings.get(size);
    if (known) return known;
    const { port1, port2 } = new MessageChannel();
    const answer = new Promise<ProbeAnswer>((resolve) => {
      port1.onmessage = ({ data }: MessageEvent<ProbeAnswer>) => resolve(data);
    });
    this.#worker.postMessage({ notice: 'probe', port: port2, bytes: size, software: this.info.software } satisfies ProbeRequest, [port2]);
    const found = await answer;
    if ('fault' in found) throw new Error(found.fault);
    this.#ceilings.set(size, found.ceilings);
    return found.ceilings;
  }

  /** Destroys the GPUDevice in the worker: what a driver reset does. */
  loseDevice(): void {
    this.#worker.postMessage(LOSE_DEVICE);
  }

  /** Gives everything back. A worker that no longer answers is ended all the same. */
  async close(): Promise<void> {
    const patience = new Promise((resolve) => setTimeout(resolve, 1000));
    await Promise.race([this.mla.destroy().catch(() => undefined), patience]);
    this.#worker.terminate();
    this.#referenceWorker.terminate();
  }
}
