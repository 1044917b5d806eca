/**
 * `npm run bench:memory`: GPU memory held after 1,000 decode steps equals that after 10. Exit 1 when it does not.
 *
 * A small server's life: four sequences, each step appends a token to each, makes the metadata, decodes and reads the
 * output; a sequence that reaches its end is freed and a new prompt takes its place; every fifth step one is forked,
 * written to (copy on write) and freed. Inputs come from the host and outputs are destroyed, the leakiest way to use
 * the package. Two counts must hold still: `mla.memory()`, and the GPUBuffers that Dawn was asked for and that nobody
 * has destroyed, counted here.
 *
 *   --adapter system       the machine's own GPU in place of SwiftShader
 *   --steps N              1000
 */
import { existsSync } from 'node:fs';
import { fileURLToPath } from 'node:url';
import { parseArgs } from 'node:util';
import type { MemoryStats, Mla, PagedKvCache, SequenceId } from '../../src/mla.ts';
import { Random } from '../random.ts';
import { softwareGpu } from '../software-adapter.ts';

const EARLY = 10;
const [H_Q, D_V, D_ROPE] = [4, 64, 16];
const PROMPT = 64;
const END = 512;
/** Staggered, so that ends and new prompts fall all along the run. */
const STARTS = [64, 176, 288, 400];

/** What Dawn was asked for and not yet told to give back. */
interface Buffers {
  bytes: number;
  count: number;
}

/** Watches every GPUDevice of this process. Call it before a device is made. */
async function watchBuffers(): Promise<Buffers> {
  const { globals } = (await import('webgpu')) as unknown as { globals: { GPUDevice: { prototype: GPUDevice }; GPUBuffer: { prototype: GPUBuffer } } };
  const live: Buffers = { bytes: 0, count: 0 };
  const alive = new WeakSet<GPUBuffer>();
  const device = globals.GPUDevice.prototype;
  const buffer = globals.GPUBuffer.prototype;
  const { createBuffer } = device;
  const { destroy } = buffer;
  device.createBuffer = function (descriptor) {
    const made = createBuffer.call(this, descriptor);
    alive.add(made);
    live.bytes += made.size;
    live.count++;
    return made;
  };
  buffer.destroy = function () {
    if (alive.delete(this)) {
      live.bytes -= this.size;
      live.count--;
    }
    return destroy.call(this);
  };
  return live;
}

class Server {
  readonly #mla: Mla;
  readonly #cache: PagedKvCache;
  readonly #random = new Random(1);
  readonly #sequences: SequenceId[] = [];
  #step = 0;

  constructor(mla: Mla, cache: PagedKvCache) {
    this.#mla = mla;
    this.#cache = cache;
  }

  async start(): Promise<void> {
    for (const length of STARTS) this.#sequences.push(await this.#prompt(length));
  }

  async step(): Promise<void> {
    const cache = this.#cache;
    for (const [i, sequence] of this.#sequences.entries()) {
      if (cache.length(sequence) < END) continue;
      cache.free(sequence);
      this.#sequences[i] = await this.#prompt(PROMPT);
    }
    await this.#append(this.#sequences, this.#sequences.map(() => 1));
    if (this.#step++ % 5 === 0) {
      const branch = cache.fork(this.#sequences[this.#step % this.#sequences.length]!);
      await this.#append([branch], [2]);
      cache.free(branch);
    }

    const b = this.#sequences.length;
    const cacheSeqlens = cache.cacheSeqlens(this.#sequences);
    const { out, lse } = await this.#mla.flashMlaWithKvCache({
      q: { data: this.#random.normals(b * H_Q * (D_V + D_ROPE), 0.1), shape: [b, 1, H_Q, D_V + D_ROPE] },
      kvCache: cache.tensor(),
      blockTable: cache.blockTable(this.#sequences),
      cacheSeqlens,
      headDimV: D_V,
      metadata: this.#mla.getMlaMetadata({ cacheSeqlens, numQTokensPerHeadK: H_Q, numHeadsK: 1, blockSize: cache.blockSize }),
    });
    const values = await out.read();
    if (!values.every(Number.isFinite)) throw new Error(`step ${this.#step}: output is not finite`);
    out.destroy();
    lse.destroy();
  }

  async #prompt(tokens: number): Promise<SequenceId> {
    const sequence = this.#cache.createSequence();
    await this.#append([sequence], [tokens]);
    return sequence;
  }

  async #append(sequences: readonly SequenceId[], counts: readonly number[]): Promise<void> {
    const tokens = counts.reduce((n, c) => n + c, 0);
    await this.#cache.append({
      sequences, counts,
      latent: { data: this.#random.normals(tokens * D_V, 0.1), shape: [tokens, 1, D_V] },
      rope: { data: this.#random.normals(tokens * D_ROPE, 0.1), shape: [tokens, 1, D_ROPE] },
    });
  }
}

interface Snapshot {
  readonly steps: number;
  readonly stats: MemoryStats;
  readonly buffers: Buffers;
}

async function main(): Promise<number> {
  const { values: options } = parseArgs({ options: { adapter: { type: 'string' }, steps: { type: 'string', default: '1000' } } });
  if (options.adapter !== undefined) process.env['FLASHMLA_ADAPTER'] = options.adapter;
  const steps = Number(options.steps);
  if (!Number.isInteger(steps) || steps <= EARLY) {
    console.error(`bench:memory: --steps: expected an integer above ${EARLY}, got ${options.steps}`);
    return 2;
  }
  const built = new URL('../../dist/node.js', import.meta.url);
  if (!existsSync(fileURLToPath(built))) {
    console.error('bench:memory: dist/node.js is missing: run npm run build first');
    return 2;
  }
  // Types from the source, so that type checks need no build.
  const { createMla } = (await import(built.href)) as typeof import('../../src/node.ts');
  const gpu = await softwareGpu();
  const buffers = await watchBuffers();
  const mla = await createMla({ backend: 'webgpu', gpu, tune: 'off' });
  const cache = await mla.createKvCache({ numBlocks: 40, headDim: D_V + D_ROPE, headDimV: D_V });
  const server = new Server(mla, cache);
  console.log(`${mla.info.device}: b=${STARTS.length} h_q=${H_Q} ${D_V}+${D_ROPE}, lengths ${PROMPT} to ${END}`);
  await server.start();

  const snapshots: Snapshot[] = [];
  const begin = performance.now();
  for (let done = 1; done <= steps; done++) {
    await server.step();
    if (done !== EARLY && done !== steps) continue;
    await mla.finished();
    const snapshot = { steps: done, stats: await mla.memory(), buffers: { ...buffers } };
    snapshots.push(snapshot);
    const { stats } = snapshot;
    console.log(
      `after ${String(done).padStart(5)} steps: ${stats.bytes} B in ${stats.allocations} allocations (${stats.allocated} made so far, ${stats.pipelines} pipelines); ` +
        `Dawn holds ${snapshot.buffers.bytes} B in ${snapshot.buffers.count} buffers`,
    );
  }
  console.log(`${((performance.now() - begin) / steps).toFixed(1)} ms a step`);

  const [early, late] = [snapshots[0]!, snapshots[1]!];
  const same =
    early.stats.bytes === late.stats.bytes && early.stats.allocations === late.stats.allocations &&
    early.stats.pipelines === late.stats.pipelines && early.buffers.bytes === late.buffers.bytes && early.buffers.count === late.buffers.count;
  console.log(same ? 'memory held is the same' : 'memory held has changed');

  cache.destroy();
  await mla.destroy();
  console.log(`after destroy: Dawn holds ${buffers.bytes} B in ${buffers.count} buffers`);
  return same && buffers.count === 0 ? 0 : 1;
}

// Dawn keeps the process alive otherwise.
process.exit(await main());
