/**
 * Random tokens and queries, and the truth about them: each sequence's rows one after another, with no pages.
 *
 * A decode through the paged cache is compared with attention over these rows, so that a wrong block table shows
 * as much as a wrong kernel.
 */
import { encode16 } from '../../src/bf16.ts';
import { normals, seededRandom } from '../../src/random.ts';
import { Checker, type CheckReport } from './check.ts';
import { referenceDecode, type ReferenceRow } from './reference.ts';
import { D_QK, D_V, type Step } from './shape.ts';

/** About a second of the reference. */
const BUDGET = 1.5e9;
const TILE_TOKENS = 256;

export interface CheckArgs extends Step {
  /** The batch, in order. */
  readonly sequences: readonly number[];
  /** [b, s_q, h_q, d_v] bits of bf16. */
  readonly out: Uint16Array;
  /** [b, h_q, s_q] */
  readonly lse: Float32Array;
  /** Multiplications that the reference may cost; beyond that it takes some of the heads. */
  readonly budget?: number;
}

export class TokenStore {
  /** Runs of tokens, each [tokens, d_qk] bits; never written again, so forks share them. */
  readonly #sequences = new Map<number, Uint16Array[]>();
  #q = new Uint16Array(0);
  #random = seededRandom(1);

  /** Forgets all sequences and starts the random numbers anew. */
  reset(seed: number): void {
    this.#sequences.clear();
    this.#random = seededRandom(seed);
  }

  /** Lengthens sequences by random tokens. @returns [sum of counts, d_qk] bits, in the order of `sequences` */
  append(sequences: readonly number[], counts: readonly number[]): Uint16Array<ArrayBuffer> {
    const rows = this.#normals(counts.reduce((sum, n) => sum + n, 0) * D_QK);
    let at = 0;
    sequences.forEach((id, i) => {
      const run = rows.slice(at, (at += counts[i]! * D_QK));
      if (!this.#sequences.has(id)) this.#sequences.set(id, []);
      if (run.length > 0) this.#sequences.get(id)!.push(run);
    });
    return rows;
  }

  fork(from: number, to: number): void {
    this.#sequences.set(to, [...this.#rowsOf(from)]);
  }

  free(...sequences: number[]): void {
    for (const id of sequences) this.#sequences.delete(id);
  }

  /** New queries for a batch: [rows, d_qk] bits. `check` judges a result of these. */
  query(rows: number): Uint16Array<ArrayBuffer> {
    this.#q = this.#normals(rows * D_QK);
    return this.#q.slice();
  }

  /** Compares a decode of the last queries with the reference. */
  check({ sequences, heads, sQ, causal, out, lse, budget = BUDGET }: CheckArgs): CheckReport {
    const tokens = sequences.reduce((sum, id) => sum + this.length(id), 0);
    const kept = Math.max(1, Math.min(heads, Math.floor(budget / Math.max(1, tokens * sQ * (D_QK + D_V)))));
    const checker = new Checker();
    sequences.forEach((id, s) => {
      const length = this.length(id);
      const picked: { row: number; head: number; query: number }[] = [];
      for (let query = 0; query < sQ; query++) {
        for (let k = 0; k < kept; k++) {
          // Evenly spread, and other ones in each sequence.
          const head = (Math.floor((k * heads) / kept) + s) % heads;
          picked.push({ row: (s * sQ + query) * heads + head, head, query });
        }
      }
      const rows = picked.map(({ row, query }): ReferenceRow => ({
        q: this.#q.subarray(row * D_QK, (row + 1) * D_QK),
        visible: causal ? Math.max(0, length - sQ + query + 1) : length,
      }));
      referenceDecode(tiles(this.#rowsOf(id)), rows).forEach((want, k) => {
        const { row, head, query } = picked[k]!;
        const name = `sequence ${id}, query ${query}, head ${head}`;
        checker.add(name, out.subarray(row * D_V, (row + 1) * D_V), lse[(s * heads + head) * sQ + query]!, want);
      });
    });
    return checker.report(sequences.length * sQ * heads);
  }

  /** Tokens of a sequence. */
  length(id: number): number {
    return this.#rowsOf(id).reduce((sum, run) => sum + run.length / D_QK, 0);
  }

  #rowsOf(id: number): Uint16Array[] {
    return this.#sequences.get(id) ?? [];
  }

  /** Bits of N(0, 0.1^2). */
  #normals(count: number): Uint16Array<ArrayBuffer> {
    return encode16('bf16', normals(count, 0.1, this.#random)) as Uint16Array<ArrayBuffer>;
  }
}

function* tiles(runs: readonly Uint16Array[]): Generator<Uint16Array> {
  for (const run of runs) {
    for (let at = 0; at < run.length; at += TILE_TOKENS * D_QK) yield run.subarray(at, at + TILE_TOKENS * D_QK);
  }
}
