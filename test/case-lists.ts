/** Lists of decode problems: `software` for software adapters and the cpu, `full` (FlashMLA's whole grid) for real GPUs. */
import type { CaseOptions } from './cases.ts';

/** Head counts, odd ones among them, with every number of KV heads that divides them. */
function headPairs(hQs: readonly number[], hKvs: readonly number[]): { hQ: number; hKv: number }[] {
  return hKvs.flatMap((hKv) => hQs.filter((hQ) => hQ % hKv === 0).map((hQ) => ({ hQ, hKv })));
}

/** Every head pair twice, with the other axes of FlashMLA's grid dealt out in turn. */
function grid(): CaseOptions[] {
  const problems = [1, 2, 6].flatMap((b) => [1, 2, 4].flatMap((sQ) => [20, 140].map((sK) => ({ b, sQ, sK }))));
  const pairs = headPairs([1, 3, 9, 16, 63, 64, 126, 128], [1, 2, 3, 8]);
  return [...pairs, ...pairs].map((pair, i) => {
    // 7 and 18 have no common factor: all problems come up before one comes up again.
    const problem = problems[(i * 7) % problems.length]!;
    const zeros = problem.b > 1 && i % 3 === 0;
    return {
      ...problem, ...pair, seed: i, zeros,
      ragged: i % 2 === 0, causal: i % 4 >= 2,
      // Of two sequences that share a block neither is empty.
      sharedBlock: i % 5 < 2 && problem.b > (zeros ? 2 : 1),
      dtype: i % 4 === 1 ? 'f16' : 'bf16',
    };
  });
}

const large: CaseOptions[] = [
  { b: 1, sQ: 1, sK: 4096, hQ: 16 },
  { b: 1, sQ: 1, sK: 4096, hQ: 128 },
  { b: 2, sQ: 2, sK: 4096, hQ: 9, ragged: true, causal: true },
  { b: 6, sQ: 1, sK: 4096, hQ: 3, hKv: 3, dV: 256, rope: 32, ragged: true, zeros: true },
  { b: 1, sQ: 1, sK: 4096, hQ: 16, hKv: 8, dtype: 'f16' },
];

/** The ends of what is supported: widths, block sizes, lengths around a block's edge, rows that see nothing. */
const corners: CaseOptions[] = [
  { b: 2, sQ: 1, sK: 140, hQ: 40, dV: 256, rope: 32, ragged: true },
  { b: 6, sQ: 2, sK: 140, hQ: 16, dV: 256, rope: 32, blockSize: 32, causal: true, ragged: true, sharedBlock: true },
  { b: 2, sQ: 1, sK: 140, hQ: 16, dV: 256, rope: 32, dtype: 'f16', blockSize: 16 },
  ...([[32, 16], [96, 48], [160, 64], [512, 16], [32, 64], [448, 48]] as const).map(([dV, rope], i): CaseOptions => ({
    b: 2, sQ: 2, sK: 140, hQ: 9, hKv: i % 2 === 0 ? 1 : 3, dV, rope, causal: i % 2 === 1, ragged: true, dtype: i === 4 ? 'f16' : 'bf16', seed: i,
  })),
  // Widths whose column chunks do not divide a workgroup's threads, with rows enough for several tiles.
  ...([160, 288, 320] as const).map((dV): CaseOptions => ({ b: 1, sQ: 2, sK: 140, hQ: 40, dV, rope: 16 })),
  ...([16, 32, 128] as const).flatMap((blockSize, i): CaseOptions[] => [
    { b: 2, sQ: 1, sK: 140, hQ: 16, blockSize, ragged: true, sharedBlock: true, seed: i },
    { b: 6, sQ: 2, sK: 20, hQ: 6, hKv: 2, blockSize, causal: true, zeros: true, dtype: i === 1 ? 'f16' : 'bf16', seed: i },
  ]),
  { b: 6, sQ: 1, sK: 0, hQ: 16, seqlens: [1, 63, 64, 65, 128, 129] },
  { b: 6, sQ: 2, sK: 0, hQ: 3, seqlens: [0, 1, 64, 0, 512, 0], causal: true },
  // A last part of one key, which the first query token does not see.
  { b: 1, sQ: 2, sK: 0, hQ: 4, seqlens: [769], causal: true },
  // Fewer keys than queries: the first rows see nothing.
  { b: 4, sQ: 4, sK: 0, hQ: 8, hKv: 2, seqlens: [1, 2, 3, 4], causal: true },
  { b: 1, sQ: 1, sK: 0, hQ: 16, seqlens: [0] },
  { b: 2, sQ: 4, sK: 0, hQ: 5, seqlens: [0, 0], causal: true },
  // One sequence far longer than the rest: cuts fall inside it.
  { b: 3, sQ: 1, sK: 0, hQ: 4, seqlens: [7, 2500, 70] },
  { b: 1, sQ: 1, sK: 300, hQ: 16, softmaxScale: 1 },
  { b: 1, sQ: 2, sK: 140, hQ: 7, softmaxScale: -0.5, causal: true },
  { b: 1, sQ: 1, sK: 140, hQ: 2, softmaxScale: 0 },
];

export const software: readonly CaseOptions[] = [...grid(), ...large, ...corners];

/** A selection that shows every kind of problem once, for where cases cost round trips; few kernels, since each takes seconds to compile. */
export const few: readonly CaseOptions[] = [
  { b: 2, sQ: 1, sK: 140, hQ: 16, ragged: true, sharedBlock: true },
  { b: 6, sQ: 2, sK: 140, hQ: 9, hKv: 3, ragged: true, zeros: true, causal: true },
  { b: 1, sQ: 1, sK: 140, hQ: 128 },
  { b: 2, sQ: 4, sK: 20, hQ: 3, dV: 64, rope: 32, causal: true, dtype: 'f16' },
  { b: 2, sQ: 1, sK: 140, hQ: 40, dV: 256, rope: 32, blockSize: 32 },
  { b: 1, sQ: 1, sK: 4096, hQ: 16 },
];

/** FlashMLA's whole grid, each point plain and with ragged lengths, zeros among them, and a causal mask. Caches of up to 4 GB. */
export const flashMlaGrid: readonly CaseOptions[] =
  [1, 2, 6, 64].flatMap((b) =>
    [1, 2, 4].flatMap((sQ) =>
      [20, 140, 4096].flatMap((sK) =>
        headPairs([1, 3, 9, 63, 64, 126, 128], [1, 2, 3, 8]).flatMap((pair): CaseOptions[] => [
          { b, sQ, sK, ...pair },
          { b, sQ, sK, ...pair, ragged: true, causal: true, zeros: b > 1, sharedBlock: b > 2, seed: 2 },
        ]),
      ),
    ),
  );

export const full: readonly CaseOptions[] = [...flashMlaGrid, ...large, ...corners];
