/** A model's tokenizer: `tokenizer.json`, read by @huggingface/tokenizers, and text that arrives token by token. */
import { Tokenizer as HfTokenizer } from '@huggingface/tokenizers';
import { MlaError } from '../errors.ts';
import { Fields } from './fields.ts';
import { readJson, type ModelSource } from './source.ts';

const FILE = 'tokenizer.json';
const CONFIG_FILE = 'tokenizer_config.json';

export class Tokenizer {
  /** Ids that it may give: below this. */
  readonly vocabSize: number;
  readonly #hf: HfTokenizer;
  readonly #bos: number | undefined;

  /**
   * @param json what `tokenizer.json` holds
   * @param config what `tokenizer_config.json` holds; {} where there is none
   * @throws MlaError invalid-file
   */
  constructor(json: unknown, config: unknown = {}) {
    const settings = new Fields(config, CONFIG_FILE);
    try {
      this.#hf = new HfTokenizer(json as object, config as object);
    } catch (cause) {
      throw new MlaError('invalid-file', `is not a tokenizer that can be read: ${(cause as Error).message}`, { argument: FILE, cause });
    }
    this.vocabSize = this.#hf.model!.vocab.length;
    // DeepSeek's files leave it to this setting, not to a post-processor.
    this.#bos = settings.flag('add_bos_token', false) ? this.idOf(tokenText(settings.raw('bos_token'))) : undefined;
  }

  /**
   * @param modelVocabSize the model's vocab_size
   * @throws MlaError invalid-file: missing, malformed, or made for another model; aborted
   */
  static async load(source: ModelSource, modelVocabSize: number, signal?: AbortSignal): Promise<Tokenizer> {
    const json = await readJson(source, FILE, signal);
    if (json === undefined) throw new MlaError('invalid-file', `there is no such file in ${source.name}`, { argument: FILE });
    const tokenizer = new Tokenizer(json, await readJson(source, CONFIG_FILE, signal) ?? {});
    if (tokenizer.vocabSize > modelVocabSize) {
      throw new MlaError('invalid-file', 'has tokens that the model does not know', {
        argument: FILE, expected: `at most ${modelVocabSize} (vocab_size)`, got: `${tokenizer.vocabSize}`, fix: 'Use the tokenizer that belongs to the model',
      });
    }
    return tokenizer;
  }

  /** Special tokens written out in `text` become their ids. @param special whether to begin with the tokens that texts begin with */
  encode(text: string, special = true): number[] {
    // A byte or character without a token has an undefined id, and is left out as in the original library.
    const ids = this.#hf.encode(text, { add_special_tokens: special }).ids.filter((id) => id !== undefined);
    return special && this.#bos !== undefined && ids[0] !== this.#bos ? [this.#bos, ...ids] : ids;
  }

  /** Ids that stand for no token are left out. @param special whether special tokens are written out */
  decode(ids: readonly number[], special = false): string {
    const known = ids.filter((id) => this.tokenOf(id) !== undefined);
    // Tidying spaces is no part of the text, and would change what has been streamed already.
    return known.length === 0 ? '' : this.#hf.decode(known, { skip_special_tokens: !special, clean_up_tokenization_spaces: false });
  }

  /** For text that arrives token by token. */
  stream(special = false): TextStream {
    return new TextStream((ids) => this.decode(ids, special));
  }

  idOf(token: string | undefined): number | undefined {
    return token === undefined ? undefined : this.#hf.token_to_id(token);
  }

  /** As the vocabulary spells it. */
  tokenOf(id: number): string | undefined {
    return this.#hf.id_to_token(id);
  }
}

/** What a character that is not complete yet decodes to. */
const INCOMPLETE = '\ufffd';

/**
 * Text from tokens, piece by piece: what `push` and `end` give, put together, is what all the ids decode to. A character whose
 * bytes are spread over tokens comes with the last of them.
 */
export class TextStream {
  readonly #decode: (ids: readonly number[]) => string;
  /** The last ids that gave complete characters, then those since: a decoder may treat the first of a text differently. */
  #ids: number[] = [];
  /** How many of them are complete. */
  #complete = 0;
  /** Characters of their text that have been given out. */
  #given = 0;

  constructor(decode: (ids: readonly number[]) => string) {
    this.#decode = decode;
  }

  /** The text that this token completes; may be empty. */
  push(id: number): string {
    this.#ids.push(id);
    const text = this.#decode(this.#ids);
    if (text.endsWith(INCOMPLETE)) return this.#give(text, text.length - INCOMPLETE.length);
    const piece = this.#give(text, text.length);
    const last = this.#ids.slice(this.#complete);
    const lastText = this.#decode(last);
    // Ids that say nothing, as special ones do, are no text that the next could be taken to continue.
    if (lastText !== '') {
      this.#ids = last;
      this.#given = lastText.length;
    }
    this.#complete = this.#ids.length;
    return piece;
  }

  /** What is left, complete or not; the stream starts anew. */
  end(): string {
    const text = this.#decode(this.#ids);
    const piece = this.#give(text, text.length);
    this.#ids = [];
    this.#complete = 0;
    this.#given = 0;
    return piece;
  }

  #give(text: string, to: number): string {
    const piece = text.slice(this.#given, to);
    this.#given = Math.max(this.#given, to);
    return piece;
  }
}

/** Special tokens are given as text or as an object that holds it. */
function tokenText(token: unknown): string | undefined {
  const text: unknown = typeof token === 'object' && token !== null ? (token as { content?: unknown }).content : token;
  return typeof text === 'string' ? text : undefined;
}
