/**
 * Times of one class of calls on the device, with memory of its own.
 *
 * A device's clocks rise and fall by a factor of five with how busy it was in the last second, and tuning itself does not keep it
 * busy. So each trial takes turns with the first one that could be measured, and what counts is how much longer it takes than that.
 */
import type { DecodeOp } from '../backend.ts';
import { encode16 } from '../bf16.ts';
import { MlaError } from '../errors.ts';
import { median } from '../median.ts';
import type { ScheduleInfo } from '../mla.ts';
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
import { TUNE_BLOCK, type TuneLoad } from './tune-load.ts';
import { HOPELESS } from './tune-search.ts';

export interface TuneDevice extends Machine {
  /** What is scheduled for without tuning. */
  readonly schedule: ScheduleInfo;
}

/** A batch of calls takes about so long: much past what timestamps resolve, little for whoever waits behind it. */
const BATCH_MS = 4;
const MOST_CALLS = 64;
/** Batches before those that count: the first says how long a call takes, the second runs warm. */
const WARM_UP = 2;
const SAMPLES = 3;
/** So long a GPU is kept busy before the first trial, where nobody else waits for it: clocks rise within that. */
const HEAT_MS = 400;
const TILE_BYTES = 1 << 20;
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
  readonly partials: GPUBuffer;
}

export class TuneBench {
  readonly #device: TuneDevice;
  readonly #shape: Pick<DecodeOp, 'sQ' | 'hQ' | 'hKv' | 'dQk' | 'dV' | 'dtype'>;
  readonly #load: TuneLoad;
  /** Awaited before each batch; rejects when there is to be no other. */
  readonly #turn: () => Promise<void>;
  readonly #timer: Timer;
  readonly #owned: Allocation[] = [];
  #fixed: { q: GPUBuffer; out: GPUBuffer; lse: GPUBuffer; kv: GPUBuffer } | undefined;
  /** The first trial that could be measured; the others' measure. */
  #first: { readonly trial: Trial; readonly ms: number } | undefined;

  constructor(device: TuneDevice, { rows, hKv, dQk, dV, dtype }: ShapeClass, load: TuneLoad, turn: () => Promise<void>) {
    this.#device = device;
    this.#shape = { sQ: 1, hQ: rows * hKv, hKv, dQk, dV, dtype };
    this.#load = load;
    this.#turn = turn;
    // Errors of others are others' to hear of.
    this.#timer = new Timer(device.gpu, device.memory, (work) => device.gpu.wait(work));
  }

  get timing(): 'device' | 'wall' {
    return this.#timer.onDevice ? 'device' : 'wall';
  }

  /** Takes memory and fills it. @throws MlaError out-of-memory, limit-exceeded, device-lost */
  async open(): Promise<void> {
    const { hQ, hKv, dQk, dV, dtype } = this.#shape;
    const b = this.#load.cacheSeqlens.length;
    const kvBytes = this.#load.numBlocks * TUNE_BLOCK * hKv * dQk * 2;
    const kv = await this.#take(kvBytes);
    const qBytes = b * hQ * dQk * 2;
    const q = await this.#take(qBytes);
    this.#fixed = { kv, q, out: await this.#take(b * hQ * dV * 2), lse: await this.#take(b * hQ * 4) };
    // A tile of random numbers goes over once; the device copies it.
    const tile = await this.#take(TILE_BYTES);
    await this.#turn();
    this.#device.gpu.device.queue.writeBuffer(tile, 0, randomTile(dtype));
    const refused = await this.#submit((encoder) => {
      for (const [buffer, bytes] of [[kv, kvBytes], [q, qBytes]] as const) {
        for (let at = 0; at < bytes; at += TILE_BYTES) encoder.copyBufferToBuffer(tile, 0, buffer, at, Math.min(TILE_BYTES, bytes - at));
      }
    });
    if (refused) throw refused;
  }

  /** Milliseconds of a warm call; undefined where it cannot be made. @throws MlaError out-of-memory, device-lost, destroyed */
  async probe(config: DecodeConfig, slots: number): Promise<number | undefined> {
    const trial = await this.#trial(config, slots);
    if (typeof trial === 'string') return undefined;
    await this.#batch(trial, 1);
    return this.#batch(trial, 1);
  }

  /**
   * Milliseconds of a trial's call, or why it was given up.
   * @param best the least so far
   * @throws MlaError out-of-memory, device-lost, destroyed
   */
  async measure(config: DecodeConfig, slots: number, best: number): Promise<number | string> {
    const mark = this.#owned.length;
    let keep = false;
    try {
      const trial = await this.#trial(config, slots);
      if (typeof trial === 'string') return trial;
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
      // The first call of a kernel takes longer than any after it.
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
    const { gpu, traits, schedule } = this.#device;
    const { hQ, hKv } = this.#shape;
    const { cacheSeqlens, maxBlocksPerSeq, blockTables } = this.#load;
    const metadata = getMlaMetadata(
      { cacheSeqlens, numQTokensPerHeadK: hQ / hKv, numHeadsK: hKv, blockSize: TUNE_BLOCK }, { ...schedule, slots, rowTiles: [config.rows] },
    );
    if (Math.max(...decodeGrid(this.#shape, config, metadata.parts), hQ) > traits.limits.maxComputeWorkgroupsPerDimension) return 'too large for one dispatch';
    const scratch = partialBytes(metadata.parts, this.#shape);
    if (scratch > bindingBytes(traits.limits)) return 'partial results larger than a binding';
    const kernels = await this.#compile(config);
    if (typeof kernels === 'string') return kernels;
    const op = {
      ...this.#shape, b: cacheSeqlens.length, blockSize: TUNE_BLOCK, maxBlocksPerSeq, metadata, softmaxScale: this.#shape.dQk ** -0.5, causal: false,
    };
    const calls: Call[] = [];
    for (const blockTable of blockTables) {
      const plan = makePlan(op, blockTable, takesAnyOrder(config));
      const buffer = await this.#take(plan.words.byteLength);
      gpu.device.queue.writeBuffer(buffer, 0, plan.words);
      calls.push({ plan, buffer });
    }
    return { config, kernels, calls, partials: await this.#take(scratch) };
  }

  /** @returns why the device refuses, if it does */
  async #compile(config: DecodeConfig): Promise<DecodeKernels<Kernel> | string> {
    const { kernels, traits } = this.#device;
    try {
      return await compileDecode(kernels, this.#shape, config, traits, ONE_BINDING);
    } catch (error) {
      if (error instanceof MlaError && error.code === 'internal') return error.message.split('\n', 1)[0]!;
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

  /** Milliseconds of `count` calls in a row. */
  async #batch({ config, kernels, calls, partials }: Trial, count: number): Promise<number> {
    await this.#turn();
    const { bindGroups, traits } = this.#device;
    const { kv, ...fixed } = this.#fixed!;
    await this.#timer.begin();
    const fault = this.#submit((encoder) => {
      const pass = encoder.beginComputePass({ label: 'tune', ...this.#timer.pass() });
      for (let i = 0; i < count; i++) {
        const { plan, buffer } = calls[i % calls.length]!;
        encodeDecode(pass, bindGroups, kernels, this.#shape, config, traits, plan, { ...fixed, plan: buffer, partials, kv: [kv] });
      }
      pass.end();
    });
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

  async #take(bytes: number): Promise<GPUBuffer> {
    const allocation = this.#device.memory.storage(bytes, 'tune');
    this.#owned.push(allocation);
    const refused = await allocation.fault;
    if (refused) throw refused;
    this.#device.gpu.check();
    return allocation.buffer;
  }
}

/** Small numbers of both signs, the same every time. */
function randomTile(dtype: 'bf16' | 'f16'): Uint16Array<ArrayBuffer> {
  const bits = new Uint16Array(TILE_BYTES / 2);
  let state = 1;
  encode16(dtype, Float32Array.from(bits, () => {
    state = (Math.imul(state, 1664525) + 1013904223) | 0;
    return state / 2 ** 33;
  }), bits);
  return bits;
}
