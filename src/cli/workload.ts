/**
 * A benchmark shape's tensors on the device, filled with seeded random numbers.
 *
 * The cache may be gigabytes, so the host never holds it: one chunk of random rows goes to the device and is
 * appended again and again until the pool is full. The chunk's length is prime, so every block starts at another
 * row of it. Block tables are a random permutation of the pool.
 */
import type { DecodeArgs, KvDType, Mla, MlaMetadata, MlaTensor } from '../mla.ts';
import { permutation, seededRandom } from '../random.ts';
import { randomBits } from './random.ts';
import type { BenchShape } from './shapes.ts';

const CHUNK_TOKENS = 4093;

export interface Workload {
  /** All on the device, metadata made, `out` and `lse` given: nothing is left to do but the decode step. */
  readonly args: DecodeArgs;
  readonly metadata: MlaMetadata;
  readonly out: MlaTensor;
  readonly lse: MlaTensor;
  /** [b, s_q, h_q, d_qk], bits of `dtype`. */
  readonly q: Uint16Array;
  /** Row `token` of a sequence's keys for one KV head: [d_qk], bits of `dtype`. */
  key(sequence: number, token: number, head: number): Uint16Array;
  readonly dtype: KvDType;
  destroy(): void;
}

/** @throws MlaError limit-exceeded, out-of-memory: what was made is given back */
export async function makeWorkload(mla: Mla, shape: BenchShape, seed: number): Promise<Workload> {
  const { b, s_q, h_q, h_kv, d_qk, d_v, block_size, causal, dtype } = shape;
  const owned: { destroy(): void }[] = [];
  const destroy = (): void => owned.splice(0).forEach((thing) => thing.destroy());
  const own = <T extends { destroy(): void }>(thing: T): T => {
    owned.push(thing);
    return thing;
  };
  try {
    const blocks = shape.seqlens.map((length) => Math.ceil(length / block_size));
    const numBlocks = Math.max(1, blocks.reduce((sum, n) => sum + n, 0));
    const cache = own(await mla.createKvCache({ numBlocks, blockSize: block_size, numHeadsK: h_kv, headDim: d_qk, headDimV: d_v, dtype }));

    // One sequence owns the whole pool; the benchmark's own tables point into it.
    const filler = cache.createSequence();
    const total = numBlocks * block_size;
    const chunk = Math.min(CHUNK_TOKENS, total);
    const rows = randomBits(chunk * h_kv * d_qk, dtype, seed);
    const part = async (tokens: number): Promise<MlaTensor> =>
      mla.tensor({ data: rows.subarray(0, tokens * h_kv * d_qk), shape: [tokens, h_kv, d_qk], dtype });
    const whole = await part(chunk);
    try {
      for (let done = 0; done < total; done += chunk) {
        const tokens = Math.min(chunk, total - done);
        const latent = tokens === chunk ? whole : own(await part(tokens));
        await cache.append({ sequences: [filler], counts: [tokens], latent });
      }
      await mla.finished();
    } finally {
      whole.destroy();
    }
    const position = new Int32Array(numBlocks);
    cache.blocks(filler).forEach((block, i) => (position[block] = i));

    const width = Math.max(1, ...blocks);
    const order = permutation(numBlocks, seededRandom(seed + 1));
    const table = new Int32Array(b * width);
    let next = 0;
    blocks.forEach((count, i) => {
      table.set(order.subarray(next, next + count), i * width);
      next += count;
    });
    const cacheSeqlens = Int32Array.from(shape.seqlens);
    const q = randomBits(b * s_q * h_q * d_qk, dtype, seed + 2);
    const metadata = mla.getMlaMetadata({ cacheSeqlens, numQTokensPerHeadK: (s_q * h_q) / h_kv, numHeadsK: h_kv, blockSize: block_size });
    const args: DecodeArgs = {
      q: own(await mla.tensor({ data: q, shape: [b, s_q, h_q, d_qk], dtype })),
      kvCache: cache.tensor(),
      blockTable: own(await mla.tensor({ data: table, shape: [b, width], dtype: 'i32' })),
      cacheSeqlens: own(await mla.tensor({ data: cacheSeqlens, shape: [b], dtype: 'i32' })),
      headDimV: d_v,
      causal,
      metadata,
    };
    const { out, lse } = await mla.flashMlaWithKvCache(args);
    own(out);
    own(lse);
    return {
      args: { ...args, out, lse },
      metadata,
      out,
      lse,
      q,
      key(sequence, token, head) {
        const block = table[sequence * width + Math.floor(token / block_size)]!;
        const row = (position[block]! * block_size + (token % block_size)) % chunk;
        return rows.subarray((row * h_kv + head) * d_qk, (row * h_kv + head + 1) * d_qk);
      },
      dtype,
      destroy,
    };
  } catch (error) {
    destroy();
    throw error;
  }
}
