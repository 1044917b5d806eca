/** Every operation of a model's step against float64: cpu, and WGSL through Dawn. */
import { afterAll, beforeAll, describe, expect, test } from 'vitest';
import type { Mla } from '../src/mla.ts';
import type { ExpertsOp, MatmulOp, RouterOp, Weight } from '../src/ops.ts';
import { runOps } from '../src/run-ops.ts';
import { BF16, OpsBench, expectClose, makeMla, opsBackends, rows } from './ops-bench.ts';
import { product, rmsNorm, rope, router, swiglu, type RouterArgs } from './ops-reference.ts';


describe.each(opsBackends)('%s', (backend) => {
  let mla: Mla;
  let bench: OpsBench;
  beforeAll(async () => {
    mla = await makeMla(backend);
    bench = new OpsBench(mla, 5);
  });
  afterAll(() => mla?.destroy());

  test.each([['bf16', 37], ['bf16', 40], ['f32', 37]] as const)('embed from %s, %i wide', async (tableDtype, n) => {
    const values = bench.matrix(11, n, tableDtype);
    const [table, out] = [await bench.put(values, tableDtype), await bench.room(3 * n)];
    await bench.run({ op: 'embed', ids: Int32Array.of(10, 0, 3), first: 0, rows: 11, table: table.id, tableDtype, n, out: out.id });
    expect(await bench.read(out)).toEqual([10, 0, 3].flatMap((id) => values[id]!));
  });

  test('embed from a part of a table: other ids leave their rows', async () => {
    const values = bench.matrix(4, 6, 'bf16');
    const [table, out] = [await bench.put(values, 'bf16'), await bench.room(5 * 6)];
    await bench.run({ op: 'embed', ids: Int32Array.of(8, 2, 3, 6, 7), first: 3, rows: 4, table: table.id, tableDtype: 'bf16', n: 6, out: out.id });
    const untouched = Array.from({ length: 6 }, () => 7);
    expect(await bench.read(out)).toEqual([untouched, untouched, values[0]!, values[3]!, untouched].flat());
  });

  test('rmsNorm of slices, into slices', async () => {
    const [tokens, n] = [3, 77];
    const [x, weight] = [bench.matrix(tokens, 100), bench.matrix(1, n)];
    const [from, scale, out] = [await bench.put(x), await bench.put(weight), await bench.room(tokens * 90)];
    await bench.run({ op: 'rmsNorm', tokens, n, x: rows(from, 100, { offset: 13 }), weight: scale.id, eps: 1e-6, out: rows(out, 90, { offset: 5 }) });
    expectClose(await bench.read(out), x.flatMap((row) => [7, 7, 7, 7, 7, ...rmsNorm(row.slice(13, 13 + n), weight[0]!, 1e-6), ...Array.from({ length: 8 }, () => 7)]));
  });

  test('rmsNorm in place, of a long row', async () => {
    const [x, weight] = [bench.matrix(2, 1300), bench.matrix(1, 1300)];
    const [from, scale] = [await bench.put(x), await bench.put(weight)];
    await bench.run({ op: 'rmsNorm', tokens: 2, n: 1300, x: rows(from, 1300), weight: scale.id, eps: 1e-3, out: rows(from, 1300) });
    expectClose(await bench.read(from), x.flatMap((row) => rmsNorm(row, weight[0]!, 1e-3)));
  });

  describe('matmul', () => {
    const forms = ['bf16', 'int8', 'f32'] as const;
    const base = { op: 'matmul', groups: 1, xBf16: false, outBf16: false, accumulate: false } as const;

    test.each(forms.flatMap((form) => [[form, 1, 5, 64], [form, 3, 33, 80], [form, 9, 7, 36], [form, 17, 12, 128], ...(form === 'int8' ? [] : [[form, 2, 9, 37] as const])] as const))(
      '%s, %i tokens, %i x %i', async (form, tokens, n, k) => {
        const x = bench.matrix(tokens, k);
        const { weight, values } = await bench.weight(form, 1, n, k);
        const [from, out] = [await bench.put(x), await bench.room(tokens * n)];
        await bench.run({ ...base, tokens, n, k, x: rows(from, k), weight, out: rows(out, n) });
        expectClose(await bench.read(out), x.flatMap((row) => product(values[0]!, row)));
      });

    test('accumulates', async () => {
      const [tokens, n, k] = [3, 10, 48];
      const [x, before] = [bench.matrix(tokens, k), bench.matrix(tokens, n)];
      const { weight, values } = await bench.weight('bf16', 1, n, k);
      const [from, out] = [await bench.put(x), await bench.put(before)];
      const op: MatmulOp = { ...base, tokens, n, k, x: rows(from, k), weight, out: rows(out, n), accumulate: true };
      await bench.run(op, op);
      expectClose(await bench.read(out), x.flatMap((row, t) => product(values[0]!, row).map((v, j) => before[t]![j]! + 2 * v)), 5e-5);
    });

    // As a query is absorbed: heads' slices of a row, through each head's matrix, beside what rope fills.
    test('by heads, into wider rows of bf16', async () => {
      const [tokens, heads, nope, turned, latent] = [5, 3, 16, 8, 32];
      const width = latent + turned;
      const x = bench.matrix(tokens, heads * (nope + turned));
      const angles = bench.angles(tokens, turned);
      const { weight, values } = await bench.weight('bf16', heads, latent, nope);
      const [from, out] = [await bench.put(x), await bench.room(tokens * heads * width, 'bf16')];
      const slices = { group: nope + turned };
      await bench.run(
        { ...base, tokens, groups: heads, n: latent, k: nope, x: rows(from, heads * (nope + turned), slices), weight, out: rows(out, heads * width, { group: width }), outBf16: true },
        { op: 'rope', tokens, heads, n: turned, x: rows(from, heads * (nope + turned), { ...slices, offset: nope }), angles: Float32Array.from(angles.flat()), out: rows(out, heads * width, { group: width, offset: latent }) },
      );
      const expected = x.flatMap((row, t) => values.flatMap((matrix, h) => {
        const head = row.slice(h * (nope + turned), (h + 1) * (nope + turned));
        return [...product(matrix, head.slice(0, nope)), ...rope(head.slice(nope), angles[t]!)];
      }));
      expectClose(await bench.read(out), expected, BF16);
    });

    // As attention's output leaves the latent: bf16 in, heads side by side out.
    test.each([[32, 0], [36, 3], [33, 1]])('of bf16, by heads, %i numbers from %i on', async (k, offset) => {
      const [tokens, heads, n] = [4, 3, 11];
      const x = bench.matrix(tokens * heads, k + offset, 'bf16');
      const { weight, values } = await bench.weight('bf16', heads, n, k);
      const [from, out] = [await bench.put(x, 'bf16'), await bench.room(tokens * heads * n)];
      await bench.run({ ...base, tokens, groups: heads, n, k, x: rows(from, heads * (k + offset), { group: k + offset, offset }), xBf16: true, weight, out: rows(out, heads * n, { group: n }) });
      expectClose(await bench.read(out), Array.from({ length: tokens }, (_, t) => values.flatMap((matrix, h) => product(matrix, x[t * heads + h]!.slice(offset)))).flat());
    });

    test('many rows of many numbers', async () => {
      const [n, k] = [300, 2056];
      const x = bench.matrix(2, k);
      const { weight, values } = await bench.weight('bf16', 1, n, k);
      const [from, out] = [await bench.put(x), await bench.room(2 * n)];
      await bench.run({ ...base, tokens: 2, n, k, x: rows(from, k), weight, out: rows(out, n) });
      expectClose(await bench.read(out), x.flatMap((row) => product(values[0]!, row)), 5e-5);
    });

    // Tiles that are full, that end at rows, tokens and k, and units that are cut short; as many as a GPU is given tiles for.
    test.each(forms.flatMap((form) => [[form, 128, 2048, 32], [form, 70, 2021, 80], [form, 33, 4034, 36], ...(form === 'int8' ? [] : [[form, 40, 4033, 37] as const])] as const))(
      'many tokens: %s, %i tokens, %i x %i', async (form, tokens, n, k) => {
        const x = bench.matrix(tokens, k);
        const { weight, values } = await bench.weight(form, 1, n, k);
        const [from, out] = [await bench.put(x), await bench.room(tokens * n)];
        await bench.run({ ...base, tokens, n, k, x: rows(from, k), weight, out: rows(out, n) });
        expectClose(await bench.read(out), x.flatMap((row) => product(values[0]!, row)));
      });

    test('many tokens, by heads: slices of bf16 in, wider rows of bf16 out, what is beside them left', async () => {
      const [tokens, heads, n, k] = [35, 33, 70, 20];
      const x = bench.matrix(tokens * heads, k + 4, 'bf16');
      const { weight, values } = await bench.weight('bf16', heads, n, k);
      const [from, out] = [await bench.put(x, 'bf16'), await bench.room(tokens * heads * (n + 2), 'bf16')];
      await bench.run({
        ...base, tokens, groups: heads, n, k, x: rows(from, heads * (k + 4), { group: k + 4, offset: 4 }), xBf16: true, weight, out: rows(out, heads * (n + 2), { group: n + 2, offset: 2 }), outBf16: true,
      });
      expectClose(await bench.read(out), Array.from({ length: tokens }, (_, t) => values.flatMap((matrix, h) => [7, 7, ...product(matrix, x[t * heads + h]!.slice(4))])).flat(), BF16);
    });

    test('many tokens accumulate', async () => {
      const [tokens, n, k] = [50, 4034, 48];
      const [x, before] = [bench.matrix(tokens, k), bench.matrix(tokens, n)];
      const { weight, values } = await bench.weight('int8', 1, n, k);
      const [from, out] = [await bench.put(x), await bench.put(before)];
      await bench.run({ ...base, tokens, n, k, x: rows(from, k), weight, out: rows(out, n), accumulate: true });
      expectClose(await bench.read(out), x.flatMap((row, t) => product(values[0]!, row).map((v, j) => before[t]![j]! + v)), 5e-5);
    });

    // What a scratch tensor holds past the step's tokens may be a NaN.
    test('many tokens: NaN in a token reaches that token alone', async () => {
      const [tokens, n, k] = [40, 4040, 36];
      const x = bench.matrix(tokens, k);
      x[5]![35] = NaN;
      const { weight, values } = await bench.weight('bf16', 1, n, k);
      const [from, out] = [await bench.put(x), await bench.room(tokens * n)];
      await bench.run({ ...base, tokens, n, k, x: rows(from, k), weight, out: rows(out, n) });
      const got = await bench.read(out);
      expect(got.slice(5 * n, 6 * n).every(Number.isNaN)).toBe(true);
      got.splice(5 * n, n);
      expectClose(got, x.filter((_, t) => t !== 5).flatMap((row) => product(values[0]!, row)));
    });

    test('bf16 is rounded to nearest even', async () => {
      // 1 + 2^-8 is halfway between two; one is even.
      const x = [[1 + 2 ** -8, 1 + 3 * 2 ** -8, -(1 + 2 ** -8), 1 + 2 ** -8 + 2 ** -16]];
      const identity = x[0]!.map((_, i) => x[0]!.map((_, j) => (i === j ? 1 : 0)));
      const [from, weight, out] = [await bench.put(x), await bench.put(identity), await bench.room(4, 'bf16')];
      await bench.run({ ...base, tokens: 1, n: 4, k: 4, x: rows(from, 4), weight: { form: 'f32', data: weight.id, scales: undefined }, out: rows(out, 4), outBf16: true });
      expect(await bench.read(out)).toEqual([1, 1 + 2 ** -6, -1, 1 + 2 ** -7]);
    });
  });

  test('appendLatent: normalised, turned and rounded, into its slots', async () => {
    const [tokens, dV, turned, blockSize, blocks] = [5, 32, 16, 16, 3];
    const width = dV + turned;
    const [x, weight, angles] = [bench.matrix(tokens, width + 3), bench.matrix(1, dV), bench.angles(tokens, turned)];
    const slots = Int32Array.of(0, 17, 47, 5, 16);
    const [from, normWeight] = [await bench.put(x), await bench.put(weight)];
    const tensor = await mla.tensor({ data: new Float32Array(blocks * blockSize * width).fill(7), shape: [blocks, blockSize, 1, width] });
    let kvCache = 0;
    await runOps(mla, ({ id }) => {
      kvCache = id(tensor, 'kvCache');
      return [{ op: 'appendLatent', tokens, x: rows(from, width + 3, { offset: 2 }), dV, rope: turned, normWeight: normWeight.id, eps: 1e-6, angles: Float32Array.from(angles.flat()), kvCache, blockSize, slots }];
    });
    const expected = Array.from({ length: blocks * blockSize * width }, () => 7);
    x.forEach((row, t) => expected.splice(slots[t]! * width, width, ...rmsNorm(row.slice(2, 2 + dV), weight[0]!, 1e-6), ...rope(row.slice(2 + dV, 2 + width), angles[t]!)));
    expectClose(await bench.read({ id: kvCache, tensor }), expected, BF16);
  });

  test('swiglu', async () => {
    const [tokens, n] = [3, 301];
    const x = bench.matrix(tokens, 2 * n, 'f32', 8);
    const [from, out] = [await bench.put(x), await bench.room(tokens * n)];
    await bench.run({ op: 'swiglu', tokens, n, x: from.id, out: out.id });
    expectClose(await bench.read(out), x.flatMap(swiglu));
  });

  test('takeRows', async () => {
    const x = bench.matrix(6, 19);
    const [from, out] = [await bench.put(x), await bench.room(3 * 19)];
    await bench.run({ op: 'takeRows', rows: Int32Array.of(5, 0, 5), n: 19, x: from.id, out: out.id });
    expect(await bench.read(out)).toEqual([5, 0, 5].flatMap((r) => x[r]!));
  });

  describe('router', () => {
    const plain = { topK: 3, scoring: 'softmax', groups: 1, topGroups: 1, groupScore: 'max', normalize: false, scale: 1 } as const;
    const grouped = { groups: 4, topGroups: 2 } as const;
    const variants: readonly [string, number, Omit<RouterArgs, 'logits' | 'bias'>, boolean][] = [
      ['softmax', 13, plain, false],
      ['softmax, normalised and scaled', 13, { ...plain, normalize: true, scale: 2.5 }, false],
      ['softmax, scaled', 64, { ...plain, topK: 6, scale: 16 }, false],
      ['softmax, groups by their best', 24, { ...plain, ...grouped }, false],
      ['sigmoid', 300, { ...plain, scoring: 'sigmoid', topK: 8 }, false],
      ['sigmoid with a bias, groups by their two best', 24, { ...plain, ...grouped, scoring: 'sigmoid', groupScore: 'top2', normalize: true, scale: 2.5 }, true],
      ['sigmoid with a bias', 17, { ...plain, scoring: 'sigmoid', normalize: true }, true],
      ['all of them', 4, { ...plain, topK: 4, normalize: true }, true],
    ];

    test.each(variants)('%s', async (_, experts, rest, biased) => {
      const tokens = 5;
      const [logits, [bias]] = [bench.matrix(tokens, experts, 'f32', 2), bench.matrix(1, experts, 'f32', 0.5)];
      const expected = logits.map((row) => router({ ...rest, logits: row, ...(biased && { bias: bias! }) }));
      const got = await route({ ...rest, tokens, experts }, logits, biased ? bias : undefined);
      expect(got.ids).toEqual(expected.flatMap(({ ids }) => ids));
      expectClose(got.weights, expected.flatMap(({ weights }) => weights));
    });

    test('ties go to the lower index, of experts and of groups', async () => {
      const logits = [[0, 1, 1, 0, 1, 1, 0, 1]];
      expect((await route({ ...plain, tokens: 1, experts: 8 }, logits)).ids).toEqual([1, 2, 4]);
      expect((await route({ ...plain, ...grouped, tokens: 1, experts: 8 }, logits)).ids).toEqual([1, 2, 0]);
    });

    async function route(op: Omit<RouterOp, 'op' | 'logits' | 'bias' | 'ids' | 'weights'>, logits: number[][], bias?: readonly number[]): Promise<{ ids: number[]; weights: number[] }> {
      const [from, by, ids, weights] = [await bench.put(logits), bias && (await bench.put([bias])), await bench.room(op.tokens * op.topK, 'i32'), await bench.room(op.tokens * op.topK)];
      await bench.run({ ...op, op: 'router', logits: from.id, bias: by?.id, ids: ids.id, weights: weights.id });
      return { ids: await bench.read(ids), weights: await bench.read(weights) };
    }
  });

  describe('experts', () => {
    const [tokens, topK, count, n, k] = [4, 3, 5, 21, 32];
    const chosen = [[0, 4, 2], [1, 2, 3], [4, 3, 0], [2, 1, 4]];

    async function setting(form: Weight['form']): Promise<{ op: Omit<ExpertsOp, 'how' | 'x' | 'out'>; values: number[][][]; shares: number[][] }> {
      const { weight, values } = await bench.weight(form, count, n, k);
      const shares = bench.matrix(tokens, topK);
      const [ids, weights] = [await bench.put(chosen, 'i32'), await bench.put(shares)];
      return { op: { op: 'experts', tokens, topK, first: 0, experts: count, n, k, weight, ids: ids.id, weights: weights.id }, values, shares };
    }

    test.each(['bf16', 'int8', 'f32'] as const)('spread, %s', async (form) => {
      const { op, values } = await setting(form);
      const x = bench.matrix(tokens, k);
      const [from, out] = [await bench.put(x), await bench.room(tokens * topK * n)];
      await bench.run({ ...op, how: 'spread', x: from.id, out: out.id });
      expectClose(await bench.read(out), x.flatMap((row, t) => chosen[t]!.flatMap((e) => product(values[e]!, row))));
    });

    test('of a part of them: spread leaves what was chosen of others, gather adds nothing for it', async () => {
      const { op, values, shares } = await setting('bf16');
      // Those that are there count as experts 2 to 6.
      const part = { ...op, first: 2 };
      const there = (e: number): number[][] | undefined => values[e - 2];
      const x = bench.matrix(tokens, k);
      const [from, out] = [await bench.put(x), await bench.room(tokens * topK * n)];
      await bench.run({ ...part, how: 'spread', x: from.id, out: out.id });
      const untouched = Array.from({ length: n }, () => 7);
      expectClose(await bench.read(out), x.flatMap((row, t) => chosen[t]!.flatMap((e) => (there(e) ? product(there(e)!, row) : untouched))));
      const inner = bench.matrix(tokens * topK, k);
      const [from2, out2] = [await bench.put(inner), await bench.room(tokens * n)];
      await bench.run({ ...part, how: 'gather', x: from2.id, out: out2.id });
      expectClose(await bench.read(out2), chosen.flatMap((picks, t) => {
        const parts = picks.map((e, i) => (there(e) ? product(there(e)!, inner[t * topK + i]!) : Array.from({ length: n }, () => 0)));
        return Array.from({ length: n }, (_, j) => 7 + parts.reduce((sum, part, i) => sum + shares[t]![i]! * part[j]!, 0));
      }));
    });

    test.each(['bf16', 'int8', 'f32'] as const)('gather, %s', async (form) => {
      const { op, values, shares } = await setting(form);
      const [x, before] = [bench.matrix(tokens * topK, k), bench.matrix(tokens, n)];
      const [from, out] = [await bench.put(x), await bench.put(before)];
      await bench.run({ ...op, how: 'gather', x: from.id, out: out.id });
      expectClose(await bench.read(out), before.flatMap((row, t) => {
        const parts = chosen[t]!.map((e, i) => product(values[e]!, x[t * topK + i]!));
        return row.map((v, j) => v + parts.reduce((sum, part, i) => sum + shares[t]![i]! * part[j]!, 0));
      }));
    });
  });
});
