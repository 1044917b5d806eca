/** The card about tiers: runs the batch of the form on each, or a sweep over lengths, and can be stopped. */
import type { BackendName } from '../../src/mla.ts';
import type { Tier } from '../../src/webgpu/tier.ts';
import { byId } from '../site/dom.ts';
import type { Batch, Power } from './batch.ts';
import { CompareView } from './compare-view.ts';
import { recordOf, type RunRecord } from './record.ts';
import type { Progress } from './session.ts';
import { SweepView } from './sweep-view.ts';
import { sweepBatches } from './sweep.ts';
import { runTier, type TierRun } from './tier-runs.ts';

/** What a comparison needs of the page. */
export interface ComparisonPage {
  /** The batch of the form, or undefined when the form refuses it. */
  readonly batch: () => Batch | undefined;
  readonly power: () => Power;
  readonly tiers: () => readonly Tier[];
  /** Keeps other work off the machine while `work` runs. */
  readonly alone: (work: () => Promise<void>) => void;
}

/** A sweep has many points: each is measured and checked more briefly than a run. */
const POINT = { budgetMs: 600, checkBudget: 1e8 } as const;

export class Comparison {
  readonly #page: ComparisonPage;
  readonly #compareButton = byId<HTMLButtonElement>('compare-tiers');
  readonly #sweepButton = byId<HTMLButtonElement>('sweep-lengths');
  readonly #stop = byId<HTMLButtonElement>('stop-tiers');
  readonly #lengths = byId<HTMLInputElement>('sweep-at');
  readonly #status = byId('tiers-status');
  readonly #compare = new CompareView();
  readonly #sweep = new SweepView();
  #runs: { compared: readonly TierRun[]; swept: readonly TierRun[] } = { compared: [], swept: [] };
  #stopping: AbortController | undefined;

  constructor(page: ComparisonPage) {
    this.#page = page;
    const onClick = (made: HTMLButtonElement, work: (batch: Batch) => Promise<void>): void => made.addEventListener('click', () => {
      if (made.getAttribute('aria-disabled') === 'true') return;
      const batch = page.batch();
      if (batch) page.alone(() => work(batch));
      else this.#status.textContent = 'The batch in the form cannot run: the form says why.';
    });
    onClick(this.#compareButton, (batch) => this.#compareTiers(batch));
    onClick(this.#sweepButton, (batch) => this.#sweepLengths(batch));
    this.#stop.addEventListener('click', () => this.stop());
  }

  /** @param backend what the page runs on, if anything yet: WebGPU has tiers */
  setBusy(busy: boolean, backend: BackendName | undefined): void {
    const possible = backend === 'webgpu';
    for (const made of [this.#compareButton, this.#sweepButton]) made.setAttribute('aria-disabled', String(busy || !possible));
    byId('tiers-none').hidden = backend === undefined || possible;
  }

  stop(): void {
    this.#stopping?.abort();
    this.#stop.setAttribute('aria-disabled', 'true');
  }

  /** What there is so far, for JSON. */
  get records(): { compared: RunRecord[]; swept: RunRecord[] } {
    const records = (runs: readonly TierRun[]): RunRecord[] => runs.flatMap(({ report }) => (report ? [recordOf(report)] : []));
    return { compared: records(this.#runs.compared), swept: records(this.#runs.swept) };
  }

  async #compareTiers(batch: Batch): Promise<void> {
    const tiers = this.#page.tiers();
    const runs: TierRun[] = [];
    this.#compare.show(runs, tiers);
    await this.#run(async (signal) => {
      for (const tier of tiers) {
        if (signal.aborted) break;
        for await (const run of runTier(tier, [batch], { signal, progress: (p) => this.#tell(tier, p) })) {
          runs.push(run);
          this.#runs = { ...this.#runs, compared: runs };
          this.#compare.show(runs, tiers.slice(runs.length));
        }
      }
      return `The batch ran on ${runs.length} of ${tiers.length} tiers.`;
    });
    this.#compare.show(runs, []);
  }

  async #sweepLengths(batch: Batch): Promise<void> {
    let batches: Batch[];
    try {
      batches = sweepBatches(this.#lengths.value, batch, this.#page.power());
    } catch (error) {
      this.#lengths.setAttribute('aria-invalid', 'true');
      this.#status.textContent = (error as Error).message;
      this.#lengths.focus();
      return;
    }
    this.#lengths.removeAttribute('aria-invalid');
    const tiers = this.#page.tiers();
    const lengths = batches.map((point) => point.lengths[0]!);
    const runs: TierRun[] = [];
    await this.#run(async (signal) => {
      for (const tier of tiers) {
        if (signal.aborted) break;
        for await (const run of runTier(tier, batches, { ...POINT, signal, progress: (p) => this.#tell(`${tier} tier, point ${runs.length + 1} of ${tiers.length * lengths.length}`, p) })) {
          runs.push(run);
          this.#runs = { ...this.#runs, swept: runs };
          await this.#sweep.show(tiers, lengths, runs);
        }
      }
      return `${runs.length} of ${tiers.length * lengths.length} points ran.`;
    });
  }

  /** @param work resolves to what came of it, in words */
  async #run(work: (signal: AbortSignal) => Promise<string>): Promise<void> {
    const stopping = new AbortController();
    this.#stopping = stopping;
    this.#stop.hidden = false;
    this.#stop.setAttribute('aria-disabled', 'false');
    try {
      const words = await work(stopping.signal);
      this.#status.textContent = stopping.signal.aborted ? `Stopped. ${words}` : words;
    } finally {
      this.#stop.hidden = true;
      this.#stopping = undefined;
    }
  }

  #tell(where: string, { words }: Progress): void {
    const told = `${where}: ${words.split(':')[0]!.toLowerCase()}…`;
    if (this.#status.textContent !== told) this.#status.textContent = told;
  }
}
