/** Parts of tuning that need no device: classes, keys, loads, the search and what is remembered where. */
import { mkdir, mkdtemp, readFile, readdir, rm, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import fc from 'fast-check';
import { afterEach, beforeEach, describe, expect, test } from 'vitest';
import { getMlaMetadata, partsTarget, rowClass } from '../src/schedule.ts';
import { checkTune, classOf, parseShapeClass, shapeClass, type ShapeClass } from '../src/shape-class.ts';
import { cacheDirectory, fileStore } from '../src/tune-file.ts';
import { indexedDbStore } from '../src/tune-indexed-db.ts';
import { noStore, readChoice, siteKey, type TuneSite } from '../src/tune-store.ts';
import type { KernelLimits } from '../src/webgpu/config.ts';
import { PROBE_TOKENS, TUNE_BLOCK, loadCost, tokensWithin, tuneLoads } from '../src/webgpu/tune-load.ts';
import { search, slotLadder, type Times } from '../src/webgpu/tune-search.ts';

const choice = { config: 'base 16x16/256 r2', slots: 132, longMs: 1.5, shortMs: 0.1 };

describe('classes', () => {
  test('rows that share a class share its tiles', () => {
    expect([1, 2, 3, 5, 9, 16, 17, 32, 33, 63, 64, 126].map(rowClass)).toEqual([1, 2, 4, 8, 16, 16, 32, 32, 48, 64, 64, 128]);
  });

  test('in words and back, one text a class', () => {
    const shapes = fc.record<ShapeClass>({
      rows: fc.integer({ min: 1, max: 600 }), hKv: fc.integer({ min: 1, max: 8 }), dQk: fc.constantFrom(48, 576), dV: fc.constantFrom(32, 512), dtype: fc.constantFrom('bf16', 'f16'),
    });
    fc.assert(fc.property(shapes, (shape) => void expect(parseShapeClass(shapeClass(shape))).toEqual(shape)));
    for (const text of ['', 'bf16 576/512, 16 rows', 'x bf16 576/512, 16 rows, 1 KV head', 'f32 576/512, 16 rows, 1 KV head']) expect(parseShapeClass(text)).toBeUndefined();
  });

  test('of a call and of the arguments that name it', () => {
    const call = { b: 3, sQ: 2, hQ: 126, hKv: 2, dQk: 576, dV: 512, dtype: 'f16', blockSize: 64 } as const;
    const { again, ...shape } = checkTune({ numQTokensPerHeadK: 126, numHeadsK: 2, dtype: 'f16' });
    expect(again).toBe(false);
    expect(shape).toEqual(classOf(call));
  });
});

describe('the schedule', () => {
  const machine = { slots: 264, rowTiles: [4, 16], minTokensPerPart: 64 };
  const tuned = { ...machine, tuned: [{ rows: 128, numHeadsK: 1, slots: 132, rowTile: 64 }, { rows: 128, numHeadsK: 1, slots: 1, rowTile: 1 }] };

  test('follows what was tuned, for calls of those rows and heads', () => {
    expect(partsTarget(machine, 128, 1)).toBe(33);
    expect(partsTarget(tuned, 128, 1)).toBe(66);
    expect(partsTarget(tuned, 113, 1)).toBe(66);
    expect(partsTarget(tuned, 112, 1)).toBe(partsTarget(machine, 112, 1));
    expect(partsTarget(tuned, 128, 2)).toBe(partsTarget(machine, 128, 2));
    const args = { cacheSeqlens: Int32Array.of(8192), numQTokensPerHeadK: 128, numHeadsK: 1 };
    expect([getMlaMetadata(args, machine).parts, getMlaMetadata(args, tuned).parts]).toEqual([32, 64]);
  });
});

describe('loads', () => {
  const limits = { maxStorageBufferBindingSize: 134217728, maxBufferSize: 268435456 } as KernelLimits;

  test('lie within the pool and the limits, each key once a call', () => {
    fc.assert(
      fc.property(fc.integer({ min: 1, max: 200 }), fc.constantFrom(48, 576), fc.constantFrom(1, 700, 5000, Infinity), (hKv, dQk, most) => {
        const loads = tuneLoads({ hKv, dQk }, { limits }, most)!;
        expect(loads.long.cacheSeqlens.reduce((x, y) => x + y)).toBeLessThanOrEqual(Math.max(most, PROBE_TOKENS));
        expect(loads.numBlocks * TUNE_BLOCK * hKv * dQk * 2).toBeLessThanOrEqual(limits.maxStorageBufferBindingSize);
        for (const { cacheSeqlens, maxBlocksPerSeq, blockTables } of [loads.long, loads.short]) {
          const used = blockTables.flatMap((table) => [...cacheSeqlens].flatMap((length, i) => [...table.subarray(i * maxBlocksPerSeq, i * maxBlocksPerSeq + length / TUNE_BLOCK)]));
          expect(Math.max(...used)).toBeLessThan(loads.numBlocks);
          expect(new Set(used).size).toBe(used.length);
          expect(cacheSeqlens.every((length) => length > 0)).toBe(true);
        }
      }),
    );
  });

  test('on a GPU pass its caches, and short calls find their keys in none', () => {
    const { long, short, numBlocks } = tuneLoads({ hKv: 1, dQk: 576 }, { limits }, Infinity)!;
    const bytes = (tokens: number): number => tokens * 576 * 2;
    expect(bytes(long.cacheSeqlens.reduce((x, y) => x + y))).toBeGreaterThan(120e6);
    expect(short.cacheSeqlens).toEqual(Int32Array.of(8192));
    expect(bytes(8192) * short.blockTables.length).toBeGreaterThan(100e6);
    expect(new Set(long.cacheSeqlens).size).toBeGreaterThan(1);
    expect(loadCost({ rows: 128, hKv: 1, dQk: 576, dV: 512, dtype: 'bf16' }, short)).toEqual({ flops: 2 * 128 * 1088 * 8192, bytes: 2 * (128 * 1088 + 8192 * 576) });
    expect(numBlocks).toBe(1820);
  });

  test('shrink with the device’s speed, down to a first call', () => {
    const shape = { hKv: 1, dQk: 576 };
    const tokens = (most: number): number => tuneLoads(shape, { limits }, most)!.long.cacheSeqlens.reduce((x, y) => x + y);
    expect(tokens(PROBE_TOKENS)).toBe(PROBE_TOKENS);
    expect(tokens(tokensWithin(30, 1000))).toBe(PROBE_TOKENS);
    expect(tokens(tokensWithin(30, 3))).toBeGreaterThan(8 * PROBE_TOKENS);
    expect(tokens(tokensWithin(30, 0.02))).toBeGreaterThan(110_000);
  });

  test('none where no block fits', () => {
    expect(tuneLoads({ hKv: 4000, dQk: 576 }, { limits }, Infinity)).toBeUndefined();
  });
});

describe('the search', () => {
  interface Config { readonly key: string; readonly rows: number }
  const configs: Config[] = [{ key: 'a', rows: 16 }, { key: 'b', rows: 16 }, { key: 'c', rows: 4 }];
  const run = async (times: Record<string, Times | string>, tried: string[] = []) =>
    search({
      configs, rejected: ['d: too: large'], slots: [64, 32, 128, 129],
      parts: ({ rows }, slots) => Math.floor(slots / (64 / rows)),
      measure: async ({ key }, slots, best) => {
        tried.push(`${key} ${slots} ${best === Infinity ? '-' : best.toFixed(1)}`);
        return times[`${key} ${slots}`] ?? times[key] ?? 'not asked for';
      },
    });
  const ms = (longMs: number, shortMs = longMs): Times => ({ longMs, shortMs });

  test('tries all with the first guess, then the best with other slots, those of the same parts once', async () => {
    const tried: string[] = [];
    const { trials, chosen, config } = await run({ a: ms(4), b: ms(2), 'b 32': ms(1), c: 'refused' }, tried);
    expect(tried).toEqual(['a 64 -', 'b 64 4.0', 'c 64 2.0', 'b 32 2.0', 'b 128 1.0']);
    expect(chosen).toEqual({ config: 'b', slots: 32, longMs: 1, shortMs: 1 });
    expect(config?.key).toBe('b');
    expect(trials.slice(2)).toEqual([{ config: 'c', slots: 64, refused: 'refused' }, chosen, { config: 'b', slots: 128, longMs: 2, shortMs: 2 }, { config: 'd', refused: 'too: large' }]);
  });

  test('a long and a short cache weigh the same; the guess stays where nothing is clearly better', async () => {
    expect((await run({ a: ms(10, 1), b: ms(9, 2), c: ms(30, 0.3) })).chosen?.config).toBe('c');
    expect((await run({ a: ms(1), b: ms(0.99), c: ms(0.985) })).chosen?.config).toBe('a');
  });

  test('nothing measured, nothing chosen', async () => {
    const { trials, chosen } = await run({});
    expect(chosen).toBeUndefined();
    expect(trials).toHaveLength(4);
  });

  test('slots around the guess', () => {
    expect(slotLadder(264)).toEqual([264, 132, 528, 66]);
    expect(slotLadder(1)).toEqual([1, 2]);
  });
});

describe('what is stored', () => {
  test('only choices as this version writes them', () => {
    expect(readChoice({ ...choice, more: 1 })).toEqual(choice);
    for (const bad of [null, 1, 'x', [], {}, { ...choice, config: 1 }, { ...choice, slots: 0 }, { ...choice, slots: 1.5 }, { ...choice, longMs: null }, { ...choice, shortMs: -1 }]) expect(readChoice(bad)).toBeUndefined();
  });

  test('keys tell sites apart, whatever their names hold', () => {
    const site: TuneSite = { version: '1', vendor: 'v', architecture: 'a', device: 'd', tier: 't', variant: 'x' };
    const keys = [site, ...Object.keys(site).map((name) => ({ ...site, [name]: '' })), { ...site, vendor: 'v | a', architecture: '' }].map(siteKey);
    expect(new Set(keys).size).toBe(keys.length);
    for (const one of keys) for (const other of keys) expect(one !== other && one.startsWith(other)).toBe(false);
  });

  test('nowhere', async () => {
    const store = noStore('because');
    expect(await store.save('k', choice)).toBe('because');
    expect((await store.load()).size).toBe(0);
  });
});

describe('in a file', () => {
  let directory: string;
  beforeEach(async () => {
    directory = await mkdtemp(join(tmpdir(), 'flashmla-store-'));
  });
  afterEach(() => rm(directory, { recursive: true, force: true }));

  test('where caches go', () => {
    expect(cacheDirectory({}, 'linux', '/home/x')).toBe(join('/home/x', '.cache', 'flashmla-web'));
    expect(cacheDirectory({ XDG_CACHE_HOME: '/c' }, 'linux', '/home/x')).toBe(join('/c', 'flashmla-web'));
    expect(cacheDirectory({}, 'darwin', '/Users/x')).toBe(join('/Users/x', 'Library', 'Caches', 'flashmla-web'));
    expect(cacheDirectory({ LOCALAPPDATA: '/L' }, 'win32', '/x')).toBe(join('/L', 'flashmla-web'));
    expect(cacheDirectory({}, 'win32', '/x')).toBe(join('/x', 'AppData', 'Local', 'flashmla-web'));
    for (const platform of ['linux', 'darwin', 'win32']) expect(cacheDirectory({ FLASHMLA_CACHE_DIR: '/own', XDG_CACHE_HOME: '/c' }, platform, '/x')).toBe('/own');
  });

  test('makes its directory, keeps what others wrote, forgets on demand', async () => {
    const file = join(directory, 'deep', 'tune.json');
    const store = fileStore(file);
    expect((await store.load()).size).toBe(0);
    expect(await store.save('one', choice)).toBeUndefined();
    expect(await fileStore(file).save('two', { ...choice, slots: 7 })).toBeUndefined();
    expect(await store.load()).toEqual(new Map([['one', choice], ['two', { ...choice, slots: 7 }]]));
    expect(await store.forget()).toBeUndefined();
    expect((await store.load()).size).toBe(0);
    expect(await store.forget()).toBeUndefined();
    expect(await readdir(join(directory, 'deep'))).toEqual([]);
  });

  test.each([['damaged', '{"choices": {'], ['empty', ''], ['somebody else’s', '[1, 2]'], ['of another shape', '{"choices": [1]}'], ['with foreign entries', '{"choices": {"x": {"config": 3}}}']])('a file that is %s counts as none and is replaced', async (_, text) => {
    const file = join(directory, 'tune.json');
    await writeFile(file, text);
    const store = fileStore(file);
    expect((await store.load()).size).toBe(0);
    expect(await store.save('one', choice)).toBeUndefined();
    expect(JSON.parse(await readFile(file, 'utf8'))).toEqual({ choices: { one: choice } });
  });

  test('written from all sides at once: whole at every moment, and nothing of this process is lost', async () => {
    const file = join(directory, 'tune.json');
    await fileStore(file).save('first', choice);
    let writing = true;
    const reader = (async () => {
      for (let reads = 0; writing || reads === 0; reads++) JSON.parse(await readFile(file, 'utf8'));
    })();
    const refusals = await Promise.all(Array.from({ length: 40 }, (_, i) => fileStore(file).save(`key ${i}`, choice)));
    writing = false;
    await reader;
    expect(refusals.every((why) => why === undefined)).toBe(true);
    expect((await fileStore(file).load()).size).toBe(41);
    expect(await readdir(directory)).toEqual(['tune.json']);
  });

  test('where it cannot be written it says why, and leaves nothing', async () => {
    const file = join(directory, 'tune.json', 'tune.json');
    await writeFile(join(directory, 'tune.json'), '');
    expect(await fileStore(file).save('one', choice)).toContain(file);
    const closed = join(directory, 'closed');
    await mkdir(closed);
    await mkdir(join(closed, 'tune.json')); // a directory where the file should be: the rename fails
    expect(await fileStore(join(closed, 'tune.json')).save('one', choice)).toContain(join(closed, 'tune.json'));
    expect(await readdir(closed)).toEqual(['tune.json']);
  });
});

describe('in IndexedDB', () => {
  test('keeps, finds and forgets', async () => {
    const factory = fakeIndexedDb();
    const store = indexedDbStore(factory);
    expect(store.place).toBe('IndexedDB flashmla-web');
    expect(await store.save('one', choice)).toBeUndefined();
    expect(await indexedDbStore(factory).load()).toEqual(new Map([['one', choice]]));
    expect(await store.forget()).toBeUndefined();
    expect((await store.load()).size).toBe(0);
  });

  test('what others put there is left alone', async () => {
    const factory = fakeIndexedDb([{ key: 'x', config: 1 }, 'text', { ...choice, key: 'good' }, { ...choice }]);
    expect(await indexedDbStore(factory).load()).toEqual(new Map([['good', choice]]));
  });

  test('absent, refused or blocked: nothing is remembered, no error', async () => {
    expect(await indexedDbStore(undefined).save('one', choice)).toBe('no IndexedDB here');
    const refusing = { open: () => { throw new Error('not in private windows'); } } as unknown as IDBFactory;
    expect(await indexedDbStore(refusing).save('one', choice)).toBe('IndexedDB: not in private windows');
    expect((await indexedDbStore(refusing).load()).size).toBe(0);
    const blocked = { open: () => ({}) } as unknown as IDBFactory;
    expect(await indexedDbStore(blocked, 20).save('one', choice)).toBe('IndexedDB: no answer within 20 ms');
    expect((await indexedDbStore(blocked, 20).load()).size).toBe(0);
  });
});

/** As much of IndexedDB as is used here. */
function fakeIndexedDb(initial: readonly unknown[] = []): IDBFactory {
  const rows = new Map<unknown, unknown>(initial.map((row, i) => [i, row]));
  let made = false;
  const request = (result: unknown, upgrade = false): object => {
    const pending: { result: unknown; onsuccess?: () => void; onupgradeneeded?: () => void } = { result };
    queueMicrotask(() => {
      if (upgrade) pending.onupgradeneeded?.();
      pending.onsuccess?.();
    });
    return pending;
  };
  const store = {
    getAll: () => request([...rows.values()]),
    put: (value: unknown, key: unknown) => request(void rows.set(key, value)),
    clear: () => request(rows.clear()),
  };
  const database = {
    createObjectStore: () => void (made = true),
    transaction: () => {
      if (!made) throw new Error('no such object store');
      return { objectStore: () => store };
    },
    close: () => undefined,
  };
  return { open: () => request(database, !made) } as unknown as IDBFactory;
}
