/**
 * Times of one class of calls on the device, with memory of its own, of kernels whose results are right.
 *
 * A device's clocks rise and fall by a factor of five with how busy it was in the last second, and tuning itself does not keep it
 * busy. So each trial takes turns with the first one that could be measured, and what counts is how much longer it takes than that.
 */
import type { DecodeOp } from '../backend.ts';
import { MlaError, firstLine } from '../errors.ts';
import { median } from '../median.ts';
import type { MlaMetadata, ScheduleInfo } from '../mla.ts';
import { makePlan, partialBytes, type Plan } from '../plan.ts';
import { getMlaMetadata } from '../schedule.ts';
import type { ShapeClass } from '../shape-class.ts';
import { takesAnyOrder } from './candidates.ts';
import { ONE_SEGMENT, bindingBytes, type DecodeConfig } from './config.ts';
import { compileDecode, decodeGrid, encodeDecode, type DecodeKernels } from './dispatch.ts';
import type { Kernel } from './kernel.ts';
import type { Allocation } from './memory.ts';
import type { Machine } from './submission.ts';
import { Timer } from './timer.ts';
import { rightResults } from './tune-check.ts';
import { KV_STRETCH, Q_STRETCH, TuneData } from './tune-data.ts';
import { TUNE_BLOCK, checkLoad, checkMetadata, type TuneLoad } from './tune-load.ts';
import { TuneResults, checkBytes } from './tune-results.ts';
import { HOPELESS } from './tune-search.ts';
import { inSlices, withTurn, type Turn } from './tune-turn.ts';

export interface TuneDevice extends Machine {
  /** What is scheduled for without tuning. */
  readonly schedule: ScheduleInfo;
}

/** A batch of calls takes about so long: much past what timestamps resolve, little for whoever waits behind it. */
const BATCH_MS = 4;
const MOST_CALLS = 64;
/** Batches before those that count: the first says how long a call takes, as it does for the other trial in turns with it, the second runs warm. */
const WARM_UP = 2;
const SAMPLES = 3;
/** So long a GPU is kept busy before the first trial, where nobody else waits for it: clocks rise within that. */
const HEAT_MS = 400;
const ONE_BINDING = { segments: 1, blocksPerSegment: ONE_SEGMENT } as const;

interface Call {
  readonly plan: Plan;
  readonly buffer: GPUBuffer;
}

/** The load as a configuration's schedule cuts it, ready to be enqueued. */
interface Trial {
  readonly config: DecodeConfig;
  readonly kernels: DecodeKernels<Kernel>;
  /** To take in turn. */
  readonly calls: readonly Call[];
  /** One that is made for its results only. */
  readonly check: Call;
  readonly partials: GPUBuffer;
}

/** What all trials work on. */
interface Ground {
  readonly q: GPUBuffer;
  readonly kv: GPUBuffer;
  readonly results: TuneResults;
}

export class TuneBench {
  readonly #device: TuneDevice;
  readonly #shape: Pick<DecodeOp, 'sQ' | 'hQ' | 'hKv' | 'dQk' | 'dV' | 'dtype'>;
  readonly #load: TuneLoad;
  readonly #check: TuneLoad;
  readonly #turn: Turn;
  readonly #numbers: () => Generator<void, TuneData>;
  readonly #timer: Timer;
  readonly #owned: Allocation[] = [];
  #ground: Ground | undefined;
  /** The first trial that could be measured; the others' measure. */
  #first: { readonly trial: Trial; readonly ms: number } | undefined;

  constructor(device: TuneDevice, { rows, hKv, dQk, dV, dtype }: ShapeClass, load: TuneLoad, turn: Turn, numbers = (): Generator<void, TuneData> => TuneData.make(dtype, dQk)) {
    this.#device = device;
    this.#shape = { sQ: 1, hQ: rows * hKv, hKv, dQk, dV, dtype };
    this.#load = load;
    this.#check = checkLoad(load);
    this.#turn = turn;
    this.#numbers = numbers;
    // Errors of others are others' to hear of.
    this.#timer = new Timer(device.gpu, device.memory, (work) => device.gpu.wait(work));
  }

  get timing(): 'device' | 'wall' {
    return this.#timer.onDevice ? 'device' : 'wall';
  }

  /** Takes memory, fills it, and works out what is right. @throws MlaError out-of-memory, limit-exceeded, device-lost */
  async open(): Promise<void> {
    const { hQ, hKv, dQk, dV } = this.#shape;
    const b = Math.max(this.#load.cacheSeqlens.length, this.#check.cacheSeqlens.length);
    const kvBytes = this.#load.numBlocks * TUNE_BLOCK * hKv * dQk * 2;
    const kv = await this.#take(kvBytes);
    const qBytes = b * hQ * dQk * 2;
    const q = await this.#take(qBytes);
    const [out, lse, nan] = [await this.#take(b * hQ * dV * 2), await this.#take(b * hQ * 4), await this.#take(dV * 2)];
    // The numbers go over once; the device copies them.
    const numbers = await this.#take(Q_STRETCH.at + Q_STRETCH.bytes);
    const data = await inSlices(this.#turn, this.#numbers());
    await withTurn(this.#turn, async () => {
      this.#device.gpu.device.queue.writeBuffer(numbers, 0, data.bits);
      const refused = await this.#submit((encoder) => {
        for (const [buffer, total, { at, bytes }] of [[kv, kvBytes, KV_STRETCH], [q, qBytes, Q_STRETCH]] as const) {
          for (let to = 0; to < total; to += bytes) encoder.copyBufferToBuffer(numbers, at, buffer, to, Math.min(bytes, total - to));
        }
      });
      if (refused) throw refused;
    });
    const right = await inSlices(this.#turn, rightResults(this.#shape, this.#load, this.#check, data));
    const staging = await this.#granted(this.#device.memory.staging(checkBytes(this.#shape, right)));
    this.#ground = { kv, q, results: new TuneResults(this.#device.gpu, this.#shape, { out, lse, nan, staging }, right) };
  }

  /** Milliseconds of a warm call; undefined where it cannot be made, or gives wrong results. @throws MlaError out-of-memory, device-lost, destroyed */
  async probe(config: DecodeConfig, slots: number): Promise<number | undefined> {
    const mark = this.#owned.length;
    try {
      const trial = await this.#trial(config, slots);
      if (typeof trial === 'string' || (await this.#wrong(trial)) !== undefined) return undefined;
      return await this.#batch(trial, 1);
    } finally {
      this.#discard(mark);
    }
  }

  /**
   * Milliseconds of a trial's call, or why it was given up: what it gives may be wrong.
   * @param best the least so far
   * @throws MlaError out-of-memory, device-lost, destroyed
   */
  async measure(config: DecodeConfig, slots: number, best: number): Promise<number | string> {
    const mark = this.#owned.length;
    let keep = false;
    try {
      const trial = await this.#trial(config, slots);
      if (typeof trial === 'string') return trial;
      const wrong = await this.#wrong(trial);
      if (wrong !== undefined) return wrong;
      if (this.#first) return await this.#against(this.#first, trial, best);
      const ms = await this.#alone(trial);
      this.#first = { trial, ms };
      keep = true;
      return ms;
    } finally {
      if (!keep) this.#discard(mark);
    }
  }

  /** Keeps the device busy with a trial. @throws MlaError as `measure` */
  async heat(config: DecodeConfig, slots: number): Promise<void> {
    const mark = this.#owned.length;
    try {
      const trial = await this.#trial(config, slots);
      if (typeof trial === 'string') return;
      const run = this.#sampler(trial);
      const end = performance.now() + HEAT_MS;
      do await run();
      while (performance.now() < end);
    } finally {
      this.#discard(mark);
    }
  }

  async #alone(trial: Trial): Promise<number> {
    const run = this.#sampler(trial);
    const samples: number[] = [];
    for (let i = 0; i < WARM_UP + SAMPLES; i++) {
      const ms = await run();
      if (i >= WARM_UP) samples.push(ms);
    }
    return median(samples);
  }

  /** In turns with the first, whose time it is told in. */
  async #against(first: { readonly trial: Trial; readonly ms: number }, trial: Trial, best: number): Promise<number | string> {
    const [theirs, ours] = [this.#sampler(first.trial), this.#sampler(trial)];
    const samples: number[] = [];
    for (let i = 0; i < WARM_UP + SAMPLES; i++) {
      const measure = await theirs();
      const ms = (first.ms * (await ours())) / measure;
      // One call each, which where times are the clock's are mostly the waiting.
      if (i > 0 && ms > best * HOPELESS) return `given up: more than ${HOPELESS} times the best`;
      if (i >= WARM_UP) samples.push(ms);
    }
    return median(samples);
  }

  /** Milliseconds of a call; the first time of one call, then of as many as fill a batch. */
  #sampler(trial: Trial): () => Promise<number> {
    let count = 1;
    return async () => {
      const ms = (await this.#batch(trial, count)) / count;
      count = Math.min(MOST_CALLS, Math.max(1, Math.round(BATCH_MS / ms)));
      return ms;
    };
  }

  /** Everything of a trial but its times; or why there is none. */
  async #trial(config: DecodeConfig, slots: number): Promise<Trial | string> {
    const { traits, schedule } = this.#device;
    const { hQ, hKv } = this.#shape;
    const metadata = getMlaMetadata(
      { cacheSeqlens: this.#load.cacheSeqlens, numQTokensPerHeadK: hQ / hKv, numHeadsK: hKv, blockSize: TUNE_BLOCK }, { ...schedule, slots, rowTiles: [config.rows] },
    );
    if (Math.max(...decodeGrid(this.#shape, config, metadata.parts), hQ) > traits.limits.maxComputeWorkgroupsPerDimension) return 'too large for one dispatch';
    const scratch = partialBytes(metadata.parts, this.#shape);
    if (scratch > bindingBytes(traits.limits)) return 'partial results larger than a binding';
    const kernels = await this.#compile(config);
    if (typeof kernels === 'string') return kernels;
    const calls = await this.#calls(config, this.#load, metadata);
    const [check] = await this.#calls(config, this.#check, checkMetadata({ rows: hQ / hKv, hKv }, this.#check, schedule, metadata.parts));
    return { config, kernels, calls, check: check!, partials: await this.#take(scratch) };
  }

  async #calls(config: DecodeConfig, { cacheSeqlens, maxBlocksPerSeq, blockTables }: TuneLoad, metadata: MlaMetadata): Promise<Call[]> {
    const op = { ...this.#shape, b: cacheSeqlens.length, blockSize: TUNE_BLOCK, maxBlocksPerSeq, metadata, softmaxScale: this.#shape.dQk ** -0.5, causal: false };
    const calls: Call[] = [];
    for (const blockTable of blockTables) {
      const plan = makePlan(op, blockTable, takesAnyOrder(config));
      const buffer = await this.#take(plan.words.byteLength);
      this.#device.gpu.device.queue.writeBuffer(buffer, 0, plan.words);
      calls.push({ plan, buffer });
    }
    return calls;
  }

  /** @returns why the device refuses, if it does */
  async #compile(config: DecodeConfig): Promise<DecodeKernels<Kernel> | string> {
    const { kernels, traits } = this.#device;
    try {
      return await compileDecode(kernels, this.#shape, config, traits, ONE_BINDING);
    } catch (error) {
      if (error instanceof MlaError && error.code === 'internal') return firstLine(error.message);
      throw error;
    }
  }

  close(): void {
    this.#timer.destroy();
    this.#discard(0);
  }

  /** What was taken from the `from`th on. Not for reuse: nothing else is of these sizes. */
  #discard(from: number): void {
    for (const allocation of this.#owned.splice(from)) this.#device.memory.discard(allocation);
  }

  /** What is wrong with the results of a trial's first call, or with those of the one for checking; undefined where nothing is. */
  #wrong(trial: Trial): Promise<string | undefined> {
    const { results } = this.#ground!;
    return withTurn(this.#turn, async () => {
      const refused = await this.#submit((encoder) => {
        results.encode(encoder, 'load', () => this.#encode(encoder, {}, trial, trial.calls.slice(0, 1)));
        results.encode(encoder, 'check', () => this.#encode(encoder, {}, trial, [trial.check]));
      });
      if (refused) throw refused;
      return results.wrong();
    });
  }

  /** Milliseconds of `count` calls in a row. */
  #batch(trial: Trial, count: number): Promise<number> {
    const calls = Array.from({ length: count }, (_, i) => trial.calls[i % trial.calls.length]!);
    return withTurn(this.#turn, () => this.#timed((encoder, timed) => this.#encode(encoder, timed, trial, calls)));
  }

  #encode(encoder: GPUCommandEncoder, timed: GPUComputePassDescriptor, { config, kernels, partials }: Trial, calls: readonly Call[]): void {
    const { bindGroups, traits } = this.#device;
    const { q, kv, results } = this.#ground!;
    const { out, lse } = results.buffers;
    const pass = encoder.beginComputePass({ label: 'tune', ...timed });
    for (const { plan, buffer } of calls) encodeDecode(pass, bindGroups, kernels, this.#shape, config, traits, plan, { q, out, lse, plan: buffer, partials, kv: [kv] });
    pass.end();
  }

  /** Milliseconds of a submission; of the pass in it whose descriptor `timed` is added to, where the device has timestamps. */
  async #timed(encode: (encoder: GPUCommandEncoder, timed: GPUComputePassDescriptor) => void): Promise<number> {
    await this.#timer.begin();
    const fault = this.#submit((encoder) => encode(encoder, this.#timer.pass()));
    const { ms } = await this.#timer.end();
    const refused = await fault;
    if (refused) throw refused;
    // Coarse timestamps may see nothing of a short call.
    return Math.max(ms, 1e-3);
  }

  /** Resolves to what the device says against it: nobody else is to hear of that. */
  #submit(encode: (encoder: GPUCommandEncoder) => void): Promise<MlaError | undefined> {
    const { gpu } = this.#device;
    return gpu.watch('tuning', () => {
      const encoder = gpu.device.createCommandEncoder({ label: 'tune' });
      encode(encoder);
      gpu.device.queue.submit([encoder.finish()]);
    }).fault;
  }

  #take(bytes: number): Promise<GPUBuffer> {
    return this.#granted(this.#device.memory.storage(bytes, 'tune'));
  }

  async #granted(allocation: Allocation): Promise<GPUBuffer> {
    this.#owned.push(allocation);
    const refused = await allocation.fault;
    if (refused) throw refused;
    this.#device.gpu.check();
    return allocation.buffer;
  }
}
