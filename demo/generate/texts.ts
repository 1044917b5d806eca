/** The texts of one model, in the worker: each is read as it is written, and what has changed is kept for the next update. */
import type { PagedKvCache } from '../../src/mla.ts';
import type { Model } from '../../src/model/model.ts';
import type { ModelText } from '../../src/model/model-text.ts';
import { MlaError } from '../../src/errors.ts';
import { errorData, type Begun, type CacheState, type Sampling, type TextId, type TextState, type TextUpdate } from './protocol.ts';
import type { Speed } from './speed.ts';

interface Entry {
  readonly id: TextId;
  readonly text: ModelText;
  /** Written tokens at which the model's context is full. */
  readonly room: number;
  state: TextState;
  /** Not told yet. */
  delta: string;
  tokens: number;
}

export class Texts {
  readonly #model: Model;
  readonly #context: number;
  readonly #speed: Speed;
  readonly #changed: () => void;
  readonly #entries = new Map<TextId, Entry>();
  #updates = new Map<TextId, TextUpdate>();

  /** @param changed told whenever there is something to take */
  constructor(model: Model, context: number, speed: Speed, changed: () => void) {
    this.#model = model;
    this.#context = context;
    this.#speed = speed;
    this.#changed = changed;
  }

  /** @throws MlaError */
  begin(id: TextId, prompt: string, sampling: Sampling): Begun {
    const promptTokens = this.#model.tokenizer.encode(prompt).length;
    const room = this.#room(promptTokens, 0);
    return this.#add(id, room, (options) => this.#model.begin(prompt, options), sampling);
  }

  /** @throws MlaError */
  fork(id: TextId, from: TextId, sampling: Sampling): Begun {
    const parent = this.#entries.get(from);
    if (!parent) throw new MlaError('out-of-range', 'that text has ended', { argument: 'from' });
    const { promptTokens, tokens } = parent.text;
    return this.#add(id, this.#room(promptTokens, tokens.length - promptTokens), (options) => parent.text.fork(options), sampling);
  }

  stop(id: TextId): void {
    const entry = this.#entries.get(id);
    if (!entry || !isLive(entry)) return;
    entry.state = 'stopped';
    entry.text.stop();
    this.#tell(entry);
  }

  end(id: TextId): void {
    const entry = this.#entries.get(id);
    if (!entry) return;
    this.#entries.delete(id);
    this.#updates.delete(id);
    entry.text.end();
    this.#tellSpeed();
    this.#changed();
  }

  /** What has changed since the last call. */
  take(): TextUpdate[] {
    const updates = [...this.#updates.values()];
    this.#updates = new Map();
    for (const { id } of updates) {
      const entry = this.#entries.get(id);
      if (entry) entry.delta = '';
    }
    return updates;
  }

  cacheState(): CacheState {
    const { info, decoder: { cache } } = this.#model;
    const { numBlocks, usedBlocks, sharedBlocks, usedBytes } = cache.stats();
    return { numBlocks, blockSize: cache.blockSize, usedBlocks, sharedBlocks, usedBytes, timesPerHead: info.cacheRatio, tables: this.#tables(cache) };
  }

  #tables(cache: PagedKvCache): CacheState['tables'] {
    return [...this.#entries.values()].filter(({ state }) => state !== 'failed').map(({ id, text: { sequence } }) => ({ id, length: cache.length(sequence), blocks: cache.blocks(sequence) }));
  }

  /** @throws MlaError: the context is full */
  #room(promptTokens: number, written: number): number {
    const room = this.#context - promptTokens - written;
    if (room < 1) throw new MlaError('limit-exceeded', 'the text fills the model’s context', { argument: 'prompt', expected: `fewer than ${this.#context} tokens`, got: String(promptTokens + written) });
    return room;
  }

  #add(id: TextId, room: number, begin: (options: Sampling & { onToken: () => void }) => ModelText, sampling: Sampling): Begun {
    const onToken = (): void => {
      this.#speed.token(performance.now());
      entry.tokens++;
      if (entry.state === 'reading') entry.state = 'writing';
    };
    const text = begin({ ...sampling, maxTokens: Math.min(sampling.maxTokens, room), onToken });
    const inherited = { tokens: text.tokens.length - text.promptTokens, text: text.inherited };
    const entry: Entry = { id, text, room, state: 'reading', delta: '', tokens: 0 };
    this.#entries.set(id, entry);
    this.#tell(entry);
    void this.#read(entry);
    return { promptTokens: text.promptTokens, inherited };
  }

  async #read(entry: Entry): Promise<void> {
    try {
      for await (const piece of entry.text) {
        entry.delta += piece;
        this.#tell(entry);
      }
      if (isLive(entry)) entry.state = entry.tokens >= entry.room ? 'full' : 'done';
      this.#tell(entry);
    } catch (error) {
      entry.state = 'failed';
      this.#tell(entry, error);
    }
  }

  #tell(entry: Entry, error?: unknown): void {
    this.#tellSpeed();
    if (!this.#entries.has(entry.id)) return;
    const { id, delta, tokens, state } = entry;
    this.#updates.set(id, { id, delta, tokens, state, ...(error !== undefined && { error: errorData(error) }) });
    this.#changed();
  }

  #tellSpeed(): void {
    this.#speed.setWriting([...this.#entries.values()].some(isLive), performance.now());
  }
}

function isLive({ state }: Entry): boolean {
  return state === 'reading' || state === 'writing';
}
