/**
 * A text that a model writes and that stays in the cache after it has ended, so that it can be forked: both then share the blocks
 * of what they have in common.
 */
import type { SequenceId } from '../mla.ts';
import type { Engine } from './engine.ts';
import { piecesOf, requestOf, type GenerateOptions, type TextTokenizer } from './generate.ts';
import { StopStrings } from './stop-strings.ts';
import type { TokenStream } from './token-stream.ts';

/** What texts of one model have in common. */
export interface TextWriter {
  readonly engine: Engine;
  readonly tokenizer: TextTokenizer;
  readonly eos: ReadonlySet<number>;
}

/** Pieces of text as they come, for one reader. Leaving the loop is `stop`. */
export class ModelText implements AsyncIterable<string> {
  /** Tokens of the prompt, in front of those that were written. */
  readonly promptTokens: number;
  /** What was written before the first piece: that of the text it is a fork of. */
  readonly inherited: string;
  readonly #writer: TextWriter;
  readonly #tokens: TokenStream;
  readonly #pieces: AsyncGenerator<string, void, undefined>;

  private constructor(writer: TextWriter, promptTokens: number, tokens: TokenStream, { stop = [], onToken }: GenerateOptions) {
    this.#writer = writer;
    this.#tokens = tokens;
    this.promptTokens = promptTokens;
    const stream = writer.tokenizer.stream();
    this.inherited = tokens.tokens.slice(promptTokens).map((id) => stream.push(id)).join('');
    this.#pieces = piecesOf(tokens, stream, new StopStrings(stop), onToken);
  }

  /** @throws MlaError invalid-argument, pool-exhausted, aborted; from the loop also device-lost */
  static begin(writer: TextWriter, prompt: string, options: GenerateOptions = {}): ModelText {
    const request = { ...requestOf(writer.eos, options), keep: true };
    const tokens = writer.engine.generate(writer.tokenizer.encode(prompt), request);
    return new ModelText(writer, tokens.tokens.length, tokens, options);
  }

  /** Its sequence in the model's cache, until it is ended or fails. */
  get sequence(): SequenceId {
    return this.#tokens.sequence;
  }

  /** Ids of the prompt and of what was written. */
  get tokens(): readonly number[] {
    return this.#tokens.tokens;
  }

  /** Another text that goes on from where this one is now. @throws as `begin` */
  fork(options: GenerateOptions = {}): ModelText {
    return new ModelText(this.#writer, this.promptTokens, this.#writer.engine.fork(this.#tokens, { ...requestOf(this.#writer.eos, options), keep: true }), options);
  }

  /** Writes no more; stays in the cache. Idempotent. */
  stop(): void {
    void this.#tokens.return();
  }

  /** Stops, and gives its blocks back. Idempotent. */
  end(): void {
    this.#writer.engine.free(this.#tokens);
  }

  [Symbol.asyncIterator](): AsyncGenerator<string, void, undefined> {
    return this.#pieces;
  }
}
