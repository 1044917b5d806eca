/** The worker's protocol, with everything a backend must do on the other side of a message channel: cpu, in this process. */
import { execFile } from 'node:child_process';
import { promisify } from 'node:util';
import { MessageChannel, Worker, type MessagePort } from 'node:worker_threads';
import { afterAll, describe, expect, test } from 'vitest';
import type { Backend } from '../src/backend.ts';
import { MlaError } from '../src/errors.ts';
import { createBackend } from '../src/index.ts';
import type { Mla, MlaTensor } from '../src/mla.ts';
import { connect, serve } from '../src/worker/index.ts';
import { CONNECT } from '../src/worker/protocol.ts';
import { few } from './case-lists.ts';
import { altered } from './altered.ts';
import { checkBuilt } from './built-cli.ts';
import { collectGarbage } from './garbage.ts';
import { conformance } from './conformance.ts';
import { expectRefusal } from './check.ts';

const open: MessagePort[] = [];

function channel(): { ours: MessagePort; theirs: MessagePort } {
  const { port1: ours, port2: theirs } = new MessageChannel();
  open.push(ours, theirs);
  return { ours, theirs };
}

afterAll(() => {
  for (const port of open) port.close();
});

/** The cpu backend behind a channel, with some of its methods replaced. */
async function connected(methods: (backend: Backend) => Partial<Backend> = () => ({})): Promise<{ mla: Mla; ours: MessagePort; theirs: MessagePort }> {
  const { ours, theirs } = channel();
  serve(async () => {
    const backend = await createBackend({ backend: 'cpu' });
    return altered(backend, methods(backend));
  }, theirs);
  return { mla: await connect(ours), ours, theirs };
}

conformance('worker', async () => (await connected()).mla, few);

describe('several instances of one worker', () => {
  const values = async (tensor: MlaTensor): Promise<number[]> => [...(await tensor.read())];

  test('at once: each has tensors of its own, and the end of one is not the others’', async () => {
    const { mla: first, ours } = await connected();
    const second = await connect(ours);
    const [a, b] = [await first.tensor({ data: Float32Array.of(1, 2, 3), shape: [3] }), await second.tensor({ data: Float32Array.of(7, 8, 9), shape: [3] })];
    expect([await values(a), await values(b)]).toEqual([[1, 2, 3], [7, 8, 9]]);
    await second.destroy();
    expect(await values(a)).toEqual([1, 2, 3]);
    await expectRefusal(() => b.read(), 'destroyed');
    await first.destroy();
  });

  test('one after the other', async () => {
    const warnings: Error[] = [];
    const note = (warning: Error): void => void warnings.push(warning);
    process.on('warning', note);
    const { ours } = await connected();
    for (let i = 0; i < 15; i++) {
      const mla = await connect(ours);
      expect(await values(await mla.tensor({ data: Float32Array.of(i), shape: [1] }))).toEqual([i]);
      await mla.destroy();
    }
    process.off('warning', note);
    expect(warnings).toEqual([]);
  });

  test('after one that was refused, whose remains are collected', async () => {
    const { ours, theirs } = channel();
    serve(async (options) => createBackend({ backend: options.backend ?? 'cpu' }), theirs);
    await expectRefusal(() => connect(ours, { backend: 'webgpu' }), 'backend-unavailable', 'backend');
    const mla = await connect(ours);
    for (let i = 0; i < 3; i++) await collectGarbage();
    const tensor = await mla.tensor({ data: Float32Array.of(5), shape: [1] });
    expect(await values(tensor)).toEqual([5]);
    await mla.destroy();
  });

  test('many at once, of which some are collected, listen to their worker once, and in the end not at all', async () => {
    const warnings: Error[] = [];
    const note = (warning: Error): void => void warnings.push(warning);
    process.on('warning', note);
    let alive = 0;
    const { ours, theirs } = channel();
    serve(async () => {
      const backend = await createBackend({ backend: 'cpu' });
      alive++;
      return altered(backend, { destroy: async () => void (alive--, await backend.destroy()) });
    }, theirs);
    const listeners = (): number => ['exit', 'close', 'error', 'message'].reduce((count, event) => count + ours.listenerCount(event), 0);
    const before = listeners();
    const kept = await connect(ours);
    const one = listeners();
    await (async () => {
      for (let i = 0; i < 12; i++) await connect(ours);
    })();
    expect([alive, listeners()]).toEqual([13, one]);
    while (alive > 1) await collectGarbage();
    await kept.destroy();
    expect(alive).toBe(0);
    process.off('warning', note);
    expect(warnings).toEqual([]);
    expect(before).toBeLessThan(one);
  });

  test('one that nobody holds any more is freed over there', async () => {
    let freed = 0;
    const { ours, theirs } = channel();
    serve(async () => {
      const backend = await createBackend({ backend: 'cpu' });
      return altered(backend, { destroy: async () => void (freed++, await backend.destroy()) });
    }, theirs);
    const kept = await connect(ours);
    await (async () => void (await connect(ours)))();
    for (let i = 0; i < 100 && freed === 0; i++) await collectGarbage();
    expect(freed).toBe(1);
    await kept.destroy();
    expect(freed).toBe(2);
  });

  test('one that leaves while it is being made', async () => {
    let freed = 0;
    let made!: () => void;
    const making = new Promise<void>((resolve) => (made = resolve));
    const { ours, theirs } = channel();
    serve(async () => {
      await making;
      const backend = await createBackend({ backend: 'cpu' });
      return altered(backend, { destroy: async () => void (freed++, await backend.destroy()) });
    }, theirs);
    const { port1, port2 } = new MessageChannel();
    ours.postMessage({ type: CONNECT, id: 'one', port: port2 }, [port2]);
    port1.postMessage({ id: 'open', type: 'APPLY', path: ['open'], argumentList: [{ type: 'RAW', value: {} }] });
    await new Promise((resolve) => setTimeout(resolve, 20));
    port1.close();
    await new Promise((resolve) => setTimeout(resolve, 20));
    made();
    for (let i = 0; i < 100 && freed === 0; i++) await new Promise((resolve) => setTimeout(resolve, 10));
    expect(freed).toBe(1);
  });
});

describe('worker protocol', () => {
  test('an error over there that nobody caught is not its end', async () => {
    const { ours, theirs } = channel();
    serve(() => createBackend({ backend: 'cpu' }), theirs);
    // As browsers have it: the script goes on.
    const errors = new EventTarget();
    const worker = {
      postMessage: (message: never, moved: never) => ours.postMessage(message, moved),
      addEventListener: errors.addEventListener.bind(errors), removeEventListener: errors.removeEventListener.bind(errors),
    };
    const mla = await connect(worker);
    errors.dispatchEvent(Object.assign(new Event('error'), { message: 'x is not defined' }));
    const tensor = await mla.tensor({ data: Float32Array.of(5), shape: [1] });
    expect([...(await tensor.read())]).toEqual([5]);
    await mla.destroy();

    const opening = connect(worker);
    errors.dispatchEvent(Object.assign(new Event('error'), { message: 'x is not defined' }));
    expect((await expectRefusal(() => opening, 'backend-unavailable', 'worker')).message).toContain('x is not defined');
  });

  test('options that cannot be posted', async () => {
    const { ours, theirs } = channel();
    serve(() => createBackend({ backend: 'cpu' }), theirs);
    await expectRefusal(() => connect(ours, { gpu: { requestAdapter: () => null } } as never), 'invalid-argument', 'options');
  });

  test('a worker that has ended before', async () => {
    const worker = new Worker('', { eval: true });
    await new Promise((resolve) => worker.once('exit', resolve));
    await expectRefusal(() => connect(worker), 'backend-unavailable', 'worker');
  });

  test('a worker that does not answer destroy: it is left', async () => {
    const { mla } = await connected(() => ({ destroy: () => new Promise<void>(() => undefined) }));
    const start = performance.now();
    await mla.destroy();
    expect(performance.now() - start).toBeGreaterThan(1000);
  });

  test.each([['is used and left', 'await mla.destroy(); worker.unref();'], ['is unreferenced while it is connected', 'worker.unref();'], ['is ended by its program', 'await mla.destroy(); await worker.terminate();'],
    ['is ended before it is left', 'setTimeout(() => process.exit(5), 4000).unref(); await worker.terminate(); await mla.destroy();']])(
    'a program whose worker %s ends by itself', async (_, last) => {
      checkBuilt();
      const dist = new URL('../dist/', import.meta.url).href;
      const inWorker = `
        Promise.all([import('node:worker_threads'), import('${dist}worker.js'), import('${dist}index.js')])
          .then(([{ parentPort }, { serve }, { createBackend }]) => serve(createBackend, parentPort))`;
      const program = `
        import { Worker } from 'node:worker_threads';
        import { connect } from '${dist}worker.js';
        const worker = new Worker(${JSON.stringify(inWorker)}, { eval: true });
        const mla = await connect(worker, { backend: 'cpu' });
        console.log((await (await mla.tensor({ data: Float32Array.of(7), shape: [1] })).read())[0]);
        ${last}`;
      const { stdout, stderr } = await promisify(execFile)(process.execPath, ['--input-type=module', '-e', program], { timeout: 250_000 });
      expect([stdout, stderr]).toEqual(['7\n', '']);
    },
  );

  test('of a worker that ends by an error the error is told', async () => {
    const worker = new Worker('setTimeout(() => { throw new Error("out of luck"); }, 20)', { eval: true });
    const error = await expectRefusal(() => connect(worker), 'backend-unavailable', 'worker');
    expect(error.message).toContain('out of luck');
  });

  test('moves what is to be transferred and copies the rest', async () => {
    const { mla } = await connected();
    const [moved, copied, part] = [Uint16Array.of(1, 2, 3), Uint16Array.of(4, 5, 6), new Uint16Array(8).fill(7).subarray(2, 5)];
    const tensors = [
      await mla.tensor({ data: moved, shape: [3], transfer: true }),
      await mla.tensor({ data: copied, shape: [3] }),
      await mla.tensor({ data: part, shape: [3], transfer: true }),
    ];
    expect(await Promise.all(tensors.map((tensor) => tensor.readBits()))).toEqual([Uint16Array.of(1, 2, 3), Uint16Array.of(4, 5, 6), Uint16Array.of(7, 7, 7)]);
    expect(moved.length).toBe(0);
    expect(copied.length).toBe(3);
    await mla.destroy();
  });

  test('an error over there is the same error here', async () => {
    const { ours, theirs } = channel();
    serve(() => createBackend({ backend: 'webgpu' }), theirs);
    const error = await expectRefusal(() => connect(ours), 'backend-unavailable', 'backend');
    expect(error.fix).toContain('flashmla-web/node');
  });

  test('a worker that ends before it serves', async () => {
    const error = await expectRefusal(() => connect(new Worker('process.exit(3)', { eval: true })), 'backend-unavailable', 'worker');
    expect(error.message).toContain('has ended');
  });

  test('a worker that ends: what waits rejects, as does what comes after, and destroy resolves', async () => {
    const { mla, theirs } = await connected(() => ({ flushCache: () => new Promise<void>(() => undefined) }));
    const waiting = mla.flushCache();
    theirs.close();
    await expectRefusal(() => waiting, 'backend-unavailable', 'worker');
    await expectRefusal(() => mla.memory(), 'backend-unavailable', 'worker');
    await mla.destroy();
  });

  test('an append that the device over there has no room for changes nothing', async () => {
    const { mla } = await connected((backend) => ({
      create: async (spec, ...rest) => {
        if (spec.shape[0] === 33) throw new MlaError('limit-exceeded', 'too many rows');
        await backend.create(spec, ...rest);
      },
    }));
    const cache = await mla.createKvCache({ numBlocks: 8, blockSize: 16, headDim: 48, headDimV: 32 });
    const rows = (count: number): { data: Uint16Array; shape: [number, number] } => ({ data: new Uint16Array(count * 48), shape: [count, 48] });
    const sequence = cache.createSequence();
    await cache.append({ sequences: [sequence], counts: [5], latent: rows(5) });
    await expectRefusal(() => cache.append({ sequences: [sequence], counts: [33], latent: rows(33) }), 'limit-exceeded');
    expect(cache.length(sequence)).toBe(5);
    expect(cache.stats().freeBlocks).toBe(7);
    await cache.append({ sequences: [sequence], counts: [20], latent: rows(20) });
    expect(cache.length(sequence)).toBe(25);
    await mla.destroy();
  });

  test('of appends that nobody waited for, one that is refused takes those behind with it', async () => {
    let refused = 1;
    const { mla } = await connected((backend) => ({
      append: async (op) => {
        if (refused-- > 0) throw new MlaError('out-of-memory', 'no room');
        await backend.append(op);
      },
    }));
    const cache = await mla.createKvCache({ numBlocks: 8, blockSize: 16, headDim: 48, headDimV: 32 });
    const sequence = cache.createSequence();
    const three = (): Promise<void> => cache.append({ sequences: [sequence], counts: [3], latent: { data: new Uint16Array(3 * 48), shape: [3, 48] } });
    for (const [first, second] of [['out-of-memory', 'out-of-range'], ['out-of-memory', 'out-of-memory']] as const) {
      refused = second === 'out-of-memory' ? 2 : 1;
      const [one, other] = await Promise.allSettled([three(), three()]);
      expect([one, other]).toMatchObject([{ reason: { code: first } }, { reason: { code: second } }]);
      expect([cache.length(sequence), cache.stats().freeBlocks]).toEqual([0, 8]);
    }
    await three();
    expect(cache.length(sequence)).toBe(3);
    await mla.destroy();
  });

  test('a copy on write that is refused over there leaves a fork on the block it had', async () => {
    let refusing = true;
    const { mla } = await connected((backend) => ({
      copyBlocks: async (op) => {
        if (refusing) throw new MlaError('out-of-memory', 'no room');
        await backend.copyBlocks(op);
      },
    }));
    const cache = await mla.createKvCache({ numBlocks: 4, blockSize: 16, headDim: 48, headDimV: 32 });
    const rows = (count: number): { data: Uint16Array; shape: number[] } => ({ data: new Uint16Array(count * 48).fill(0x3f80), shape: [count, 48] });
    const sequence = cache.createSequence();
    await cache.append({ sequences: [sequence], counts: [5], latent: rows(5) });
    const fork = cache.fork(sequence);
    const state = (): unknown => ({ blocks: cache.blocks(fork), length: cache.length(fork), stats: cache.stats() });
    const before = state();
    await expectRefusal(() => cache.append({ sequences: [fork], counts: [1], latent: rows(1) }), 'out-of-memory');
    expect(state()).toEqual(before);
    await expectRefusal(() => cache.reserve({ sequences: [fork], counts: [1] }), 'out-of-memory');
    expect(state()).toEqual(before);
    refusing = false;
    await cache.append({ sequences: [fork], counts: [1], latent: rows(1) });
    const [block] = cache.blocks(fork);
    expect((await cache.tensor().read()).slice(block! * 16 * 48, (block! * 16 + 6) * 48).every((x) => x === 1)).toBe(true);
    expect(cache.stats()).toMatchObject({ freeBlocks: 2, sharedBlocks: 0 });
    await mla.destroy();
  });

  test('what has been read is kept by nobody', async () => {
    const { mla } = await connected();
    const tensor = await mla.tensor({ data: new Float32Array(1 << 18), shape: [1 << 18] });
    const held = async (): Promise<number> => {
      await collectGarbage();
      return process.memoryUsage().arrayBuffers;
    };
    await tensor.read();
    const before = await held();
    for (let i = 0; i < 64; i++) await tensor.read();
    expect(await held() - before).toBeLessThan(16 << 20);
    await mla.destroy();
  });

  test('something that is no worker', () => expectRefusal(() => connect({} as MessagePort), 'invalid-argument', 'worker').then(() => undefined));

  test('a GPUBuffer cannot cross', async () => {
    const { mla } = await connected();
    await expectRefusal(() => mla.tensor({ gpuBuffer: {} as GPUBuffer, shape: [1], dtype: 'bf16' }), 'invalid-argument');
    await mla.destroy();
  });
});
