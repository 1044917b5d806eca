/** The choice of tokens against its definition: cpu, and WGSL through Dawn. */
import { afterAll, beforeAll, describe, expect, test } from 'vitest';
import type { Mla } from '../src/mla.ts';
import type { SamplingRow } from '../src/ops.ts';
import { OpsBench, makeMla, opsBackends } from './ops-bench.ts';
import { distribution } from './ops-reference.ts';

const greedy: SamplingRow = { temperature: 0, topK: 0, topP: 1, repetitionPenalty: 1, random: 0 };
const free: SamplingRow = { ...greedy, temperature: 1 };

describe.each(opsBackends)('%s', (backend) => {
  let mla: Mla;
  let bench: OpsBench;
  beforeAll(async () => {
    mla = await makeMla(backend);
    bench = new OpsBench(mla, 23);
  });
  afterAll(() => mla?.destroy());

  async function sample(logits: readonly (readonly number[])[], rows: readonly SamplingRow[], seen: readonly (readonly number[])[] = []): Promise<number[]> {
    const [from, out] = [await bench.put(logits), await bench.room(rows.length, 'i32')];
    const seenStart = Int32Array.from({ length: rows.length + 1 }, (_, s) => seen.slice(0, s).flat().length);
    await bench.run({ op: 'sample', rows, vocab: logits[0]!.length, logits: from.id, seen: Int32Array.from(seen.flat()), seenStart, out: out.id });
    const ids = await bench.read(out);
    for (const tensor of [from, out]) tensor.tensor.destroy();
    return ids;
  }

  const single = async (logits: readonly number[], row: SamplingRow, seen: readonly number[] = []): Promise<number> => (await sample([logits], [row], [seen]))[0]!;

  /** Whether `random` falls on the token, give or take what sums in f32 are off by. */
  function expectWithin(id: number, { ids, sums }: ReturnType<typeof distribution>, random: number): void {
    const at = ids.indexOf(id);
    expect(at, `token ${id} was not to be chosen`).toBeGreaterThanOrEqual(0);
    expect(random).toBeGreaterThan((sums[at - 1] ?? 0) - 2e-5);
    expect(random).toBeLessThan(sums[at]! + 2e-5);
  }

  test('greedy: the largest, the lower id on a tie', async () => {
    const rows = bench.matrix(3, 1001);
    rows[1]![700] = rows[1]![40] = rows[1]![999] = 9;
    rows[2]!.fill(-3);
    expect(await sample(rows, [greedy, greedy, greedy])).toEqual([rows[0]!.indexOf(Math.max(...rows[0]!)), 40, 0]);
  });

  test('greedy with a penalty, of positive and negative logits', async () => {
    expect(await single([2, 1.5, -1], { ...greedy, repetitionPenalty: 2 }, [0])).toBe(1);
    expect(await single([-1, -1.5, -4], { ...greedy, repetitionPenalty: 2 }, [0])).toBe(1);
    expect(await single([2, 1.5, -1], { ...greedy, repetitionPenalty: 1 }, [0])).toBe(0);
    // Every row has ids of its own.
    expect(await sample([[2, 1.5, 1], [2, 1.5, 1], [2, 1.5, 1]], [{ ...greedy, repetitionPenalty: 4 }, greedy, { ...greedy, repetitionPenalty: 4 }], [[0, 1], [0], [0]])).toEqual([2, 0, 1]);
  });

  test('top-k of 1 and a tiny top-p leave the largest', async () => {
    const [logits] = bench.matrix(1, 515, 'f32', 3);
    const largest = logits!.indexOf(Math.max(...logits!));
    expect(await single(logits!, { ...free, topK: 1, random: 0.9999 })).toBe(largest);
    expect(await single(logits!, { ...free, topP: 1e-6, random: 0.9999 })).toBe(largest);
    expect(await single(logits!, { ...free, temperature: 0.01, random: 0.9 })).toBe(largest);
  });

  test('ties are taken by id, at the edge of top-k and of top-p too', async () => {
    const even = Array.from({ length: 10 }, () => 0.5);
    for (const random of [0.01, 0.38, 0.51, 0.74, 0.99]) {
      expect(await single(even, { ...free, random })).toBe(Math.floor(random * 10));
      expect(await single(even, { ...free, topK: 4, random })).toBe(Math.floor(random * 4));
      expect(await single(even, { ...free, topP: 0.35, random })).toBe(Math.floor(random * 4));
      expect(await single(even, { ...free, topK: 5, topP: 0.35, random })).toBe(Math.floor(random * 2));
    }
    // -0 is 0.
    expect(await single([-0, 0, -0, 0], { ...free, topK: 3, random: 0.4 })).toBe(1);
  });

  test('random near 0 takes the largest, near 1 the smallest that is left', async () => {
    const logits = [0, 3, 1, 2.5, -Infinity, 2];
    expect(await single(logits, { ...free, random: 0 })).toBe(1);
    expect(await single(logits, { ...free, random: 0.9999 })).toBe(0);
    expect(await single(logits, { ...free, random: 1 - 2 ** -24 })).toBe(0);
    expect(await single(logits, { ...free, topK: 3, random: 1 - 2 ** -24 })).toBe(5);
    expect(await single(logits, { ...free, topP: 0.6, random: 1 - 2 ** -24 })).toBe(3);
  });

  test.each<[string, number, Partial<SamplingRow>]>([
    ['all', 1003, {}], ['warm', 1003, { temperature: 1.7 }], ['cold', 300, { temperature: 0.3 }], ['top-k', 1003, { topK: 50 }], ['top-p', 1003, { topP: 0.9 }],
    ['top-k and top-p', 1003, { topK: 40, topP: 0.8, temperature: 0.8 }], ['top-p and a penalty', 1003, { topP: 0.95, repetitionPenalty: 1.3 }],
    ['more than there are', 5, { topK: 9, topP: 0.99 }], ['one', 1, { topK: 2, topP: 0.5 }],
  ])('where random falls: %s', async (_, vocab, change) => {
    const many = 16;
    const row = { ...free, ...change };
    const [logits] = bench.matrix(1, vocab, 'f32', 2);
    const seen = [...new Set(Array.from({ length: 30 }, () => bench.random.below(vocab)))];
    const rows = Array.from({ length: many }, (_, i) => ({ ...row, random: (i + bench.random.uniform()) / many }));
    const ids = await sample(rows.map(() => logits!), rows, rows.map(() => seen));
    const expected = distribution(logits!, seen, row);
    ids.forEach((id, i) => expectWithin(id, expected, rows[i]!.random));
  });

  test('a large vocabulary', async () => {
    const vocab = 129_280;
    const logits = Array.from(bench.random.normals(vocab, 3));
    const rows = [greedy, { ...free, topK: 50, topP: 0.9, random: 0.77 }, { ...free, topP: 0.95, random: 0.6 }];
    const ids = await sample(rows.map(() => logits), rows);
    ids.forEach((id, s) => expectWithin(id, distribution(logits, [], rows[s]!), rows[s]!.random));
  });

  test('tokens come as often as their probabilities say', async () => {
    const probabilities = [0.4, 0.05, 0.3, 0.2, 0.05];
    const logits = probabilities.map(Math.log);
    const draws = 400;
    const rows = Array.from({ length: draws }, () => ({ ...free, random: bench.random.uniform() }));
    const ids = await sample(rows.map(() => logits), rows);
    const chi2 = probabilities.reduce((sum, p, id) => sum + (ids.filter((i) => i === id).length - draws * p) ** 2 / (draws * p), 0);
    expect(chi2).toBeLessThan(18.5); // 4 degrees of freedom, one in a thousand
  });
});
