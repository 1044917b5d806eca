/** Text generation around an engine: stop strings, incomplete characters, options. */
import { join } from 'node:path';
import fc from 'fast-check';
import { describe, expect, test } from 'vitest';
import { Engine, type StepRunner } from '../src/model/engine.ts';
import { createMla } from '../src/index.ts';
import { folderSource } from '../src/model/folder-source.ts';
import { loadDecoder, readConfig } from '../src/model/model.ts';
import { ModelText } from '../src/model/model-text.ts';
import { generateText, type GenerateOptions, type TextTokenizer } from '../src/model/generate.ts';
import { seededRandom } from '../src/random.ts';
import { StopStrings } from '../src/model/stop-strings.ts';

/** A token a UTF-16 unit. */
const letters: TextTokenizer = {
  encode: (text) => [...text].map((c) => c.charCodeAt(0)),
  stream: () => ({ push: (id) => String.fromCharCode(id), end: () => '' }),
};

/** An engine that says a text, and knows whether it was left. */
function saying(text: string): { engine: Engine; left: () => boolean } {
  let left = false;
  const engine = {
    async *generate() {
      try {
        for (const c of text) yield c.charCodeAt(0);
      } finally {
        left = true;
      }
    },
  } as unknown as Engine;
  return { engine, left: () => left };
}

async function said(text: string, options: GenerateOptions): Promise<string[]> {
  const pieces: string[] = [];
  for await (const piece of generateText(saying(text).engine, letters, new Set(), 'x', options)) pieces.push(piece);
  return pieces;
}

describe('stop strings', () => {
  test('end the text before themselves', async () => {
    expect((await said('one two three', { stop: ['tw', 'three'] })).join('')).toBe('one ');
    expect((await said('aab', { stop: ['ab'] })).join('')).toBe('a');
  });

  test('what only begins like one comes out', async () => {
    expect((await said('hello wor', { stop: ['world'] })).join('')).toBe('hello wor');
  });

  test('end the request', async () => {
    const { engine, left } = saying('abcdef');
    for await (const piece of generateText(engine, letters, new Set(), 'x', { stop: ['d'] })) expect('abc').toContain(piece);
    expect(left()).toBe(true);
  });

  test('any text, any strings, any pieces: as one search over the whole', () => {
    const text = fc.string({ unit: fc.constantFrom('a', 'b', 'c'), maxLength: 30 });
    fc.assert(fc.property(text, fc.array(fc.string({ unit: fc.constantFrom('a', 'b', 'c'), minLength: 1, maxLength: 4 }), { maxLength: 3 }), fc.integer({ min: 1, max: 5 }), (whole, strings, size) => {
      const stops = new StopStrings(strings);
      let out = '';
      let stopped = false;
      for (let i = 0; i < whole.length && !stopped; i += size) {
        const piece = stops.push(whole.slice(i, i + size));
        out += piece.text;
        stopped = piece.stopped;
      }
      if (!stopped) out += stops.end();
      const ends = strings.map((s) => whole.indexOf(s)).filter((at) => at >= 0);
      expect(stopped).toBe(ends.length > 0);
      // In pieces the first to be complete wins, which a longer one that began earlier may not be.
      if (size === 1 && strings.length === 1) expect(out).toBe(ends.length > 0 ? whole.slice(0, ends[0]) : whole);
      expect(whole.startsWith(out)).toBe(true);
    }));
  });
});

test('a text can be forked with what it has said, stopped and ended', async () => {
  const mla = await createMla({ backend: 'cpu' });
  const cache = await mla.createKvCache({ numBlocks: 4, blockSize: 16, headDim: 48, headDimV: 32 });
  const runner: StepRunner = {
    cache, maxTokens: 16,
    async step(entries) {
      await cache.reserve({ sequences: entries.map(({ sequence }) => sequence), counts: entries.map(({ ids }) => ids.length) });
      return entries.map(({ ids }) => ids[ids.length - 1]! + 1);
    },
  };
  const text = ModelText.begin({ engine: new Engine(runner, 16), tokenizer: letters, eos: new Set(['z'.charCodeAt(0)]) }, 'ab', { maxTokens: 20 });
  const said = text[Symbol.asyncIterator]();
  expect([(await said.next()).value, (await said.next()).value]).toEqual(['c', 'd']);
  const fork = text.fork({ maxTokens: 3 });
  text.stop();
  expect(await said.next()).toMatchObject({ done: true });
  const more: string[] = [];
  for await (const piece of fork) more.push(piece);
  expect(fork.inherited.startsWith('cd')).toBe(true);
  expect(fork.inherited + more.join('')).toBe('cdefghi'.slice(0, fork.inherited.length + 3));
  expect(fork).toMatchObject({ promptTokens: 2 });
  expect(cache.stats().sequences).toBe(2);
  expect(() => fork.fork({ temperature: -1 })).toThrow(expect.objectContaining({ code: 'invalid-argument' }));
  fork.end();
  text.end();
  expect(cache.stats()).toMatchObject({ freeBlocks: 4, sequences: 0 });
  await mla.destroy();
});

test('a text that leaves while a step is under way costs the others nothing', async () => {
  const mla = await createMla({ backend: 'cpu' });
  const source = folderSource(join(import.meta.dirname, 'fixtures/models/tiny-v2'));
  const decoder = await loadDecoder(mla, source, await readConfig(source), { numBlocks: 8 });
  const engine = new Engine(decoder, 16);
  const leaving = new AbortController();
  const reserve = decoder.cache.reserve.bind(decoder.cache);
  let steps = 0;
  decoder.cache.reserve = async (args) => {
    const plan = await reserve(args);
    if (++steps === 4) leaving.abort();
    return plan;
  };
  const all = async (tokens: AsyncIterable<number>): Promise<number> => {
    let count = 0;
    for await (const id of tokens) count += Number(id >= 0);
    return count;
  };
  const eos = new Set<number>();
  const [stays, leaves] = await Promise.allSettled([
    all(engine.generate([1, 2, 3], { maxTokens: 8, eos })), all(engine.generate([4, 5], { maxTokens: 20, eos, signal: leaving.signal })),
  ]);
  expect(stays).toEqual({ status: 'fulfilled', value: 8 });
  expect(leaves).toMatchObject({ status: 'rejected', reason: { code: 'aborted' } });
  expect(decoder.cache.stats().sequences).toBe(0);
  decoder.destroy();
  await mla.destroy();
});

test.each([
  ['maxTokens', 0], ['maxTokens', 1.5], ['temperature', -1], ['temperature', NaN], ['topK', -1], ['topP', 0], ['topP', 1.1], ['repetitionPenalty', 0], ['seed', 0.5], ['stop', 'x'],
])('%s = %j is refused', async (name, value) => {
  await expect(said('x', { [name]: value } as GenerateOptions)).rejects.toMatchObject({ code: 'invalid-argument', argument: name });
});

test('random numbers repeat with their seed and fill [0, 1)', () => {
  const [a, b, c] = [seededRandom(7), seededRandom(7), seededRandom(8)];
  const numbers = Array.from({ length: 1000 }, a);
  expect(numbers).toEqual(Array.from({ length: 1000 }, b));
  expect(numbers).not.toEqual(Array.from({ length: 1000 }, c));
  expect(Math.min(...numbers)).toBeGreaterThanOrEqual(0);
  expect(Math.max(...numbers)).toBeLessThan(1);
  expect(numbers.reduce((x, y) => x + y) / 1000).toBeCloseTo(0.5, 1);
});
