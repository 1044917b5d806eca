/**
 * The decoder against Hugging Face transformers on the same checkpoints (test/fixtures/models/): recorded logits of 256
 * positions and a greedy continuation; in chunks, token by token and in a batch.
 */
import { readFile } from 'node:fs/promises';
import { join } from 'node:path';
import { afterAll, beforeAll, describe, expect, test } from 'vitest';
import { createMla, type Mla } from '../src/node.ts';
import type { SampleRequest } from '../src/model/engine.ts';
import type { Decoder } from '../src/model/decoder.ts';
import { folderSource } from '../src/model/folder-source.ts';
import { loadDecoder, readConfig } from '../src/model/model.ts';
import { readSafetensors } from '../src/safetensors.ts';
import { softwareGpu } from './software-adapter.ts';

const FIXTURES = join(import.meta.dirname, 'fixtures/models');
/** The demo's model; the others lie beside what is expected of them. */
const STORY = join(import.meta.dirname, '../demo/model');
const GREEDY: SampleRequest = { temperature: 0, topK: 0, topP: 1, repetitionPenalty: 1, random: 0, seen: [] };

interface Expected {
  readonly ids: number[];
  readonly logits: Float32Array;
  readonly prompt: number[];
  readonly greedy: number[];
}

async function expected(name: string): Promise<Expected> {
  const { tensors } = readSafetensors(await readFile(join(FIXTURES, `${name}.expected.safetensors`)));
  const bytes = (key: string): ArrayBuffer => tensors.get(key)!.data.slice().buffer as ArrayBuffer;
  const ints = (key: string): number[] => [...new Int32Array(bytes(key))];
  return { ids: ints('ids'), logits: new Float32Array(bytes('logits')), prompt: ints('prompt'), greedy: ints('greedy') };
}

/** Logits of the ids, fed in pieces of these sizes (the last one again and again). */
async function inPieces(decoder: Decoder, ids: readonly number[], sizes: readonly number[]): Promise<Float32Array> {
  const sequence = decoder.cache.createSequence();
  const out = new Float32Array(ids.length * decoder.shape.vocab);
  for (let at = 0, i = 0; at < ids.length; i++) {
    const piece = ids.slice(at, at + sizes[Math.min(i, sizes.length - 1)]!);
    out.set(await decoder.logits([{ sequence, ids: piece }]), at * decoder.shape.vocab);
    at += piece.length;
  }
  decoder.cache.free(sequence);
  return out;
}

/** Fails unless the most likely token is the same nearly everywhere and no logit is far off. */
function expectLogits(got: Float32Array, want: Float32Array, vocab: number): void {
  const positions = got.length / vocab;
  let same = 0;
  let worst = 0;
  let [low, high] = [Infinity, -Infinity];
  for (let t = 0; t < positions; t++) {
    const [a, b] = [got, want].map((logits) => logits.subarray(t * vocab, (t + 1) * vocab)) as [Float32Array, Float32Array];
    if (a.indexOf(Math.max(...a)) === b.indexOf(Math.max(...b))) same++;
    for (let j = 0; j < vocab; j++) {
      worst = Math.max(worst, Math.abs(a[j]! - b[j]!));
      low = Math.min(low, b[j]!);
      high = Math.max(high, b[j]!);
    }
  }
  expect(same / positions).toBeGreaterThanOrEqual(0.99);
  expect(worst / (high - low)).toBeLessThanOrEqual(0.02);
}

describe.each(['cpu', 'webgpu'] as const)('%s', (backend) => {
  let mla: Mla;
  beforeAll(async () => {
    mla = await createMla(backend === 'cpu' ? { backend } : { backend, gpu: await softwareGpu(), tune: 'off' });
  });
  afterAll(() => mla?.destroy());

  describe.each(['tiny-v2', 'tiny-v3', 'tiny-v3-fp8', 'story'])('%s', (name) => {
    const folder = name === 'story' ? STORY : join(FIXTURES, name);
    let decoder: Decoder;
    let want: Expected;
    beforeAll(async () => {
      want = await expected(name);
      const source = folderSource(folder);
      decoder = await loadDecoder(mla, source, await readConfig(source), { maxTokens: 256 });
    });
    afterAll(() => decoder?.destroy());

    test('the logits of 256 positions', async () => {
      expect(want.ids.length).toBe(256);
      expectLogits(await inPieces(decoder, want.ids, [256]), want.logits, decoder.shape.vocab);
    });

    test('a prompt in chunks, then token by token', async () => {
      expectLogits(await inPieces(decoder, want.ids, [100, 60, 65, 1]), want.logits, decoder.shape.vocab);
    });

    test('two sequences of different lengths in one batch', async () => {
      const { vocab } = decoder.shape;
      const [first, second] = [decoder.cache.createSequence(), decoder.cache.createSequence()];
      await decoder.logits([{ sequence: second, ids: want.ids.slice(0, 40) }]);
      const both = await decoder.logits([{ sequence: first, ids: want.ids.slice(0, 90) }, { sequence: second, ids: want.ids.slice(40, 100) }]);
      expectLogits(both.subarray(0, 90 * vocab), want.logits.subarray(0, 90 * vocab), vocab);
      expectLogits(both.subarray(90 * vocab), want.logits.subarray(40 * vocab, 100 * vocab), vocab);
      decoder.cache.free(first, second);
    });

    test('a greedy continuation', async () => {
      const sequence = decoder.cache.createSequence();
      let ids = want.prompt;
      const got: number[] = [];
      for (let i = 0; i < want.greedy.length; i++) {
        const [id] = await decoder.step([{ sequence, ids }], [GREEDY]);
        got.push(id!);
        ids = [id!];
      }
      expect(got).toEqual(want.greedy);
      decoder.cache.free(sequence);
    });

    test('a prompt longer than a step, then two texts in one batch', async () => {
      const source = folderSource(folder);
      const small = await loadDecoder(mla, source, await readConfig(source), { maxTokens: 32 });
      const [first, second] = [small.cache.createSequence(), small.cache.createSequence()];
      expect(await small.step([{ sequence: first, ids: want.prompt.slice(0, 10) }], [undefined])).toEqual([undefined]);
      const both = [{ sequence: first, ids: want.prompt.slice(10) }, { sequence: second, ids: want.prompt }];
      expect(await small.step(both, [GREEDY, GREEDY])).toEqual([want.greedy[0], want.greedy[0]]);
      small.destroy();
    });

    test('gives back what it took', async () => {
      const held: number[] = [];
      for (let i = 0; i < 2; i++) {
        const source = folderSource(folder);
        (await loadDecoder(mla, source, await readConfig(source))).destroy();
        await mla.finished();
        held.push((await mla.memory()).allocations);
      }
      // A pool may keep what the first one had, for the second.
      expect(held[1]).toBe(held[0]);
    });
  });
});
