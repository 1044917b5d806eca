/** PagedKvCache on the device: what was appended, forked, cut and freed is what decode attends to. */
import { describe, expect, test } from 'vitest';
import { encode16 } from '../../src/bf16.ts';
import type { KvCacheOptions, Mla, SequenceId } from '../../src/mla.ts';
import { take } from '../check.ts';
import { compareDecode } from '../compare.ts';
import { NARROW, type Heads } from '../heads.ts';
import { LogicalCache } from '../logical-cache.ts';

export function cache(mla: () => Mla, only?: Heads): void {
  const cacheHeads = ({ dV, rope, blockSize }: Heads): Pick<KvCacheOptions, 'headDim' | 'headDimV' | 'blockSize'> => ({ headDim: dV + rope, headDimV: dV, blockSize });
  const narrow = only ?? NARROW;
  const width = narrow.dV + narrow.rope;

  async function make(options: KvCacheOptions): Promise<LogicalCache> {
    return new LogicalCache(await mla().createKvCache(options));
  }

  /** Decodes these sequences in every layer and compares with the oracle over their logical contents. */
  async function expectContents(logical: LogicalCache, ids: readonly SequenceId[], sQ = 1, causal = false): Promise<void> {
    const { cache: paged, random } = logical;
    const hQ = 3 * paged.numHeadsK;
    const shape = [ids.length, sQ, hQ, paged.headDim];
    const cacheSeqlens = paged.cacheSeqlens(ids);
    const metadata = mla().getMlaMetadata({
      cacheSeqlens, numQTokensPerHeadK: sQ * 3, numHeadsK: paged.numHeadsK, blockSize: paged.blockSize,
    });
    for (let layer = 0; layer < paged.numLayers; layer++) {
      const bits = encode16(paged.dtype, random.normals(shape.reduce((n, d) => n * d, 1), 0.1));
      const result = await mla().flashMlaWithKvCache({
        q: { data: bits, shape, dtype: paged.dtype }, kvCache: paged.tensor(layer), blockTable: paged.blockTable(ids),
        cacheSeqlens, metadata, headDimV: paged.headDimV, causal,
      });
      const expected = logical.reference({ bits, sQ, hQ }, ids, layer, causal);
      expect(compareDecode({ b: ids.length, sQ, hQ, dV: paged.headDimV }, expected, await take(result)), `layer ${layer}`).toBeUndefined();
    }
  }

  describe('PagedKvCache', () => {
    test('has FlashMLA’s defaults', async () => {
      const { cache: paged } = await make({ numBlocks: 2 });
      expect(paged).toMatchObject({ numBlocks: 2, blockSize: 64, numHeadsK: 1, headDim: 576, headDimV: 512, dtype: 'bf16', numLayers: 1 });
      expect(paged.tensor()).toMatchObject({ dtype: 'bf16', shape: [2, 64, 1, 576] });
      expect(paged.stats()).toEqual({
        numBlocks: 2, freeBlocks: 2, usedBlocks: 0, sharedBlocks: 0, sequences: 0, tokens: 0, bytes: 2 * 64 * 576 * 2, usedBytes: 0,
      });
      paged.destroy();
    });

    const shapes: KvCacheOptions[] = [
      { numBlocks: 12 },
      { numBlocks: 30, blockSize: 16, numHeadsK: 2, headDim: 80, headDimV: 64, dtype: 'f16' },
      { numBlocks: 20, blockSize: 32, numHeadsK: 3, headDim: 288, headDimV: 256, numLayers: 3 },
      { numBlocks: 8, blockSize: 128, headDim: 48, headDimV: 32 },
    ];
    for (const shape of shapes) {
      const options = { ...shape, ...(only && cacheHeads(only)) };
      const { blockSize = 64, numHeadsK = 1, headDim = 576, dtype = 'bf16', numLayers = 1 } = options;
      test(`grows, forks, shortens and frees: block ${blockSize}, h_kv ${numHeadsK}, d ${headDim}, ${dtype}, ${numLayers} layers`, async () => {
        const logical = await make(options);
        const [a, b] = [logical.create(), logical.create()];
        // A prompt each, then single tokens across the edge of a block.
        await logical.append([a, b], [blockSize - 2, 5]);
        for (let step = 0; step < 4; step++) await logical.append([b, a], [1, 1], step % 2 === 1);
        await expectContents(logical, [a, b]);

        // A fork shares everything until one side writes; then the tail alone is copied.
        const fork = logical.fork(a);
        expect(logical.cache.stats().sharedBlocks).toBe(2);
        await logical.append([fork], [1]);
        expect(logical.cache.stats().sharedBlocks).toBe(1);
        await logical.append([a], [2]);
        await expectContents(logical, [fork, a, b], 2, true);

        // Both holders of a shared tail write in one call.
        const twin = logical.fork(b);
        await logical.append([twin, b], [3, 2]);
        await expectContents(logical, [twin, b, a, fork]);

        // Refused speculative tokens go, and what follows overwrites them.
        logical.truncate(a, blockSize - 1);
        await logical.append([a], [3]);
        logical.free(fork);
        await expectContents(logical, [b, a, twin], 2, true);

        logical.free(a, b, twin);
        expect(logical.cache.stats()).toMatchObject({ usedBlocks: 0, sharedBlocks: 0, sequences: 0, tokens: 0, usedBytes: 0 });
        logical.cache.destroy();
      });
    }

    test('an empty sequence decodes to nothing', async () => {
      const logical = await make({ numBlocks: 3 });
      const ids = [logical.create(), logical.create()];
      await logical.append([ids[1]!], [70]);
      await expectContents(logical, ids);
      logical.cache.destroy();
    });

    test('blocks given back are used again, with nothing of their past', async () => {
      const logical = await make({ numBlocks: 2, ...cacheHeads(narrow) });
      const old = logical.create();
      const tokens = 2 * narrow.blockSize;
      const poison = new Uint16Array(tokens * width).fill(0x7fc0);
      await logical.cache.append({ sequences: [old], counts: [tokens], latent: { data: poison, shape: [tokens, 1, width] } });
      logical.free(old);
      const fresh = logical.create();
      await logical.append([fresh], [narrow.blockSize + 1]);
      await expectContents(logical, [fresh]);
      logical.cache.destroy();
    });

    test('takes device tensors and rounds f32', async () => {
      const paged = await mla().createKvCache({ numBlocks: 2, blockSize: 16, headDim: 48, headDimV: 32 });
      const id = paged.createSequence();
      const latent = await mla().tensor({ data: new Float32Array(2 * 32).fill(0.1), shape: [2, 1, 32] });
      await paged.append({ sequences: [id], counts: [2], latent, rope: { data: new Float32Array(2 * 16).fill(3), shape: [2, 1, 16] } });
      latent.destroy();
      const pool = await paged.tensor().readBits();
      const at = paged.blocks(id)[0]! * 16 * 48;
      for (let t = 0; t < 2; t++) {
        expect([...pool.subarray(at + t * 48, at + (t + 1) * 48)]).toEqual([...Array<number>(32).fill(0x3dcd), ...Array<number>(16).fill(0x4040)]);
      }
      paged.destroy();
    });

    test('an append and the decode after it need no waiting in between', async () => {
      const logical = await make({ numBlocks: 4, ...cacheHeads(narrow) });
      const id = logical.create();
      const appends = [logical.append([id], [20]), logical.append([id], [3]), logical.append([id], [9])];
      await Promise.all(appends);
      await expectContents(logical, [id]);
      logical.cache.destroy();
    });
  });
}
