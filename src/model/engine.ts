/**
 * Continuous batching: requests join and leave at any step. Each step takes a token of every running request and a chunk of
 * one prompt; requests whose prompts begin alike share the blocks of what they have in common.
 */
import { MlaError } from '../errors.ts';
import type { PagedKvCache, SequenceId } from '../mla.ts';
import { seededRandom } from './random.ts';
import type { StepEntry } from './step-plan.ts';

/** How tokens are chosen. */
export interface Sampling {
  /** 0 (default): always the most likely token. */
  readonly temperature?: number;
  /** Only the k most likely; 0 (default): all. */
  readonly topK?: number;
  /** Only the most likely that together have this probability; 1 (default): all. */
  readonly topP?: number;
  /** Above 1 makes tokens that came already less likely; 1 when absent. */
  readonly repetitionPenalty?: number;
  /** Of the random numbers; 0 when absent. */
  readonly seed?: number;
}

/** What a step is asked of an entry's last token. */
export interface SampleRequest {
  readonly temperature: number;
  readonly topK: number;
  readonly topP: number;
  readonly repetitionPenalty: number;
  readonly random: number;
  /** Tokens so far, for the penalty. */
  readonly seen: readonly number[];
}

/** A decoder, as the engine sees it. */
export interface StepRunner {
  readonly cache: PagedKvCache;
  readonly maxTokens: number;
  /** Runs the tokens and returns the chosen id of each entry that has a request. @throws MlaError pool-exhausted before anything is changed */
  step(entries: readonly StepEntry[], requests: readonly (SampleRequest | undefined)[]): Promise<(number | undefined)[]>;
}

export interface RequestOptions extends Sampling {
  readonly maxTokens: number;
  /** Tokens that end it; they are not given out. */
  readonly eos: ReadonlySet<number>;
  readonly signal?: AbortSignal | undefined;
}

interface Request {
  readonly id: number;
  readonly tokens: number[];
  readonly promptLength: number;
  readonly sequence: SequenceId;
  readonly options: RequestOptions;
  readonly random: () => number;
  /** Tokens whose rows are in the cache. */
  written: number;
  readonly out: Channel<number>;
  readonly onAbort: () => void;
}

/** Fewest tokens in common that are worth a fork. */
const SHARED_LEAST = 16;

export class Engine {
  readonly #runner: StepRunner;
  readonly #chunk: number;
  #requests: Request[] = [];
  #nextId = 0;
  #running = false;
  #ended: MlaError | undefined;

  /** @param chunk most prompt tokens a step */
  constructor(runner: StepRunner, chunk: number) {
    this.#runner = runner;
    this.#chunk = chunk;
  }

  get active(): number {
    return this.#requests.length;
  }

  /** Token ids as they come. @throws MlaError (from the iterator) pool-exhausted, aborted, device-lost */
  generate(prompt: readonly number[], options: RequestOptions): AsyncIterableIterator<number> {
    if (this.#ended) throw this.#ended;
    if (prompt.length === 0) throw new MlaError('invalid-argument', 'empty prompt', { argument: 'prompt', expected: 'at least one token', got: 'none' });
    checkPrompt(prompt.length, this.#runner.cache);
    if (options.signal?.aborted) throw aborted();
    const { sequence, written } = this.#open(prompt);
    const request: Request = {
      id: this.#nextId++, tokens: [...prompt], promptLength: prompt.length, sequence, options, random: seededRandom(options.seed ?? 0), written,
      out: new Channel(() => this.#close(request)), onAbort: () => this.#close(request, aborted()),
    };
    this.#requests.push(request);
    options.signal?.addEventListener('abort', request.onAbort);
    if (!this.#running) void this.#run();
    return request.out;
  }

  /** Ends all requests. */
  destroy(error: MlaError = new MlaError('destroyed', 'this decoder was destroyed')): void {
    this.#ended = error;
    for (const request of this.#requests) this.#close(request, error);
  }

  /** A sequence for a prompt, with what it has in common with a running one already there. */
  #open(prompt: readonly number[]): { sequence: SequenceId; written: number } {
    const { cache } = this.#runner;
    let best: Request | undefined;
    let common = SHARED_LEAST - 1;
    for (const request of this.#requests) {
      // The last token is computed in any case: its logits are wanted.
      const most = Math.min(request.written, prompt.length - 1);
      let n = 0;
      while (n < most && request.tokens[n] === prompt[n]) n++;
      if (n > common) {
        common = n;
        best = request;
      }
    }
    if (!best) return { sequence: cache.createSequence(), written: 0 };
    const sequence = cache.fork(best.sequence);
    cache.truncate(sequence, common);
    return { sequence, written: common };
  }

  /** Ends a request, if it has not ended: with an error where there is one. */
  #close(request: Request, error?: MlaError): void {
    if (!this.#requests.includes(request)) return;
    this.#requests = this.#requests.filter((r) => r !== request);
    request.options.signal?.removeEventListener('abort', request.onAbort);
    this.#runner.cache.free(request.sequence);
    request.out.finish(error);
  }

  /** Steps until nobody is left. Never rejects. */
  async #run(): Promise<void> {
    this.#running = true;
    try {
      while (this.#requests.length > 0) {
        // A turn for whoever is waiting: to join, to leave.
        await Promise.resolve();
        await this.#step();
      }
    } catch (cause) {
      const error = cause instanceof MlaError ? cause : new MlaError('internal', (cause as Error).message, { cause });
      for (const request of this.#requests) this.#close(request, error);
    } finally {
      this.#running = false;
      if (this.#requests.length > 0) void this.#run();
    }
  }

  async #step(): Promise<void> {
    const { work, entries, requests } = this.#plan();
    if (work.length === 0) return;
    let chosen: (number | undefined)[];
    try {
      chosen = await this.#runner.step(entries, requests);
    } catch (error) {
      if (!(error instanceof MlaError) || error.code !== 'pool-exhausted') throw error;
      // The request that came last gives way; alone, it does not fit at all.
      this.#close(this.#requests[this.#requests.length - 1]!, error);
      return;
    }
    work.forEach((request, i) => {
      // Left while the step was under way: its blocks are free already.
      if (!this.#requests.includes(request)) return;
      request.written += entries[i]!.ids.length;
      const id = chosen[i];
      if (id === undefined) return;
      if (request.options.eos.has(id)) {
        this.#close(request);
        return;
      }
      request.tokens.push(id);
      request.out.push(id);
      if (request.tokens.length - request.promptLength >= request.options.maxTokens) this.#close(request);
    });
  }

  #plan(): { work: Request[]; entries: StepEntry[]; requests: (SampleRequest | undefined)[] } {
    const work: Request[] = [];
    const entries: StepEntry[] = [];
    const requests: (SampleRequest | undefined)[] = [];
    let room = this.#runner.maxTokens;
    let prompt = false;
    for (const request of this.#requests) {
      const left = request.tokens.length - request.written;
      if (room === 0 || (left > 1 && prompt)) continue;
      const count = Math.min(left, left > 1 ? this.#chunk : 1, room);
      prompt ||= left > 1;
      room -= count;
      work.push(request);
      entries.push({ sequence: request.sequence, ids: request.tokens.slice(request.written, request.written + count) });
      requests.push(count === left ? sampleRequest(request) : undefined);
    }
    return { work, entries, requests };
  }
}

function sampleRequest({ options: { temperature = 0, topK = 0, topP = 1, repetitionPenalty = 1 }, random, tokens }: Request): SampleRequest {
  return { temperature, topK, topP, repetitionPenalty, random: random(), seen: tokens };
}

function checkPrompt(length: number, { numBlocks, blockSize }: PagedKvCache): void {
  const most = numBlocks * blockSize;
  if (length > most) {
    throw new MlaError('pool-exhausted', 'prompt longer than the cache', { argument: 'prompt', expected: `at most ${most} tokens`, got: String(length), fix: 'Make the cache larger or the prompt shorter' });
  }
}

function aborted(): MlaError {
  return new MlaError('aborted', 'generation was aborted', { argument: 'signal' });
}

/** Values from one side to an async iterator on the other. Leaving the iterator calls `onReturn`. */
class Channel<T> implements AsyncIterableIterator<T> {
  readonly #values: T[] = [];
  readonly #waiting: { resolve: (result: IteratorResult<T>) => void; reject: (error: Error) => void }[] = [];
  readonly #onReturn: () => void;
  #done = false;
  #error: Error | undefined;

  constructor(onReturn: () => void) {
    this.#onReturn = onReturn;
  }

  push(value: T): void {
    if (this.#done) return;
    const waiting = this.#waiting.shift();
    if (waiting) waiting.resolve({ value, done: false });
    else this.#values.push(value);
  }

  /** No more values: the end, or an error once those that came are taken. */
  finish(error?: Error): void {
    if (this.#done) return;
    this.#done = true;
    this.#error = error;
    for (const { resolve, reject } of this.#waiting.splice(0)) {
      if (error) reject(error);
      else resolve({ value: undefined, done: true });
      this.#error = undefined;
    }
  }

  next(): Promise<IteratorResult<T>> {
    if (this.#values.length > 0) return Promise.resolve({ value: this.#values.shift()!, done: false });
    if (this.#done) {
      const error = this.#error;
      this.#error = undefined;
      return error ? Promise.reject(error) : Promise.resolve({ value: undefined, done: true });
    }
    return new Promise((resolve, reject) => this.#waiting.push({ resolve, reject }));
  }

  return(): Promise<IteratorResult<T>> {
    this.#values.length = 0;
    this.finish();
    this.#onReturn();
    return Promise.resolve({ value: undefined, done: true });
  }

  [Symbol.asyncIterator](): this {
    return this;
  }
}
