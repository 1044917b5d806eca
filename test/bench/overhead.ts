/**
 * `npm run bench:overhead`: what a decode call costs from JavaScript on a Hopper GPU: wall time of a call and its end, above
 * the device time of the same call. Exit 1 when that is over the limit, 2 where there is no such GPU.
 *
 * A layer of a step, as a server runs it: tensors, metadata and outputs are there and are used again. Also told: wall time
 * of enqueueing alone. Medians, in microseconds.
 */
import { existsSync } from 'node:fs';
import { fileURLToPath } from 'node:url';
import { median } from '../../src/median.ts';
import type { Mla } from '../../src/mla.ts';

const LIMIT_US = 15;
/** Calls until JavaScript is compiled. */
const WARM_UP = 3000;
/** Calls enqueued before a wait, few enough for the launch queue. */
const BURST = 50;
const SHAPES = [
  { b: 1, sQ: 1, hQ: 16, sK: 1024 },
  { b: 1, sQ: 1, hQ: 128, sK: 8192 },
  { b: 32, sQ: 1, hQ: 128, sK: 2048 },
  { b: 128, sQ: 2, hQ: 128, sK: 8192 },
];
const RUNS = 200;
/** Blocks of a cache; longer batches share them. */
const MOST_BLOCKS = 4096;

interface Figures {
  readonly enqueue: number;
  readonly wall: number;
  readonly device: number;
}

/** Microseconds. */
async function wallOf(run: () => Promise<unknown>): Promise<number> {
  const begin = performance.now();
  await run();
  return (performance.now() - begin) * 1e3;
}

async function measure(mla: Mla, { b, sQ, hQ, sK }: (typeof SHAPES)[number]): Promise<Figures> {
  const blocks = Math.ceil(sK / 64);
  const numBlocks = Math.min(b * blocks, MOST_BLOCKS);
  const cache = await mla.createKvCache({ numBlocks });
  const cacheSeqlens = new Int32Array(b).fill(sK);
  const q = await mla.tensor({ data: new Uint16Array(b * sQ * hQ * 576), shape: [b, sQ, hQ, 576], dtype: 'bf16' });
  const blockTable = await mla.tensor({ data: new Int32Array(b * blocks).map((_, i) => i % numBlocks), shape: [b, blocks] });
  const args = {
    q, blockTable, cacheSeqlens, kvCache: cache.tensor(), headDimV: 512, causal: sQ > 1,
    metadata: mla.getMlaMetadata({ cacheSeqlens, numQTokensPerHeadK: sQ * hQ, numHeadsK: 1 }),
  };
  const { out, lse } = await mla.flashMlaWithKvCache(args);
  const call = () => mla.flashMlaWithKvCache({ ...args, out, lse });
  const burst = async (): Promise<void> => {
    for (let i = 0; i < BURST; i++) await call();
  };

  for (let i = 0; i < WARM_UP; i += BURST) {
    await burst();
    await mla.finished();
  }
  const enqueues: number[] = [];
  for (let i = 0; i < RUNS / 4; i++) {
    enqueues.push((await wallOf(burst)) / BURST);
    await mla.finished();
  }
  // In turns: a device that is short of power runs at other clocks from one second to the next.
  const walls: number[] = [];
  const devices: number[] = [];
  for (let i = 0; i < RUNS; i++) {
    walls.push(await wallOf(async () => {
      await call();
      await mla.finished();
    }));
    devices.push((await mla.time(call)).ms * 1e3);
  }
  const [wall, device] = [median(walls), median(devices)];

  for (const tensor of [q, blockTable, out, lse]) tensor.destroy();
  cache.destroy();
  return { enqueue: median(enqueues), wall, device };
}

async function main(): Promise<number> {
  const built = new URL('../../dist/node.js', import.meta.url);
  if (!existsSync(fileURLToPath(built))) {
    console.error('bench:overhead: dist/node.js is missing: run npm run build first');
    return 2;
  }
  // Types from the source, so that type checks need no build.
  const { createMla } = (await import(built.href)) as typeof import('../../src/node.ts');
  let mla: Mla;
  try {
    mla = await createMla({ backend: 'cuda' });
  } catch (error) {
    console.error(`bench:overhead: ${(error as Error).message}`);
    return 2;
  }
  console.log(`${mla.info.device}; us\n\n| shape | enqueue | call and end | device | above device |\n| --- | --- | --- | --- | --- |`);
  let most = 0;
  for (const shape of SHAPES) {
    const { enqueue, wall, device } = await measure(mla, shape);
    const name = `b=${shape.b}, s_q=${shape.sQ}, h_q=${shape.hQ}, s_k=${shape.sK}`;
    console.log(`| ${name} | ${[enqueue, wall, device, wall - device].map((us) => us.toFixed(1)).join(' | ')} |`);
    most = Math.max(most, wall - device);
  }
  await mla.destroy();
  console.log(most <= LIMIT_US ? `\nno more than ${LIMIT_US} us above device time` : `\nmore than ${LIMIT_US} us above device time`);
  return most <= LIMIT_US ? 0 : 1;
}

process.exit(await main());
