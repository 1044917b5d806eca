/** Text in, text out, as it comes: a tokenizer around the engine, with stop strings. */
import { MlaError, describe } from '../errors.ts';
import type { Engine, RequestOptions, Sampling } from './engine.ts';
import { StopStrings } from './stop-strings.ts';

/** What generation needs of a tokenizer. */
export interface TextTokenizer {
  /** Ids of a prompt, with the special tokens that texts of the model begin with. */
  encode(text: string): readonly number[];
  /** Text of ids one after the other; holds back characters that are not complete. */
  stream(): { push(id: number): string; end(): string };
}

export interface GenerateOptions extends Sampling {
  /** 256 when absent. */
  readonly maxTokens?: number;
  /** Texts that end it; they are not given out. */
  readonly stop?: readonly string[];
  readonly signal?: AbortSignal;
  /** Told of every token. */
  readonly onToken?: (id: number) => void;
}

/**
 * Pieces of text as tokens are chosen. Leaving the loop ends the request and frees its blocks.
 * @throws MlaError invalid-argument, pool-exhausted, aborted, device-lost
 */
export async function* generateText(engine: Engine, tokenizer: TextTokenizer, eos: ReadonlySet<number>, prompt: string, options: GenerateOptions = {}): AsyncGenerator<string, void, undefined> {
  const request = requestOf(eos, options);
  const { stop = [], onToken } = options;
  yield* piecesOf(engine.generate(tokenizer.encode(prompt), request), tokenizer.stream(), new StopStrings(stop), onToken);
}

/** What the engine is asked for. @throws MlaError invalid-argument */
export function requestOf(eos: ReadonlySet<number>, options: GenerateOptions): RequestOptions {
  const { maxTokens = 256, stop: _stop, onToken: _onToken, ...rest } = options;
  checkGenerateOptions(options);
  return { ...rest, maxTokens, eos };
}

/** What tokens say, up to the first stop string. */
export async function* piecesOf(tokens: AsyncIterable<number>, text: ReturnType<TextTokenizer['stream']>, stops: StopStrings, onToken?: (id: number) => void): AsyncGenerator<string, void, undefined> {
  for await (const id of tokens) {
    onToken?.(id);
    const { text: piece, stopped } = stops.push(text.push(id));
    if (piece !== '') yield piece;
    if (stopped) return;
  }
  const { text: piece, stopped } = stops.push(text.end());
  const rest = stopped ? piece : piece + stops.end();
  if (rest !== '') yield rest;
}

/** @param argument what errors call an option. @throws MlaError invalid-argument */
export function checkGenerateOptions(options: GenerateOptions, argument: (name: keyof GenerateOptions) => string = (name) => name): void {
  const refuse = (name: keyof GenerateOptions, expected: string, got: unknown): never => {
    throw new MlaError('invalid-argument', 'out of range', { argument: argument(name), expected, got: describe(got) });
  };
  const { maxTokens = 1, temperature = 0, topK = 0, topP = 1, repetitionPenalty = 1, seed = 0, stop = [] } = options;
  if (!Number.isSafeInteger(maxTokens) || maxTokens < 1) refuse('maxTokens', 'an integer >= 1', maxTokens);
  if (!(Number.isFinite(temperature) && temperature >= 0)) refuse('temperature', 'a number >= 0', temperature);
  if (!Number.isSafeInteger(topK) || topK < 0) refuse('topK', 'an integer >= 0', topK);
  if (!(topP > 0 && topP <= 1)) refuse('topP', 'a number above 0, up to 1', topP);
  if (!(Number.isFinite(repetitionPenalty) && repetitionPenalty > 0)) refuse('repetitionPenalty', 'a number above 0', repetitionPenalty);
  if (!Number.isSafeInteger(seed)) refuse('seed', 'an integer', seed);
  if (!Array.isArray(stop) || stop.some((s) => typeof s !== 'string')) refuse('stop', 'strings', stop);
}
