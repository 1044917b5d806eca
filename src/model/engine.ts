/**
 * Continuous batching: requests join and leave at any step. Each step takes a token of every running request and a chunk of
 * one prompt; requests whose prompts begin alike share the blocks of what they have in common.
 */
import { MlaError } from '../errors.ts';
import type { PagedKvCache, SequenceId } from '../mla.ts';
import { seededRandom } from '../random.ts';
import type { StepEntry } from './step-plan.ts';
import { TokenStream } from './token-stream.ts';

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
  /** Whether its rows stay in the cache when it ends without an error, until `free`: what begins like it shares them. */
  readonly keep?: boolean;
  readonly signal?: AbortSignal | undefined;
}

interface Request {
  readonly tokens: number[];
  readonly promptLength: number;
  readonly sequence: SequenceId;
  readonly options: RequestOptions;
  readonly random: () => number;
  /** The next token's random number, once drawn: a step that is planned again takes the same. */
  drawn: number | undefined;
  /** Tokens whose rows are in the cache. */
  written: number;
  readonly out: TokenStream;
  readonly onAbort: () => void;
}

/** Fewest tokens in common that are worth a fork. */
const SHARED_LEAST = 16;

export class Engine {
  readonly #runner: StepRunner;
  readonly #chunk: number;
  #requests: Request[] = [];
  /** Those that ended and stay in the cache. */
  #kept: Request[] = [];
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
  generate(prompt: readonly number[], options: RequestOptions): TokenStream {
    if (prompt.length === 0) throw new MlaError('invalid-argument', 'empty prompt', { argument: 'prompt', expected: 'at least one token', got: 'none' });
    checkPrompt(prompt.length, this.#runner.cache);
    return this.#begin(prompt, options, SHARED_LEAST);
  }

  /** A request that goes on from where another one is now, and shares its rows. @throws as `generate` */
  fork({ tokens }: TokenStream, options: RequestOptions): TokenStream {
    return this.#begin(tokens, options, 1);
  }

  /** Ends a request, and frees what it keeps in the cache. Idempotent. */
  free(stream: TokenStream): void {
    void stream.return();
    const kept = this.#kept.find(({ out }) => out === stream);
    if (!kept) return;
    this.#kept = this.#kept.filter((request) => request !== kept);
    this.#runner.cache.free(kept.sequence);
  }

  /** Ends all requests and frees what they keep. */
  destroy(error: MlaError = new MlaError('destroyed', 'this decoder was destroyed')): void {
    this.#ended = error;
    for (const request of this.#requests) this.#close(request, error);
    for (const { out } of this.#kept) this.free(out);
  }

  #begin(prompt: readonly number[], options: RequestOptions, sharedLeast: number): TokenStream {
    if (this.#ended) throw this.#ended;
    if (options.signal?.aborted) throw aborted();
    const { sequence, written } = this.#open(prompt, sharedLeast);
    const tokens = [...prompt];
    const out = new TokenStream(sequence, tokens, () => this.#close(request));
    const request: Request = {
      tokens, promptLength: prompt.length, sequence, options, random: seededRandom(options.seed ?? 0), drawn: undefined, written, out, onAbort: () => this.#close(request, aborted()),
    };
    this.#requests.push(request);
    options.signal?.addEventListener('abort', request.onAbort);
    if (!this.#running) void this.#run();
    return out;
  }

  /** A sequence for a prompt, with what it has in common with one in the cache already there. */
  #open(prompt: readonly number[], sharedLeast: number): { sequence: SequenceId; written: number } {
    const { cache } = this.#runner;
    let best: Request | undefined;
    let common = sharedLeast - 1;
    for (const request of [...this.#requests, ...this.#kept]) {
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
    if (request.options.keep && !error) this.#kept.push(request);
    else this.#runner.cache.free(request.sequence);
    request.out.finish(error);
  }

  /** Steps until nobody is left. Never rejects. */
  async #run(): Promise<void> {
    this.#running = true;
    try {
      while (this.#requests.length > 0) {
        await turn();
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
      request.written += entries[i]!.ids.length;
      // Left while the step was under way.
      if (!this.#requests.includes(request)) return;
      const id = chosen[i];
      if (id === undefined) return;
      request.drawn = undefined;
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

function sampleRequest(request: Request): SampleRequest {
  const { temperature = 0, topK = 0, topP = 1, repetitionPenalty = 1 } = request.options;
  return { temperature, topK, topP, repetitionPenalty, random: (request.drawn ??= request.random()), seen: request.tokens };
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

/** A turn of the event loop for whoever is waiting to join or to leave: a backend that computes in this thread leaves them none. */
function turn(): Promise<void> {
  return new Promise((resolve) => {
    const { port1, port2 } = new MessageChannel();
    port1.onmessage = () => {
      port1.close();
      resolve();
    };
    port2.postMessage(undefined);
  });
}
