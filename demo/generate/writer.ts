/** The worker's side: one instance of the package, one model at a time, and the texts that it writes. */
import type { MlaInfo } from '../../src/mla.ts';
import { createMla, hubSource, loadModel, MlaError, type Mla, type Model, type ModelSource } from '../../src/index.ts';
import { filesSource } from '../../src/model/files-source.ts';
import { watchGpu, type WatchedGpu } from '../site/watched-gpu.ts';
import { SHIPPED_BYTES, shippedSource } from './model-cache.ts';
import { outcome, type Begun, type Listener, type LoadStep, type ModelFacts, type Origin, type Outcome, type Sampling, type TextId, type WriterService } from './protocol.ts';
import { Speed } from './speed.ts';
import { Texts } from './texts.ts';

/** Milliseconds between updates: often enough to look like streaming, seldom enough for a page that draws each. */
const PAUSE = 50;

export class Writer implements WriterService {
  #listener: Listener | undefined;
  #watched: WatchedGpu | undefined;
  #mla: Mla | undefined;
  #model: Model | undefined;
  #texts: Texts | undefined;
  #speed = new Speed();
  #loading: AbortController | undefined;
  /** An update is due. */
  #due = false;

  open(listener: Listener): Promise<Outcome<MlaInfo>> {
    this.#listener = listener;
    const gpu = navigator.gpu as GPU | undefined;
    this.#watched = gpu && watchGpu(gpu, (message) => listener.lost(message));
    return outcome(async () => {
      this.#mla = await createMla(this.#watched ? { gpu: this.#watched.gpu } : {});
      return this.#mla.info;
    });
  }

  load(origin: Origin): Promise<Outcome<ModelFacts>> {
    const loading = new AbortController();
    this.#loading = loading;
    const { signal } = loading;
    return outcome(async () => {
      const source = await this.#sourceOf(origin, signal);
      const model = await loadModel(this.#mla!, source, {
        signal, onProgress: ({ loadedBytes, totalBytes }) => this.#progress({ phase: 'placing', loaded: loadedBytes, total: totalBytes }),
      });
      this.#model?.destroy();
      this.#model = model;
      this.#speed = new Speed();
      const facts = factsOf(model, origin.kind === 'shipped' ? 'The model of this site' : source.name);
      this.#texts = new Texts(model, facts.context, this.#speed, () => this.#changed());
      // The page has the empty cache before it says that the model is ready.
      await this.#tell();
      return facts;
    });
  }

  abortLoad(): void {
    this.#loading?.abort();
  }

  begin(id: TextId, prompt: string, sampling: Sampling): Promise<Outcome<Begun>> {
    return outcome(() => this.#loaded().begin(id, prompt, sampling));
  }

  fork(id: TextId, from: TextId, sampling: Sampling): Promise<Outcome<Begun>> {
    return outcome(() => this.#loaded().fork(id, from, sampling));
  }

  stop(id: TextId): void {
    this.#texts?.stop(id);
  }

  end(id: TextId): void {
    this.#texts?.end(id);
  }

  loseDevice(): void {
    this.#watched?.lose();
  }

  #loaded(): Texts {
    if (!this.#texts) throw new MlaError('invalid-argument', 'no model is loaded');
    return this.#texts;
  }

  async #sourceOf(origin: Origin, signal: AbortSignal): Promise<ModelSource> {
    switch (origin.kind) {
      case 'shipped': return shippedSource(origin.base, { signal, onProgress: (loaded) => this.#progress({ phase: 'fetching', loaded, total: SHIPPED_BYTES }) });
      case 'folder': return filesSource(origin.files);
      case 'hub': return hubSource(origin.name);
    }
  }

  #progress(step: LoadStep): void {
    this.#listener?.loading(step);
  }

  /** Tells the page soon, and once for all that happens until then. */
  #changed(): void {
    if (this.#due) return;
    this.#due = true;
    setTimeout(() => {
      this.#due = false;
      void this.#tell();
    }, PAUSE);
  }

  /** Resolves once the page has it. */
  async #tell(): Promise<void> {
    await this.#listener?.update({ texts: this.#texts!.take(), cache: this.#texts!.cacheState(), speed: this.#speed.state(performance.now()) });
  }
}

function factsOf({ config, decoder: { cache } }: Model, name: string): ModelFacts {
  const { modelType, layers, heads, moe, vocabSize, maxPositionEmbeddings } = config;
  return { name, type: modelType, layers, heads, experts: moe?.experts ?? 0, vocabSize, context: Math.min(maxPositionEmbeddings, cache.numBlocks * cache.blockSize) };
}
