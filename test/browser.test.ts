/** The built package in a real headless Chromium: on the page, and from a worker. Results are compared here, in Node. */
import { chromium, type Browser, type Page } from 'playwright-core';
import { afterAll, beforeAll, beforeEach, describe, expect, test } from 'vitest';
import type * as Package from '../src/index.ts';
import type { Mla } from '../src/mla.ts';
import type { connect } from '../src/worker/index.ts';
import { serveTests, type TestServer } from './browser/server.ts';
import { few } from './case-lists.ts';
import { caseName, decodeArgs, makeCase, type DecodeCase } from './cases.ts';
import { expectRight } from './check.ts';
import { chromiumLaunchOptions } from './software-adapter.ts';

/** What page.html puts on the page, and what the steps below keep there. */
declare global {
  var flashmla: typeof Package & { connect: typeof connect };
  var instances: Record<string, Mla>;
}

let browser: Browser;
let server: TestServer;
let page: Page;
/** Errors that reached the page as events. None may. */
const events: string[] = [];

async function openPage(before?: () => void, from = browser): Promise<Page> {
  const opened = await from.newPage();
  opened.setDefaultTimeout(250_000);
  opened.on('pageerror', (error) => events.push(`pageerror ${error.message}`));
  opened.on('crash', () => events.push('crash'));
  opened.on('console', (message) => {
    if (message.type() === 'error') events.push(`console ${message.text()} (${message.location().url})`);
  });
  if (before) await opened.addInitScript(before);
  await opened.goto(`${server.origin}/page.html`);
  await opened.waitForFunction(() => document.body.textContent === 'ready');
  return opened;
}

beforeAll(async () => {
  server = await serveTests();
  browser = await chromium.launch(await chromiumLaunchOptions());
  page = await openPage();
  await page.evaluate(openInstances);
});

/** On the page: one there, one in a worker. */
async function openInstances(): Promise<void> {
  globalThis.instances = {
    page: await flashmla.createMla({ backend: 'webgpu' }),
    worker: await flashmla.connect(new Worker('/worker.js', { type: 'module' }), { backend: 'webgpu' }),
  };
}

afterAll(async () => {
  await browser?.close();
  await server?.close();
});

beforeEach(() => {
  events.length = 0;
});

/** Decodes a case over there and reads the result here. */
async function decodeThere(where: Page, instance: string, c: DecodeCase): Promise<{ out: Float32Array; lse: Float32Array }> {
  const { q, kvCache, headDimV, causal = false, softmaxScale } = decodeArgs(c);
  const bytes = (array: Uint16Array | Int32Array): Uint8Array => new Uint8Array(array.buffer, array.byteOffset, array.byteLength);
  server.store.set('q', bytes(c.q));
  server.store.set('kv', bytes(c.kvCache));
  await where.evaluate(
    async ({ name, dtype, qShape, kvShape, table, seqlens, others }) => {
      const get = async (path: string): Promise<Uint16Array> => new Uint16Array(await (await fetch(`/store/${path}`)).arrayBuffer());
      const put = async (path: string, data: Float32Array): Promise<void> => {
        await fetch(`/store/${path}`, { method: 'PUT', body: data as Float32Array<ArrayBuffer> });
      };
      const result = await instances[name]!.flashMlaWithKvCache({
        ...others,
        q: { data: await get('q'), shape: qShape, dtype, transfer: true },
        kvCache: { data: await get('kv'), shape: kvShape, dtype, transfer: true },
        blockTable: Int32Array.from(table),
        cacheSeqlens: Int32Array.from(seqlens),
      });
      await put('out', (await result.out.read()) as Float32Array);
      await put('lse', (await result.lse.read()) as Float32Array);
      result.out.destroy();
      result.lse.destroy();
    },
    {
      name: instance, dtype: c.dtype, qShape: [...q.shape], kvShape: [...kvCache.shape], table: [...c.blockTable], seqlens: [...c.cacheSeqlens],
      others: { headDimV, causal, ...(softmaxScale === undefined ? {} : { softmaxScale }) },
    },
  );
  const floats = (path: string): Float32Array => {
    const stored = server.store.get(path)!;
    return new Float32Array(Uint8Array.from(stored).buffer);
  };
  return { out: floats('out'), lse: floats('lse') };
}

const narrow = makeCase({ b: 2, sQ: 1, sK: 140, hQ: 4, dV: 32, rope: 16 });

describe.each(['page', 'worker'])('webgpu on the %s', (instance) => {
  for (const options of few) {
    test(caseName(options), async () => {
      const c = makeCase(options);
      expectRight(c, await decodeThere(page, instance, c));
      expect(events).toEqual([]);
    });
  }

  test('says what it runs on', async () => {
    const info = await page.evaluate((name) => instances[name]!.info, instance);
    expect(info).toMatchObject({ backend: 'webgpu', reason: 'asked for' });
    expect(info.device).not.toBe('');
    expect(info.limits['maxStorageBufferBindingSize']).toBeGreaterThanOrEqual(128 * 1024 * 1024);
  });

  test('what is tuned is remembered in IndexedDB, for the page and its workers', async () => {
    const { reports, slots, next } = await page.evaluate(async (name) => {
      const mla = instances[name]!;
      const tiny = { numQTokensPerHeadK: 4, headDim: 48, headDimV: 32, load: 'short' } as const;
      const found = [...(await mla.tune({ ...tiny, again: true })), ...(await mla.tune(tiny))];
      const onPage = await flashmla.createMla({ backend: 'webgpu' });
      const inWorker = await flashmla.connect(new Worker('/worker.js', { type: 'module' }), { backend: 'webgpu', tune: 'stored' });
      const later = [...(await onPage.tune(tiny)), ...(await inWorker.tune(tiny))];
      const heard = [mla, onPage, inWorker].map(({ info }) => info.schedule.tuned?.[0]?.slots);
      await Promise.all([onPage.destroy(), inWorker.destroy()]);
      return { reports: found, slots: heard, next: later };
    }, instance);
    const note = 'remembered in IndexedDB flashmla-web';
    const { chosen } = reports[0]!;
    expect(reports).toMatchObject([{ source: 'measured', note }, { source: 'remembered', note, chosen }]);
    expect(next).toMatchObject([{ source: 'remembered', note, chosen }, { source: 'remembered', note, chosen }]);
    expect(slots).toEqual([chosen!.slots, chosen!.slots, chosen!.slots]);
    expect(events).toEqual([]);
  });

  test('a cache grows, forks and is decoded', async () => {
    // One head of width 32 + 16, keys of one value each: equal scores, so that out is the mean of the values.
    const means = await page.evaluate(async (name) => {
      const mla = instances[name]!;
      const cache = await mla.createKvCache({ numBlocks: 8, blockSize: 16, headDim: 48, headDimV: 32 });
      const rows = (value: number, tokens: number) => ({ data: new Float32Array(tokens * 48).fill(value), shape: [tokens, 1, 48] });
      const a = cache.createSequence();
      await cache.append({ sequences: [a], counts: [20], latent: rows(1, 20) });
      const b = cache.fork(a);
      await cache.append({ sequences: [b, a], counts: [20, 60], latent: { data: Float32Array.from({ length: 80 * 48 }, (_, i) => (i < 20 * 48 ? 3 : -1)), shape: [80, 1, 48] } });
      const { out, lse } = await mla.flashMlaWithKvCache({
        q: { data: new Float32Array(2 * 48), shape: [2, 1, 1, 48] }, kvCache: cache.tensor(), headDimV: 32,
        blockTable: cache.blockTable([a, b]), cacheSeqlens: cache.cacheSeqlens([a, b]),
      });
      const values = [...(await out.read()), ...(await lse.read())];
      const stats = cache.stats();
      cache.destroy();
      return { a: values[0], b: values[32], lse: values.slice(64), shared: stats.sharedBlocks };
    }, instance);
    // a: 20 ones and 60 minus ones; b: 20 ones and 20 threes.
    expect(means).toMatchObject({ a: -0.5, b: 2, shared: 1 });
    expect(means.lse[0]).toBeCloseTo(Math.log(80), 5);
    expect(means.lse[1]).toBeCloseTo(Math.log(40), 5);
    expect(events).toEqual([]);
  });

  test('bad input gives a typed error, and the next call works', async () => {
    const errors = await page.evaluate(async (name) => {
      const mla = instances[name]!;
      const bits = (count: number) => new Uint16Array(count);
      const good = {
        q: { data: bits(48), shape: [1, 1, 1, 48] }, kvCache: { data: bits(16 * 48), shape: [1, 16, 1, 48] },
        blockTable: Int32Array.of(0), cacheSeqlens: Int32Array.of(3), headDimV: 32,
      };
      const attempts: (() => Promise<unknown>)[] = [
        () => mla.flashMlaWithKvCache({ ...good, blockTable: Int32Array.of(1) }),
        () => mla.flashMlaWithKvCache({ ...good, softmaxScale: NaN }),
        () => mla.flashMlaWithKvCache({ ...good, q: { data: bits(47), shape: [1, 1, 1, 48] } }),
        () => mla.createKvCache({ numBlocks: 2 ** 24 }),
        () => mla.createKvCache({ numBlocks: 2, blockSize: 16 }).then((cache) => cache.reserve({ sequences: [cache.createSequence()], counts: [33] })),
      ];
      const caught: unknown[] = [];
      for (const attempt of attempts) {
        caught.push(await attempt().then(() => 'no error', (error: unknown) => [error instanceof flashmla.MlaError, (error as { code?: string }).code]));
      }
      return caught;
    }, instance);
    expect(errors).toEqual([
      [true, 'out-of-range'], [true, 'invalid-argument'], [true, 'invalid-shape'], [true, 'limit-exceeded'], [true, 'pool-exhausted'],
    ]);
    expectRight(narrow, await decodeThere(page, instance, narrow));
    expect(events).toEqual([]);
  });
});

describe('worker', () => {
  test('arrays are copied, or moved when told', async () => {
    const lengths = await page.evaluate(async () => {
      const [copied, moved] = [new Uint16Array(8).fill(1), new Uint16Array(8).fill(2)];
      const tensors = [
        await instances['worker']!.tensor({ data: copied, shape: [8] }),
        await instances['worker']!.tensor({ data: moved, shape: [8], transfer: true }),
      ];
      const read = await Promise.all(tensors.map((tensor) => tensor.readBits()));
      for (const tensor of tensors) tensor.destroy();
      return [copied.length, moved.length, ...read.map((bits) => bits.join())];
    });
    expect(lengths).toEqual([8, 0, '1,1,1,1,1,1,1,1', '2,2,2,2,2,2,2,2']);
  });

  test('a script that serves late, and several instances of it', async () => {
    const read = await page.evaluate(async () => {
      const worker = new Worker('/late-worker.js', { type: 'module' });
      const both = await Promise.all([flashmla.connect(worker, { backend: 'cpu' }), flashmla.connect(worker, { backend: 'cpu' })]);
      const third = await flashmla.connect(worker, { backend: 'cpu' });
      const tensors = await Promise.all([...both, third].map((mla, i) => mla.tensor({ data: Float32Array.of(i), shape: [1] })));
      const numbers = await Promise.all(tensors.map(async (tensor) => (await tensor.read())[0]));
      await Promise.all([...both, third].map((mla) => mla.destroy()));
      worker.terminate();
      return numbers;
    });
    expect(read).toEqual([0, 1, 2]);
    expect(events).toEqual([]);
  });

  test('a worker that was terminated, of which nobody is told: destroy resolves all the same', async () => {
    await page.evaluate(async () => {
      const worker = new Worker('/worker.js', { type: 'module' });
      const mla = await flashmla.connect(worker, { backend: 'cpu' });
      worker.terminate();
      await mla.destroy();
    });
    expect(events).toEqual([]);
  });

  test('a script that is not there is an error, not a wait', async () => {
    const code = await page.evaluate(() =>
      flashmla.connect(new Worker('/no-such-worker.js', { type: 'module' })).then(() => 'connected', (error: { code?: string }) => error.code),
    );
    expect(code).toBe('backend-unavailable');
  });
});

describe('device lost', () => {
  test('on the page: waiting and later calls reject, the page lives, a new instance works', async () => {
    const { finished, codes } = await page.evaluate(async () => {
      const adapter = await navigator.gpu.requestAdapter();
      const device = await adapter!.requestDevice();
      const mla = await flashmla.createMla({ backend: 'webgpu', device });
      const args = {
        q: { data: new Uint16Array(48), shape: [1, 1, 1, 48] }, kvCache: { data: new Uint16Array(16 * 48), shape: [1, 16, 1, 48] },
        blockTable: Int32Array.of(0), cacheSeqlens: Int32Array.of(3), headDimV: 32,
      };
      const codeOf = (promise: Promise<unknown>): Promise<unknown> =>
        promise.then(() => 'no error', (error: unknown) => (error instanceof flashmla.MlaError ? error.code : String(error)));
      const { out, lse } = await mla.flashMlaWithKvCache(args);
      const waiting = [codeOf(out.read()), codeOf(lse.read())];
      const done = codeOf(mla.finished());
      device.destroy();
      const codes = await Promise.all(waiting);
      const finished = await done;
      for (const later of [() => mla.flashMlaWithKvCache(args), () => mla.tensor(args.q), () => out.read(), () => mla.finished()]) codes.push(await codeOf(later()));
      await mla.destroy();
      instances['next'] = await flashmla.createMla({ backend: 'webgpu' });
      return { finished, codes };
    });
    expect(codes).toEqual(Array(6).fill('device-lost'));
    // The GPU is in another process here, which may have done the work before it heard of the end: then that is the answer.
    expect(['device-lost', 'no error']).toContain(finished);
    expectRight(narrow, await decodeThere(page, 'next', narrow));
    expectRight(narrow, await decodeThere(page, 'page', narrow));
    expect(events).toEqual([]);
  });

  test('in a worker: the same error arrives here', async () => {
    const codes = await page.evaluate(async () => {
      const mla = await flashmla.connect(new Worker('/losing-worker.js', { type: 'module' }), { backend: 'webgpu' });
      const tensor = await mla.tensor({ data: new Uint16Array(8), shape: [8] });
      await tensor.read();
      new BroadcastChannel('lose').postMessage('now');
      const codeOf = (promise: Promise<unknown>): Promise<unknown> =>
        promise.then(() => 'no error', (error: unknown) => (error instanceof flashmla.MlaError ? error.code : String(error)));
      // The word travels to the worker by another way than the calls: ask until it has arrived.
      let code: unknown = 'no error';
      while (code === 'no error') code = await codeOf(tensor.read());
      return [code, await codeOf(mla.tensor({ data: new Uint16Array(8), shape: [8] })), await codeOf(mla.finished())];
    });
    expect(codes).toEqual(['device-lost', 'device-lost', 'device-lost']);
    expectRight(narrow, await decodeThere(page, 'worker', narrow));
    expect(events).toEqual([]);
  });

  test('the GPU’s process dies: page and worker are told, and go on with new instances', async () => {
    const doomed = await chromium.launch(await chromiumLaunchOptions());
    try {
      const its = await openPage(undefined, doomed);
      await its.evaluate(openInstances);
      expectRight(narrow, await decodeThere(its, 'page', narrow));
      expectRight(narrow, await decodeThere(its, 'worker', narrow));

      // Every step waits for its results and for the queue, so whatever the crash meets is under way.
      const steps = its.evaluate(() => {
        const args = {
          q: { data: new Uint16Array(48), shape: [1, 1, 1, 48] }, kvCache: { data: new Uint16Array(16 * 48), shape: [1, 16, 1, 48] },
          blockTable: Int32Array.of(0), cacheSeqlens: Int32Array.of(3), headDimV: 32,
        };
        const decodeOn = async (mla: Mla): Promise<never> => {
          for (;;) {
            const { out, lse } = await mla.flashMlaWithKvCache(args);
            await Promise.all([out.read(), mla.finished()]);
            out.destroy();
            lse.destroy();
          }
        };
        return Promise.all(['page', 'worker'].map((name) => decodeOn(instances[name]!).catch((error: { code?: string; message: string }) => [error.code, error.message])));
      });
      const session = await doomed.newBrowserCDPSession();
      await session.send('Browser.crashGpuProcess');
      for (const [code, message] of await steps) {
        expect(code).toBe('device-lost');
        expect(message).toMatch(/[^.]\. Make a new instance with createMla$/);
      }
      const refused = await its.evaluate(() =>
        Promise.all(['page', 'worker'].map((name) => instances[name]!.finished().then(() => 'no error', (error: { code?: string }) => error.code))),
      );
      expect(refused).toEqual(['device-lost', 'device-lost']);

      await its.evaluate(openInstances);
      expectRight(narrow, await decodeThere(its, 'page', narrow));
      expectRight(narrow, await decodeThere(its, 'worker', narrow));
      expect(events).toEqual([]);
    } finally {
      await doomed.close();
    }
  });
});

describe('choosing a backend', () => {
  test('auto takes webgpu, and cuda is refused with a way out', async () => {
    const found = await page.evaluate(async () => {
      const mla = await flashmla.createMla();
      const { backend, reason } = mla.info;
      await mla.destroy();
      const refused = await flashmla.createMla({ backend: 'cuda' }).catch((error: { code?: string; message: string }) => error);
      return { backend, reason, code: (refused as { code?: string }).code, message: (refused as { message: string }).message };
    });
    expect(found).toMatchObject({ backend: 'webgpu', code: 'backend-unavailable' });
    expect(found.reason).toContain('webgpu');
    expect(found.message).toContain('flashmla-web/node');
  });

  test('where there is no WebGPU, auto takes the cpu and says why', async () => {
    const without = await openPage(() => {
      // As in a browser without it, or on a page that is not secure.
      delete (Navigator.prototype as { gpu?: GPU }).gpu;
    });
    const found = await without.evaluate(async () => {
      const code = await flashmla.createMla({ backend: 'webgpu' }).then(() => 'no error', (error: { code?: string }) => error.code);
      globalThis.instances = { cpu: await flashmla.createMla() };
      return { code, info: instances['cpu']!.info };
    });
    expect(found.code).toBe('backend-unavailable');
    expect(found.info).toMatchObject({ backend: 'cpu' });
    expect(found.info.reason).toMatch(/webgpu/i);
    expectRight(narrow, await decodeThere(without, 'cpu', narrow));
    expect(events).toEqual([]);
    await without.close();
  });
});
