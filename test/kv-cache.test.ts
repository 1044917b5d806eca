/** PagedKvCache against a plain model, over random sequences of operations, on the cpu backend. */
import fc from 'fast-check';
import { afterAll, beforeAll, describe, expect, test } from 'vitest';
import { createMla, MlaError } from '../src/index.ts';
import type { Mla, PagedKvCache, SequenceId } from '../src/mla.ts';
import { LogicalCache } from './logical-cache.ts';

const BLOCK = 16;

/** Operations name sequences by position among the living, so that any list of them can be carried out. */
type Operation =
  | { readonly kind: 'create' }
  | { readonly kind: 'fork'; readonly at: number }
  | { readonly kind: 'free'; readonly at: number }
  | { readonly kind: 'truncate'; readonly at: number; readonly share: number }
  | { readonly kind: 'append' | 'reserve'; readonly at: number; readonly count: number; readonly andAt: number; readonly andCount: number };

const at = fc.nat(1000);
const count = fc.oneof(fc.nat(3), fc.nat(3 * BLOCK), fc.constantFrom(BLOCK - 1, BLOCK, BLOCK + 1));
const operations: fc.Arbitrary<Operation[]> = fc.array(
  fc.oneof(
    { weight: 2, arbitrary: fc.constant<Operation>({ kind: 'create' }) },
    { weight: 3, arbitrary: fc.record({ kind: fc.constant('fork' as const), at }) },
    { weight: 1, arbitrary: fc.record({ kind: fc.constant('free' as const), at }) },
    { weight: 2, arbitrary: fc.record({ kind: fc.constant('truncate' as const), at, share: fc.double({ min: 0, max: 1, noNaN: true }) }) },
    { weight: 6, arbitrary: fc.record({ kind: fc.constant('append' as const), at, count, andAt: at, andCount: count }) },
    { weight: 1, arbitrary: fc.record({ kind: fc.constant('reserve' as const), at, count, andAt: at, andCount: count }) },
  ),
  { minLength: 5, maxLength: 40 },
);

/** How many sequences hold each block. */
function holders(cache: PagedKvCache, ids: Iterable<SequenceId>): Map<number, number> {
  const counts = new Map<number, number>();
  for (const id of ids) for (const block of cache.blocks(id)) counts.set(block, (counts.get(block) ?? 0) + 1);
  return counts;
}

/** Blocks that growing these sequences takes: new ones, and a copy of each shared tail for all writers but its last holder. */
function blocksNeeded(cache: PagedKvCache, all: Iterable<SequenceId>, ids: readonly SequenceId[], counts: readonly number[]): number {
  const held = holders(cache, all);
  let needed = 0;
  ids.forEach((id, i) => {
    const length = cache.length(id);
    const blocks = cache.blocks(id);
    needed += Math.ceil((length + counts[i]!) / BLOCK) - blocks.length;
    const tail = blocks[blocks.length - 1];
    if (counts[i] === 0 || length % BLOCK === 0 || tail === undefined) return;
    if (held.get(tail)! > 1) {
      needed++;
      held.set(tail, held.get(tail)! - 1);
    }
  });
  return needed;
}

/** Everything the host side knows, for comparing before and after a refusal. */
function snapshot({ cache, sequences }: LogicalCache): unknown {
  return [cache.stats(), [...sequences.keys()].map((id) => [id, cache.length(id), [...cache.blocks(id)]])];
}

function expectConserved({ cache, sequences }: LogicalCache): void {
  const held = holders(cache, sequences.keys());
  const stats = cache.stats();
  const lengths = [...sequences.values()].map((layers) => layers[0]!.length);
  expect(stats).toEqual({
    numBlocks: cache.numBlocks,
    usedBlocks: held.size,
    freeBlocks: cache.numBlocks - held.size,
    sharedBlocks: [...held.values()].filter((n) => n > 1).length,
    sequences: sequences.size,
    tokens: lengths.reduce((n, l) => n + l, 0),
    bytes: cache.numBlocks * BLOCK * 48 * 2,
    usedBytes: held.size * BLOCK * 48 * 2,
  });
  for (const [id, layers] of sequences) {
    const blocks = cache.blocks(id);
    expect(cache.length(id)).toBe(layers[0]!.length);
    expect(blocks.length).toBe(Math.ceil(layers[0]!.length / BLOCK));
    expect(new Set(blocks).size).toBe(blocks.length);
    for (const block of blocks) expect(block >= 0 && block < cache.numBlocks).toBe(true);
  }
}

async function expectContents(logical: LogicalCache): Promise<void> {
  const pool = (await logical.cache.tensor().readBits()) as Uint16Array;
  for (const id of logical.sequences.keys()) expect(logical.rowsInPool(id, pool), `sequence ${id}`).toEqual(logical.rows(id));
}

async function carryOut(logical: LogicalCache, operation: Operation): Promise<void> {
  const { cache } = logical;
  const living = [...logical.sequences.keys()];
  if (operation.kind === 'create' || living.length === 0) {
    const id = logical.create();
    expect(living).not.toContain(id);
    return;
  }
  const id = living[operation.at % living.length]!;
  if (operation.kind === 'fork') logical.fork(id);
  else if (operation.kind === 'free') logical.free(id);
  else if (operation.kind === 'truncate') logical.truncate(id, Math.floor(cache.length(id) * operation.share));
  else {
    const other = living[operation.andAt % living.length]!;
    const ids = other === id ? [id] : [id, other];
    const counts = other === id ? [operation.count] : [operation.count, operation.andCount];
    const room = blocksNeeded(cache, living, ids, counts) <= cache.stats().freeBlocks;
    const before = snapshot(logical);
    try {
      if (operation.kind === 'append') await logical.append(ids, counts, operation.count % 2 === 0);
      else {
        // Reserved and not wanted after all.
        const lengths = cache.cacheSeqlens(ids);
        await cache.reserve({ sequences: ids, counts });
        ids.forEach((each, i) => cache.truncate(each, lengths[i]!));
      }
      expect(room, 'took blocks that were not there').toBe(true);
    } catch (error) {
      if (!(error instanceof MlaError)) throw error;
      expect([error.code, room]).toEqual(['pool-exhausted', false]);
      expect(snapshot(logical)).toEqual(before);
    }
  }
}

describe('PagedKvCache', () => {
  let mla: Mla;
  beforeAll(async () => {
    mla = await createMla({ backend: 'cpu' });
  });
  afterAll(() => mla?.destroy());

  test('conserves blocks and keeps contents over any operations', async () => {
    await fc.assert(
      fc.asyncProperty(operations, fc.integer({ min: 1, max: 12 }), async (list, numBlocks) => {
        const logical = new LogicalCache(await mla.createKvCache({ numBlocks, blockSize: BLOCK, headDim: 48, headDimV: 32 }));
        for (const operation of list) {
          await carryOut(logical, operation);
          expectConserved(logical);
        }
        await expectContents(logical);
        // Everything ends: every block is free, and all of them can be had again.
        logical.free(...logical.sequences.keys());
        expectConserved(logical);
        const last = logical.create();
        await logical.append([last], [numBlocks * BLOCK]);
        expect(logical.cache.stats().freeBlocks).toBe(0);
        await expectContents(logical);
        logical.cache.destroy();
      }),
      { numRuns: 150 },
    );
  });

  test('ids are never used again', async () => {
    const cache = await mla.createKvCache({ numBlocks: 1, blockSize: BLOCK, headDim: 48, headDimV: 32 });
    const seen = new Set<SequenceId>();
    for (let i = 0; i < 20; i++) {
      const id = i % 2 === 0 ? cache.createSequence() : cache.fork([...seen].pop()!);
      expect(seen.has(id)).toBe(false);
      seen.add(id);
      if (i % 2 === 1) cache.free(id, id - 1);
    }
    cache.destroy();
  });

  test('a write whose sequence was forked, or freed, since it was reserved is refused', async () => {
    const cache = await mla.createKvCache({ numBlocks: 4, blockSize: BLOCK, headDim: 48, headDimV: 32 });
    const id = cache.createSequence();
    const latent = { data: new Uint16Array(48).fill(0x3f80), shape: [1, 1, 48] };
    const plan = await cache.reserve({ sequences: [id], counts: [1] });
    const fork = cache.fork(id);
    await expect(cache.write(plan, { latent })).rejects.toMatchObject({ code: 'out-of-range' });
    cache.free(fork);
    await cache.write(plan, { latent });
    cache.free(id);
    await expect(cache.write(plan, { latent })).rejects.toMatchObject({ code: 'out-of-range' });

    // The block is another's now: the old plan must not reach into it.
    const next = cache.createSequence();
    await cache.append({ sequences: [next], counts: [3], latent: { data: new Uint16Array(3 * 48).fill(0x4000), shape: [3, 1, 48] } });
    await expect(cache.write(plan, { latent })).rejects.toMatchObject({ code: 'out-of-range' });
    const pool = await cache.tensor().readBits();
    expect(pool[cache.blocks(next)[0]! * BLOCK * 48]).toBe(0x4000);
    // And its tokens are elsewhere now.
    cache.free(next);
    const [one, two] = [cache.createSequence(), cache.createSequence()];
    const old = await cache.reserve({ sequences: [one], counts: [1] });
    cache.truncate(one, 0);
    await cache.append({ sequences: [two], counts: [1], latent: { data: new Uint16Array(48).fill(0x4000), shape: [1, 1, 48] } });
    await cache.reserve({ sequences: [one], counts: [1] });
    await expect(cache.write(old, { latent })).rejects.toMatchObject({ code: 'out-of-range' });
    expect((await cache.tensor().readBits())[cache.blocks(two)[0]! * BLOCK * 48]).toBe(0x4000);
    cache.destroy();
  });

  test('tables of several sequences are as wide as the longest', async () => {
    const cache = await mla.createKvCache({ numBlocks: 8, blockSize: BLOCK, headDim: 48, headDimV: 32 });
    const ids = [cache.createSequence(), cache.createSequence(), cache.createSequence()];
    await cache.reserve({ sequences: ids, counts: [40, 0, 16] });
    const { data, shape, dtype } = cache.blockTable(ids);
    expect({ shape, dtype }).toEqual({ shape: [3, 3], dtype: 'i32' });
    ids.forEach((id, i) => expect(data.slice(i * 3, i * 3 + cache.blocks(id).length)).toEqual(cache.blocks(id)));
    expect(cache.cacheSeqlens(ids)).toEqual(Int32Array.of(40, 0, 16));
    expect(cache.blockTable([ids[1]!]).shape).toEqual([1, 1]);
    cache.destroy();
  });
});
