/** The worker's protocol, with everything a backend must do on the other side of a message channel: cpu, in this process. */
import { MessageChannel, Worker, type MessagePort } from 'node:worker_threads';
import { afterAll, describe, expect, test } from 'vitest';
import type { Backend } from '../src/backend.ts';
import { MlaError } from '../src/errors.ts';
import { createBackend } from '../src/index.ts';
import type { Mla } from '../src/mla.ts';
import { connect, serve } from '../src/worker/index.ts';
import { few } from './case-lists.ts';
import { altered } from './altered.ts';
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
async function connected(methods: (backend: Backend) => Partial<Backend> = () => ({})): Promise<{ mla: Mla; theirs: MessagePort }> {
  const { ours, theirs } = channel();
  serve(async () => {
    const backend = await createBackend({ backend: 'cpu' });
    return altered(backend, methods(backend));
  }, theirs);
  return { mla: await connect(ours), theirs };
}

conformance('worker', async () => (await connected()).mla, few);

describe('worker protocol', () => {
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
