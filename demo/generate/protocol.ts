/** What the page and the worker that writes texts say to each other. */
import { MlaError, type MlaErrorData } from '../../src/errors.ts';
import type { MlaInfo } from '../../src/mla.ts';
import type { GenerateOptions } from '../../src/model/generate.ts';

/** Given by the page; never reused. */
export type TextId = number;

export type Sampling = Pick<GenerateOptions, 'temperature' | 'topK' | 'topP' | 'repetitionPenalty' | 'seed'> & { readonly maxTokens: number };

/** Where a model comes from. */
export type Origin =
  | { readonly kind: 'shipped'; readonly base: string }
  | { readonly kind: 'folder'; readonly files: readonly (readonly [path: string, file: File])[] }
  | { readonly kind: 'hub'; readonly name: string };

export interface LoadStep {
  readonly phase: 'fetching' | 'placing';
  readonly loaded: number;
  readonly total: number;
}

/** What there is to know of a loaded model. */
export interface ModelFacts {
  readonly name: string;
  readonly type: string;
  readonly layers: number;
  readonly heads: number;
  /** Routed experts a layer; 0: none. */
  readonly experts: number;
  readonly vocabSize: number;
  /** Most tokens of a text. */
  readonly context: number;
}

export type TextState = 'reading' | 'writing' | 'stopped' | 'done' | 'full' | 'failed';

/** What has changed of a text since the last update. */
export interface TextUpdate {
  readonly id: TextId;
  readonly delta: string;
  /** Written in all. */
  readonly tokens: number;
  readonly state: TextState;
  readonly error?: MlaErrorData | undefined;
}

/** Rows of a text in the cache. */
export interface TextTable {
  readonly id: TextId;
  readonly length: number;
  readonly blocks: Int32Array;
}

export interface CacheState {
  readonly numBlocks: number;
  readonly blockSize: number;
  readonly usedBlocks: number;
  readonly sharedBlocks: number;
  readonly usedBytes: number;
  /** Numbers of all heads' keys and values, to one number of the latent. */
  readonly timesPerHead: number;
  readonly tables: readonly TextTable[];
}

export interface SpeedState {
  /** Tokens a second of the last two seconds; undefined when nothing is written. */
  readonly now: number | undefined;
  /** Tokens a second over all the time in which something was written. */
  readonly mean: number | undefined;
  readonly tokens: number;
}

export interface Update {
  readonly texts: readonly TextUpdate[];
  readonly cache: CacheState;
  readonly speed: SpeedState;
}

export interface Listener {
  update(update: Update): unknown;
  loading(step: LoadStep): unknown;
  lost(message: string): unknown;
}

export interface Begun {
  readonly promptTokens: number;
  /** Tokens and text that a fork begins with. */
  readonly inherited: { readonly tokens: number; readonly text: string };
}

/** What the worker does on request. */
export interface WriterService {
  open(listener: Listener): Promise<Outcome<MlaInfo>>;
  /** In place of the model there is, once it has loaded. */
  load(origin: Origin): Promise<Outcome<ModelFacts>>;
  abortLoad(): void;
  begin(id: TextId, prompt: string, sampling: Sampling): Promise<Outcome<Begun>>;
  fork(id: TextId, from: TextId, sampling: Sampling): Promise<Outcome<Begun>>;
  stop(id: TextId): void;
  end(id: TextId): void;
  loseDevice(): void;
}

/** Errors keep their code across threads as data. */
export type Outcome<T> = { readonly value: T } | { readonly error: MlaErrorData };

export async function outcome<T>(run: () => T | Promise<T>): Promise<Outcome<T>> {
  try {
    return { value: await run() };
  } catch (error) {
    return { error: errorData(error) };
  }
}

export function errorData(error: unknown): MlaErrorData {
  return (error instanceof MlaError ? error : new MlaError('internal', error instanceof Error ? error.message : String(error))).toJSON();
}

/** @throws MlaError */
export function unwrap<T>(result: Outcome<T>): T {
  if ('error' in result) throw MlaError.fromJSON(result.error);
  return result.value;
}
