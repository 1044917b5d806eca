/**
 * Chooses kernel configurations by measuring them: on first use, in the background, or when asked; once a device and class
 * of calls, because the choice is remembered.
 */
import type { TuneOp } from '../backend.ts';
import { MlaError } from '../errors.ts';
import type { TuneChoice, TunedSchedule, TuneReport } from '../mla.ts';
import { Owed } from '../owed.ts';
import { partsTarget } from '../schedule.ts';
import { parseShapeClass, shapeClass, type ShapeClass } from '../shape-class.ts';
import type { Remembered, TuneStore } from '../tune-store.ts';
import { decodeCandidates, type Candidates, type DecodeConfig, type Segmentation } from './config.ts';
import { compileDecode } from './dispatch.ts';
import { TuneBench, type TuneDevice } from './tune-bench.ts';
import { WRONG } from './tune-check.ts';
import { TuneData } from './tune-data.ts';
import { CALL_MS, PROBE_TOKENS, TUNE_BLOCK, loadCost, nextProbe, tokensWithin, tuneLoad, type TuneLoad } from './tune-load.ts';
import type { TuneMode } from './tune-mode.ts';
import { search, slotLadder, type Search } from './tune-search.ts';
import { TuneSite, pause, withTurn, type Turn } from './tune-turn.ts';

/** Work of others that the background gives way to: a batch starts when the device has been left alone for so long, */
const QUIET_MS = 20;
/** or when it has waited for so long: a few milliseconds of a busy device's time, a few times a second. */
const PATIENCE_MS = 250;
const GLANCE_MS = 10;
/** Calls of more rows, such as a prompt's chunks, come in as many classes as they have lengths: measured when somebody asks. */
const MOST_ROWS = 1024;
/** So often a call is made that seems to say that the device is too slow for the background. */
const PROBES = 3;
/** Long: a timer that only keeps the program, and is to wake nobody. */
const HOLD_MS = 1 << 30;

interface Known {
  readonly shape: ShapeClass;
  readonly choice: TuneChoice;
  readonly config: DecodeConfig;
  /** Where it is remembered, or why nowhere. */
  readonly note: string;
}

export interface TunerOptions {
  readonly device: TuneDevice;
  readonly mode: TuneMode;
  readonly store: TuneStore;
  /** What of the store is this device's. */
  readonly prefix: string;
  /** The device's name: instances of one measure one after the other. */
  readonly site: string;
  /** Told of every new choice. */
  readonly onChange: () => void;
  /** Told of every configuration whose results were wrong where another one's were right, and of what was. */
  readonly onWrong?: (config: string, why: string) => void;
}

export class Tuner {
  readonly #options: TunerOptions;
  readonly #known = new Map<string, Known>();
  /** Classes that the background has taken up, whatever came of it. */
  readonly #begun = new Set<string>();
  /** Configurations whose results were wrong, now or in what is remembered, and what was wrong. */
  readonly #wrong = new Map<string, string>();
  readonly #site: TuneSite;
  /** Ends with this instance: what is asked of it may be others' turn. */
  readonly #owed = new Owed();
  #lastBatch = 0;
  #lastCall = 0;
  /** Measurements of the caller's that are under way. */
  #timing = 0;
  #cancelled = false;
  /** What kept the background from tuning, if anything did. */
  note: string | undefined;

  constructor(options: TunerOptions) {
    this.#options = options;
    this.#site = TuneSite.of(options.site);
  }

  /** Reads what is remembered. Configurations that are no more, or do not fit, and more slots than are ever tried count as not remembered. */
  async load(): Promise<void> {
    for (const known of await this.#remembered()) this.#learn(known);
  }

  async #remembered(): Promise<Known[]> {
    const { mode, store, prefix, device } = this.#options;
    if (mode === 'off') return [];
    const ours = [...(await store.load())].filter(([key]) => key.startsWith(prefix));
    for (const [, { wrong = {} }] of ours) this.#refuse(Object.entries(wrong));
    return ours.flatMap(([key, { config: named, slots, ms }]) => {
      const shape = parseShapeClass(key.slice(prefix.length));
      const choice = { config: named, slots, ms };
      const config = shape && this.#candidates(shape).fits.find((fit) => fit.key === choice.config);
      return config && choice.slots <= Math.max(...slotLadder(device.schedule.slots)) ? [{ shape, choice, config, note: `remembered in ${store.place}` }] : [];
    });
  }

  /** What another instance, here or elsewhere, has found of a class since this one looked. */
  async #recall(name: string, kv?: Segmentation): Promise<Known | undefined> {
    const found = (await this.#remembered()).find(({ shape }) => shapeClass(shape) === name);
    if (found && kv) await this.#compile(found, kv);
    this.#check();
    if (found) this.#learn(found);
    return found;
  }

  /** The caller's cache may be laid out otherwise than the tuner's: its next step must not wait for a compiler. */
  async #compile({ shape, config }: Pick<Known, 'shape' | 'config'>, kv: Segmentation): Promise<void> {
    const { kernels, traits } = this.#options.device;
    await compileDecode(kernels, shape, config, traits, kv);
  }

  /** What is known of classes that they were best for is known no more. */
  #refuse(wrong: readonly (readonly [config: string, why: string])[]): void {
    for (const [config, why] of wrong) {
      if (this.#wrong.has(config)) continue;
      this.#wrong.set(config, why);
      for (const [name, known] of this.#known) {
        if (known.choice.config !== config) continue;
        this.#known.delete(name);
        this.#begun.delete(name);
      }
      this.#options.onWrong?.(config, why);
      this.#options.onChange();
    }
  }

  /** The configuration to use for a class of calls where one is known to be best. */
  config(shape: ShapeClass): DecodeConfig | undefined {
    return this.#known.get(shapeClass(shape))?.config;
  }

  /** What is known, for the scheduler. Of classes that differ only in what it does not know the first counts. */
  schedules(): TunedSchedule[] {
    return [...this.#known.values()].map(({ shape, choice, config }) => ({
      rows: shape.rows, numHeadsK: shape.hKv, load: shape.load, slots: choice.slots, rowTile: config.rows, tokens: config.tokens,
    }));
  }

  /** Tells of a decode call that has been enqueued, on a cache laid out as `kv`. Never throws, never waits. */
  called(shape: ShapeClass, kv: Segmentation): void {
    this.#lastCall = performance.now();
    if (this.#options.mode !== 'auto' || shape.rows > MOST_ROWS) return;
    const name = shapeClass(shape);
    if (this.#begun.has(name) || this.#known.has(name)) return;
    this.#begun.add(name);
    const tell = (note: string): void => {
      if (this.#cancelled) return;
      this.note = note;
      this.#options.onChange();
    };
    this.#site.inTurn(() => this.#measureBehind(shape, kv)).then(
      (report) => {
        const wrong = report?.trials.find(({ refused }) => refused?.startsWith(WRONG));
        if (wrong) tell(`${name}: ${wrong.config} was refused: ${wrong.refused}`);
      },
      (error: unknown) => tell(`${name} was not tuned: ${(error as Error).message}`),
    );
  }

  /** @throws MlaError out-of-memory, device-lost, destroyed */
  async tune({ again, ...shape }: TuneOp): Promise<TuneReport> {
    const name = shapeClass(shape);
    this.#site.asked++;
    // What the background waits with keeps no program from ending; but now somebody waits for it.
    const hold = setInterval(() => undefined, HOLD_MS);
    try {
      return await this.#orEnded(this.#site.inTurn(async () => {
        this.#check();
        const known = this.#known.get(name) ?? (again ? undefined : await this.#recall(name));
        if (!known || again) return this.#measure(shape, async () => this.#check());
        return { shapeClass: name, load: shape.load, source: 'remembered', trials: [], chosen: known.choice, note: known.note };
      }));
    } catch (error) {
      // What a destroyed or lost device says of its parts is not what happened.
      this.#check();
      throw error;
    } finally {
      clearInterval(hold);
      this.#site.asked--;
    }
  }

  /** A measurement of the caller's is to begin: resolves when the background is still, which it then stays until the measurement has ended. */
  async timingBegins(): Promise<void> {
    this.#timing++;
    this.#site.timing++;
    await this.#site.batch;
  }

  timingEnded(): void {
    // None is left where the instance was destroyed meanwhile.
    if (this.#timing === 0) return;
    this.#timing--;
    this.#site.timing--;
  }

  /** Ends what is under way at its next step, and all to come. */
  cancel(): void {
    this.#cancelled = true;
    this.#owed.end(destroyed());
    while (this.#timing > 0) this.timingEnded();
  }

  #learn(known: Known): void {
    this.#known.set(shapeClass(known.shape), known);
    this.#options.onChange();
  }

  /** `work`, which may be others' and go on; or rejects as this instance, or its device, is gone. */
  #orEnded<T>(work: Promise<T>): Promise<T> {
    return this.#options.device.gpu.owe(this.#owed.wait(work));
  }

  async #measureBehind(shape: ShapeClass, kv: Segmentation): Promise<TuneReport | undefined> {
    this.#check();
    return (await this.#recall(shapeClass(shape), kv)) ? undefined : this.#measure(shape, () => this.#quiet(), kv);
  }

  async #measure(shape: ShapeClass, turn: Turn, kv?: Segmentation): Promise<TuneReport> {
    const { device } = this.#options;
    const name = shapeClass(shape);
    const background = kv !== undefined;
    await withTurn(turn, async () => undefined);
    const bench = benches(device, shape, turn);
    const load = await this.#load(shape, bench, background);
    if (!load) return { shapeClass: name, load: shape.load, source: 'none', trials: [], note: 'no configuration fits this device, or not even one block of such keys' };
    const { trials, chosen, config, timing } = await withBench(bench(load), async (opened) => ({ ...(await this.#search(shape, opened, background)), timing: opened.timing }));
    const wrong = trials.flatMap(({ config: key, refused }) => (refused?.startsWith(WRONG) ? [[key, refused] as const] : []));
    // Where none is right, what all have in common may be wrong: there is nothing better to serve with.
    if (config) this.#refuse(wrong);
    if (config && kv) await this.#compile({ shape, config }, kv);
    this.#check();
    const report = { shapeClass: name, load: shape.load, trials, ...loadCost(shape, load), timing } as const;
    if (!chosen || !config) return { ...report, source: 'none', note: 'no configuration could be measured' };
    const note = await this.#remember(name, { ...chosen, ...(wrong.length > 0 && { wrong: Object.fromEntries(wrong) }) });
    this.#check();
    this.#learn({ shape, choice: chosen, config, note });
    return { ...report, source: 'measured', chosen, note };
  }

  /**
   * A load that the device gets through in reasonable time, after small calls that grow until one tells how fast it is.
   * @throws MlaError limit-exceeded where the background would keep others waiting
   */
  async #load(shape: ShapeClass, bench: (load: TuneLoad) => TuneBench, background: boolean): Promise<TuneLoad | undefined> {
    const { traits, schedule } = this.#options.device;
    const { fits } = this.#candidates(shape);
    for (let tokens = PROBE_TOKENS; ; ) {
      const load = tuneLoad(shape, traits, tokens);
      if (!load || fits.length === 0) return undefined;
      const ms = await withBench(bench(load), async (opened) => {
        for (const guess of fits) {
          const found = await opened.probe(guess, schedule.slots);
          if (found === undefined) continue;
          let least = found;
          // A call that somebody else's work has held up is no slow device's.
          for (let i = 1; background && least > CALL_MS && i < PROBES; i++) least = Math.min(least, (await opened.probe(guess, schedule.slots)) ?? least);
          return least;
        }
        return undefined;
      });
      if (ms === undefined) return load;
      if (background && ms > CALL_MS) {
        throw new MlaError('limit-exceeded', 'the device is too slow for measurements behind a program’s back', {
          expected: `at most ${CALL_MS} ms for ${tokens} tokens`, got: `${ms.toFixed(0)} ms`, fix: 'Call tune, or run flashmla-web tune, when there is time',
        });
      }
      const next = nextProbe(shape.load, { tokens, ms });
      if (next === undefined) return tuneLoad(shape, traits, tokensWithin({ tokens, ms }));
      tokens = next;
    }
  }

  /** Configurations for the blocks that are tuned with, but for what was wrong before. A call on other blocks takes what fits those. */
  #candidates(shape: ShapeClass): Candidates {
    return decodeCandidates({ ...shape, blockSize: TUNE_BLOCK }, shape.rows, this.#options.device.traits, this.#wrong);
  }

  /** Where, or why nowhere. */
  async #remember(name: string, choice: Remembered): Promise<string> {
    const { mode, store, prefix } = this.#options;
    if (mode === 'off') return 'for this instance only: tune is off';
    const refused = await store.save(prefix + name, choice);
    return refused === undefined ? `remembered in ${store.place}` : `not remembered: ${refused}`;
  }

  async #search(shape: ShapeClass, bench: TuneBench, background: boolean): Promise<Search<DecodeConfig>> {
    const { traits, schedule } = this.#options.device;
    const { rows, hKv: numHeadsK, load } = shape;
    const { fits, rejected } = this.#candidates(shape);
    if (!background && traits.kind === 'gpu' && fits[0]) await bench.heat(fits[0], schedule.slots);
    return search({
      configs: fits, rejected, slots: slotLadder(schedule.slots),
      parts: (config, slots) => partsTarget({ ...schedule, slots, rowTiles: [config.rows] }, { rows, numHeadsK, load, blockSize: TUNE_BLOCK }),
      measure: (config, slots, best) => bench.measure(config, slots, best),
    });
  }

  /** @throws MlaError destroyed, device-lost */
  #check(): void {
    if (this.#cancelled) throw destroyed();
    this.#options.device.gpu.check();
  }

  /** Waits until a batch disturbs nobody, or little. What it resolves to is called when that is done. */
  async #quiet(): Promise<() => void> {
    this.#lastBatch ||= performance.now();
    for (;;) {
      this.#check();
      const now = performance.now();
      if (this.#site.asked > 0) break;
      if (this.#site.timing === 0 && (now - this.#lastCall > QUIET_MS || now - this.#lastBatch > PATIENCE_MS)) break;
      await pause(GLANCE_MS);
    }
    this.#lastBatch = performance.now();
    // At once: a measurement of the caller's that begins from here on waits for it.
    let done!: () => void;
    this.#site.batch = new Promise((resolve) => (done = resolve));
    return done;
  }
}

function destroyed(): MlaError {
  return new MlaError('destroyed', 'this instance was destroyed', { argument: 'mla' });
}

/** Makes the benches of a class, which work on the same numbers. */
function benches(device: TuneDevice, shape: ShapeClass, turn: Turn): (load: TuneLoad) => TuneBench {
  let data: TuneData | undefined;
  const numbers = function* (): Generator<void, TuneData> {
    return (data ??= yield* TuneData.make(shape.dtype, shape.dQk));
  };
  return (load) => new TuneBench(device, shape, load, turn, numbers);
}

async function withBench<T>(bench: TuneBench, use: (bench: TuneBench) => Promise<T>): Promise<T> {
  try {
    await bench.open();
    return await use(bench);
  } finally {
    bench.close();
  }
}
