/** Continuous batching with a decoder that only counts: who is in which step, what is shared, and that nothing is left behind. */
import { getEventListeners } from 'node:events';
import { afterAll, beforeAll, describe, expect, test } from 'vitest';
import type { Mla, PagedKvCache } from '../src/mla.ts';
import { createMla } from '../src/index.ts';
import { Engine, type RequestOptions, type SampleRequest, type StepRunner } from '../src/model/engine.ts';
import type { StepEntry } from '../src/model/step-plan.ts';

let mla: Mla;
beforeAll(async () => {
  mla = await createMla({ backend: 'cpu' });
});
afterAll(() => mla.destroy());

/** The token after n is n + 1. */
class Counter implements StepRunner {
  readonly cache: PagedKvCache;
  readonly maxTokens: number;
  readonly steps: (readonly StepEntry[])[] = [];
  fault: Error | undefined;

  constructor(cache: PagedKvCache, maxTokens = 64) {
    this.cache = cache;
    this.maxTokens = maxTokens;
  }

  async step(entries: readonly StepEntry[], requests: readonly (SampleRequest | undefined)[]): Promise<(number | undefined)[]> {
    if (this.fault) throw this.fault;
    await this.cache.reserve({ sequences: entries.map((e) => e.sequence), counts: entries.map((e) => e.ids.length) });
    this.steps.push(entries);
    await new Promise((resolve) => setTimeout(resolve, 1));
    return entries.map((e, i) => (requests[i] ? e.ids[e.ids.length - 1]! + 1 : undefined));
  }
}

async function counter(numBlocks: number, maxTokens?: number): Promise<Counter> {
  return new Counter(await mla.createKvCache({ numBlocks, blockSize: 16, headDim: 48, headDimV: 32 }), maxTokens);
}

const options = (maxTokens: number, more: Partial<RequestOptions> = {}): RequestOptions => ({ maxTokens, eos: new Set(), ...more });

async function all(tokens: AsyncIterable<number>): Promise<number[]> {
  const out: number[] = [];
  for await (const id of tokens) out.push(id);
  return out;
}

function range(from: number, count: number): number[] {
  return Array.from({ length: count }, (_, i) => from + i);
}

describe('engine', () => {
  test('a prompt in chunks, then a token a step', async () => {
    const runner = await counter(16);
    const engine = new Engine(runner, 8);
    expect(await all(engine.generate(range(100, 20), options(3)))).toEqual([120, 121, 122]);
    expect(runner.steps.map((step) => step.map(({ ids }) => ids.length))).toEqual([[8], [8], [4], [1], [1]]);
    expect(runner.cache.stats()).toMatchObject({ freeBlocks: 16, sequences: 0 });
  });

  test('requests join and leave at any step, and share steps', async () => {
    const runner = await counter(16);
    const engine = new Engine(runner, 8);
    const first = engine.generate(range(0, 3), options(6));
    const got = [(await first.next()).value];
    const [rest, second] = await Promise.all([all(first), all(engine.generate(range(50, 10), options(2)))]);
    expect([...got, ...rest]).toEqual([3, 4, 5, 6, 7, 8]);
    expect(second).toEqual([60, 61]);
    expect(runner.steps.some((step) => step.length === 2)).toBe(true);
    // One prompt's chunk a step, beside those that run.
    expect(runner.steps.every((step) => step.filter(({ ids }) => ids.length > 1).length <= 1)).toBe(true);
    expect(runner.cache.stats().freeBlocks).toBe(16);
  });

  test('prompts that begin alike share blocks', async () => {
    const runner = await counter(16);
    const engine = new Engine(runner, 64);
    const prompt = range(0, 40);
    const first = engine.generate(prompt, options(30));
    await first.next();
    const second = engine.generate([...prompt.slice(0, 35), 7, 8], options(2));
    expect(runner.cache.stats().sharedBlocks).toBeGreaterThanOrEqual(2);
    expect(await all(second)).toEqual([9, 10]);
    // Only what differs was computed.
    expect(runner.steps.flat().filter(({ ids }) => ids.includes(7) && ids.length < 10).map(({ ids }) => ids)).toContainEqual([7, 8]);
    await all(first);
    expect(runner.cache.stats().freeBlocks).toBe(16);
  });

  test('the same prompt again computes its last token again', async () => {
    const runner = await counter(16);
    const engine = new Engine(runner, 64);
    const first = engine.generate(range(0, 32), options(20));
    await first.next();
    expect(await all(engine.generate(range(0, 32), options(1)))).toEqual([32]);
    await all(first);
  });

  test('an end token ends and is not given out', async () => {
    const runner = await counter(4);
    expect(await all(new Engine(runner, 8).generate([5], options(10, { eos: new Set([8]) })))).toEqual([6, 7]);
    expect(runner.cache.stats().freeBlocks).toBe(4);
  });

  test('leaving the iterator ends the request', async () => {
    const runner = await counter(4);
    const engine = new Engine(runner, 8);
    for await (const id of engine.generate([1], options(1000))) if (id === 4) break;
    expect(engine.active).toBe(0);
    expect(runner.cache.stats().freeBlocks).toBe(4);
    expect(await all(engine.generate([9], options(1)))).toEqual([10]);
  });

  test('an abort ends it with an error, and the next works', async () => {
    const runner = await counter(4);
    const engine = new Engine(runner, 8);
    const controller = new AbortController();
    const tokens = engine.generate([1], options(1000, { signal: controller.signal }));
    await tokens.next();
    controller.abort();
    await expect(all(tokens)).rejects.toMatchObject({ code: 'aborted' });
    expect(runner.cache.stats().freeBlocks).toBe(4);
    expect(() => engine.generate([1], options(1, { signal: controller.signal }))).toThrow(expect.objectContaining({ code: 'aborted' }));
    expect(await all(engine.generate([9], options(1)))).toEqual([10]);
  });

  test('a signal that outlives its texts keeps none of them', async () => {
    const engine = new Engine(await counter(4), 8);
    const { signal } = new AbortController();
    expect(await all(engine.generate([1], options(2, { signal })))).toEqual([2, 3]);
    for await (const id of engine.generate([1], options(9, { signal }))) if (id === 3) break;
    expect(getEventListeners(signal, 'abort')).toEqual([]);
  });

  test('a prompt longer than the pool is refused, a text that outgrows it fails alone', async () => {
    const runner = await counter(3);
    const engine = new Engine(runner, 64);
    expect(() => engine.generate(range(0, 49), options(1))).toThrow(expect.objectContaining({ code: 'pool-exhausted', argument: 'prompt' }));
    const first = engine.generate(range(0, 10), options(20));
    await first.next();
    // 10 + 20 tokens take two blocks of three.
    const second = engine.generate(range(100, 10), options(30));
    const [a, b] = await Promise.allSettled([all(first), all(second)]);
    expect(a).toMatchObject({ status: 'fulfilled' });
    expect(b).toMatchObject({ status: 'rejected', reason: { code: 'pool-exhausted' } });
    expect(runner.cache.stats().freeBlocks).toBe(3);
    expect(await all(engine.generate([9], options(1)))).toEqual([10]);
  });

  test('a step that is planned again takes the same random numbers', async () => {
    const drawn = async (beside: boolean): Promise<Map<number, number>> => {
      const runner = await counter(3);
      const numbers = new Map<number, number>();
      const step = runner.step.bind(runner);
      runner.step = async (entries, requests) => {
        const ids = await step(entries, requests);
        requests.forEach((request, i) => {
          if (request && ids[i]! < 100) numbers.set(ids[i]!, request.random);
        });
        return ids;
      };
      const engine = new Engine(runner, 64);
      const first = all(engine.generate(range(0, 10), options(20, { seed: 7, temperature: 1 })));
      if (beside) await expect(all(engine.generate(range(100, 10), options(30)))).rejects.toMatchObject({ code: 'pool-exhausted' });
      await first;
      return numbers;
    };
    const alone = await drawn(false);
    expect(alone.size).toBe(20);
    expect(await drawn(true)).toEqual(alone);
  });

  test('a fork goes on from where a text is, running or kept, and shares its blocks until the last holder goes', async () => {
    const runner = await counter(8);
    const engine = new Engine(runner, 64);
    const first = engine.generate([1], options(40, { keep: true }));
    await first.next();
    await first.next();
    const running = engine.fork(first, options(3, { keep: true }));
    expect(running.tokens).toEqual([1, 2, 3]);
    expect(runner.cache.stats().sharedBlocks).toBe(1);
    const [, forked] = await Promise.all([all(first), all(running)]);
    expect(forked).toEqual([4, 5, 6]);
    expect(runner.cache.stats()).toMatchObject({ sequences: 2, tokens: 40 + 5 });
    const kept = engine.fork(first, options(2, { keep: true }));
    expect(runner.cache.stats().sharedBlocks).toBe(3);
    expect(await all(kept)).toEqual([42, 43]);
    // Of a token each: what came before is in the cache.
    expect(runner.steps.flat().map(({ ids }) => ids.length)).not.toContain(2);
    engine.free(first);
    engine.free(first);
    expect(runner.cache.stats().sequences).toBe(2);
    for (const stream of [running, kept]) engine.free(stream);
    expect(runner.cache.stats()).toMatchObject({ freeBlocks: 8, sequences: 0 });
  });

  test('a kept text that is stopped in the middle of a step can be forked', async () => {
    const runner = await counter(4);
    const engine = new Engine(runner, 8);
    const stopped = engine.generate(range(1, 5), options(1000, { keep: true }));
    await stopped.next();
    await stopped.return();
    const fork = engine.fork(stopped, options(2));
    expect(await all(fork)).toEqual([7, 8]);
    await new Promise((resolve) => setTimeout(resolve, 5));
    expect(engine.active).toBe(0);
    expect(stopped.tokens).toEqual(range(1, 6));
    engine.destroy();
    expect(runner.cache.stats().freeBlocks).toBe(4);
  });

  test('leaves the event loop a turn a step, whatever the backend', async () => {
    const runner = await counter(4);
    runner.step = async (entries) => entries.map(({ ids }) => ids[ids.length - 1]! + 1);
    const tokens = new Engine(runner, 8).generate([1], options(Infinity));
    await tokens.next();
    // An event that the engine, which never waits for a device here, must let come.
    setTimeout(() => void tokens.return(), 5);
    await all(tokens);
    expect(tokens.tokens.length).toBeGreaterThan(1);
  });

  test('a device that fails ends all that is under way', async () => {
    const runner = await counter(4);
    const engine = new Engine(runner, 8);
    const tokens = [engine.generate([1], options(9)), engine.generate([5], options(9))];
    runner.fault = new Error('gone');
    for (const t of tokens) await expect(all(t)).rejects.toMatchObject({ code: 'internal' });
    expect(runner.cache.stats().freeBlocks).toBe(4);
    runner.fault = undefined;
    expect(await all(engine.generate([9], options(1)))).toEqual([10]);
  });
});
