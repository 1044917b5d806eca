/** One query over 512 cached tokens, decoded by the package whole, in its own splits, and split by split. */
import type { Mla, MlaMetadata, MlaTensor } from '../../src/mla.ts';
import { getMlaMetadata } from '../../src/schedule.ts';
import { BLOCK_SIZE, D_QK, D_V } from '../kernel/shape.ts';
import { stretchesOf, type Stretch } from '../kernel/stretches.ts';
import type { Partial } from './merge.ts';
import { normalsFrom } from './normals.ts';

export const TOKENS = 512;
const BLOCKS = TOKENS / BLOCK_SIZE;

export interface QueryData {
  /** [d_qk] */
  readonly q: Float32Array<ArrayBuffer>;
  /** [tokens, d_qk] */
  readonly kv: Float32Array<ArrayBuffer>;
}

/** Random; blocks differ in how well their keys match the query, so that weights differ. */
export function randomQuery(seed: number): QueryData {
  const normals = normalsFrom(seed);
  const q = normals(D_QK);
  const matches = normals(BLOCKS).map((m) => (m * Math.sqrt(D_QK)) / q.reduce((sum, x) => sum + x * x, 0));
  const kv = normals(TOKENS * D_QK).map((x, i) => x + matches[Math.floor(i / D_QK / BLOCK_SIZE)]! * q[i % D_QK]!);
  return { q: Float32Array.from(q), kv: Float32Array.from(kv) };
}

/** The schedule of the one sequence, for a machine that runs so many workgroups at once. */
export function splitOf(slots: number): MlaMetadata {
  return getMlaMetadata({ cacheSeqlens: Int32Array.of(TOKENS), numQTokensPerHeadK: 1, numHeadsK: 1, blockSize: BLOCK_SIZE }, { slots, rowTiles: [1], minTokensPerPart: BLOCK_SIZE });
}

export interface QueryResult {
  readonly splits: readonly Stretch[];
  /** One result a split, of its keys alone. */
  readonly partials: readonly Partial[];
  /** Over all keys at once. */
  readonly whole: Partial;
  /** Split and merged by the package. */
  readonly merged: Partial;
}

export class OneQuery {
  readonly #mla: Mla;
  readonly #data: QueryData;
  readonly #kv: MlaTensor;

  private constructor(mla: Mla, data: QueryData, kv: MlaTensor) {
    this.#mla = mla;
    this.#data = data;
    this.#kv = kv;
  }

  static async create(mla: Mla, data: QueryData): Promise<OneQuery> {
    return new OneQuery(mla, data, await mla.tensor({ data: data.kv, shape: [BLOCKS, BLOCK_SIZE, 1, D_QK] }));
  }

  async decode(slots: number): Promise<QueryResult> {
    const metadata = splitOf(slots);
    const splits = stretchesOf(metadata);
    const all = Array.from({ length: BLOCKS }, (_, block) => block);
    // A split as a sequence of its own: the same query, and of the blocks only the split's.
    const tables = splits.map(({ first, end }) => all.slice(first, end));
    const [whole] = await this.#attend([all], splitOf(1));
    const [merged] = await this.#attend([all], metadata);
    return { splits, partials: await this.#attend(tables), whole: whole!, merged: merged! };
  }

  destroy(): void {
    this.#kv.destroy();
  }

  async #attend(tables: readonly (readonly number[])[], metadata?: MlaMetadata): Promise<Partial[]> {
    const b = tables.length;
    const blockTable = Int32Array.from(tables.flatMap((table) => Array.from({ length: BLOCKS }, (_, i) => table[i] ?? 0)));
    const q = new Float32Array(b * D_QK);
    for (let i = 0; i < b; i++) q.set(this.#data.q, i * D_QK);
    const { out, lse } = await this.#mla.flashMlaWithKvCache({
      q: { data: q, shape: [b, 1, 1, D_QK] }, kvCache: this.#kv, blockTable, cacheSeqlens: Int32Array.from(tables, (table) => table.length * BLOCK_SIZE),
      headDimV: D_V, ...(metadata && { metadata }),
    });
    try {
      const [outs, lses] = [await out.read(), await lse.read()];
      return tables.map((_, i) => ({ out: outs.subarray(i * D_V, (i + 1) * D_V), lse: lses[i]! }));
    } finally {
      out.destroy();
      lse.destroy();
    }
  }
}
