/** Checkpoints on disk, made here: what is read from them, and what is refused. */
import { mkdtemp, rm, truncate, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterAll, beforeAll, describe, expect, test } from 'vitest';
import { encode16, fromBf16, toBf16, toF16 } from '../src/bf16.ts';
import { Checkpoint, type CheckpointOptions, type LoadProgress } from '../src/model/checkpoint.ts';
import { parseConfig } from '../src/model/config.ts';
import { folderSource } from '../src/model/folder-source.ts';
import type { ModelSource } from '../src/model/source.ts';
import { decoderWeights, tensorSpecs } from '../src/model/weights.ts';
import { writeSafetensors, type SafetensorsTensor } from '../src/safetensors.ts';
import { expectRefusal } from './check.ts';
import { TINY } from './model/configs.ts';
import { Random } from './random.ts';

let root: string;
let made = 0;
beforeAll(async () => {
  root = await mkdtemp(join(tmpdir(), 'flashmla-checkpoint-'));
});
afterAll(() => rm(root, { recursive: true }));

type Tensors = Readonly<Record<string, SafetensorsTensor>>;

/** A folder of shards with an index; one file without when there is one. */
async function write(...shards: readonly Tensors[]): Promise<string> {
  const folder = await mkdtemp(join(root, `${made++}-`));
  const name = (i: number): string => (shards.length === 1 ? 'model.safetensors' : `model-0000${i + 1}-of-0000${shards.length}.safetensors`);
  for (const [i, tensors] of shards.entries()) await writeFile(join(folder, name(i)), writeSafetensors(new Map(Object.entries(tensors))));
  const map = Object.fromEntries(shards.flatMap((tensors, i) => Object.keys(tensors).map((tensor) => [tensor, name(i)])));
  if (shards.length > 1) await writeIndex(folder, map);
  return folder;
}

const writeIndex = (folder: string, weight_map: unknown): Promise<void> => writeFile(join(folder, 'model.safetensors.index.json'), JSON.stringify({ metadata: {}, weight_map }));
const open = (folder: string, options?: CheckpointOptions): Promise<Checkpoint> => Checkpoint.open(folderSource(folder), options);

function tensor(dtype: SafetensorsTensor['dtype'], shape: readonly number[], data: ArrayBufferView): SafetensorsTensor {
  return { dtype, shape, data: new Uint8Array(data.buffer, data.byteOffset, data.byteLength) };
}
const f32 = (shape: readonly number[], values: Float32Array): SafetensorsTensor => tensor('F32', shape, values);
const bf16 = (shape: readonly number[], values: Float32Array): SafetensorsTensor => tensor('BF16', shape, encode16('bf16', values));
const numbers = new Random(7).normals(6 * 8, 1);

describe('element types', () => {
  test.each([
    ['BF16', Uint16Array.from(numbers, toBf16)], ['F16', Uint16Array.from(numbers, toF16)], ['F32', numbers],
  ] as const)('%s as bf16 and f32', async (dtype, stored) => {
    // A tensor before it, so that offsets count.
    const checkpoint = await open(await write({ first: f32([1], Float32Array.of(1)), w: tensor(dtype, [6, 8], stored) }));
    const floats = await checkpoint.readTensor('w', 'f32');
    const precision = { BF16: 2 ** -8, F16: 2 ** -11, F32: 0 }[dtype];
    for (let i = 0; i < 48; i++) expect(Math.abs(floats[i]! - numbers[i]!)).toBeLessThanOrEqual(Math.abs(numbers[i]!) * precision);
    expect(await checkpoint.readTensor('w', 'bf16')).toEqual(Uint16Array.from(floats, toBf16));
    expect(await checkpoint.rows('w', 2, 5, 'f32')).toEqual(floats.slice(16, 40));
    expect(await checkpoint.rows('w', 3, 3, 'f32')).toHaveLength(0);
  });

  /** Decodes E4M3 by its definition; patterns in order of value. */
  const e4m3 = (bits: number): number => {
    const magnitude = bits & 0x7f;
    const value = magnitude === 0x7f ? NaN : magnitude < 8 ? magnitude / 512 : (8 + (magnitude & 7)) * 2 ** ((magnitude >> 3) - 10);
    return bits & 0x80 ? -value : value;
  };

  test('FP8: every pattern', async () => {
    const all = Uint8Array.from({ length: 256 }, (_, i) => i);
    const checkpoint = await open(await write({ w: tensor('F8_E4M3', [16, 16], all), w_scale_inv: f32([1, 1], Float32Array.of(1)) }));
    const floats = await checkpoint.readTensor('w', 'f32');
    expect(floats).toEqual(Float32Array.from(all, e4m3));
    expect(Math.max(...floats.filter((x) => !Number.isNaN(x)))).toBe(448);
  });

  test('FP8: a scale a block, blocks that stick out, rows from the middle, matrices one after the other', async () => {
    const block = [4, 3] as const;
    const shape = [2, 6, 8];
    const bits = Uint8Array.from({ length: 96 }, (_, i) => (i * 5) % 120);
    const scales = Float32Array.from({ length: 2 * 2 * 3 }, (_, i) => 0.25 + i / 7);
    const folder = await write({ w: tensor('F8_E4M3', shape, bits), w_scale_inv: f32([2, 2, 3], scales) }, { other: bf16([1], numbers.slice(0, 1)) });
    const expected = Float32Array.from(bits, (b, i) => {
      const [matrix, row, column] = [Math.floor(i / 48), Math.floor(i / 8) % 6, i % 8];
      return e4m3(b) * scales[(matrix * 2 + Math.floor(row / 4)) * 3 + Math.floor(column / 3)]!;
    });
    const checkpoint = await open(folder, { fp8Block: block });
    expect(await checkpoint.readTensor('w', 'f32')).toEqual(expected);
    expect(await checkpoint.rows('w', 5, 11, 'f32')).toEqual(expected.slice(40, 88));
    expect(await checkpoint.readTensor('w', 'bf16')).toEqual(Uint16Array.from(expected, toBf16));
    checkpoint.expect([{ name: 'w', shape }]);
    expect(checkpoint.totalBytes).toBe(96 + 48);
  });

  test('FP8 without scales, or with others', async () => {
    const w = tensor('F8_E4M3', [4, 4], new Uint8Array(16));
    const bare = await open(await write({ w }));
    await expectRefusal(() => bare.readTensor('w', 'f32'), 'invalid-file', 'w');
    const error = await expectRefusal(() => bare.expect([{ name: 'w', shape: [4, 4] }]), 'invalid-file', 'w');
    expect(error.message).toContain('w_scale_inv');
    const wrong = await open(await write({ w, w_scale_inv: f32([2, 1], new Float32Array(2)) }));
    await expectRefusal(() => wrong.readTensor('w', 'f32'), 'invalid-shape', 'w_scale_inv');
    const integers = await open(await write({ w, w_scale_inv: tensor('I32', [1, 1], new Int32Array(1)) }));
    await expectRefusal(() => integers.readTensor('w', 'f32'), 'invalid-dtype', 'w_scale_inv');
  });

  test('types that weights do not have', async () => {
    const checkpoint = await open(await write({ w: tensor('I64', [2], new BigInt64Array(2)) }));
    await expectRefusal(() => checkpoint.readTensor('w', 'f32'), 'invalid-dtype', 'w');
    await expectRefusal(() => checkpoint.expect([{ name: 'w', shape: [2] }]), 'invalid-dtype', 'w');
  });
});

describe('rows and pieces', () => {
  test('a tensor larger than a piece is put together; memory is asked for in pieces', async () => {
    const columns = 1 << 12;
    const rows = 2500;
    const values = Float32Array.from({ length: rows * columns }, (_, i) => i % 1021);
    const source = folderSource(await write({ w: bf16([rows, columns], values) }));
    let largest = 0;
    const watched: ModelSource = { ...source, read: (file, range) => source.read(file, range).finally(() => largest = Math.max(largest, range.length)) };
    const checkpoint = await Checkpoint.open(watched);
    expect(Buffer.compare(Buffer.from((await checkpoint.readTensor('w', 'bf16')).buffer), Buffer.from(encode16('bf16', values).buffer))).toBe(0);
    expect(largest).toBeLessThanOrEqual(8 << 20);
  });

  test('pieces of a stack follow one another over its tensors', async () => {
    const gate = numbers.slice(0, 24);
    const up = numbers.slice(24);
    const checkpoint = await open(await write({ gate: f32([3, 8], gate) }, { up: f32([3, 8], up) }));
    const stack = { shape: [6, 8], parts: [{ name: 'gate', shape: [3, 8] }, { name: 'up', shape: [3, 8] }] };
    const pieces = [];
    for await (const piece of checkpoint.pieces(stack, 'f32', { elements: 16 })) pieces.push(piece);
    expect(pieces.map(({ row, rows }) => [row, rows])).toEqual([[0, 2], [2, 1], [3, 2], [5, 1]]);
    expect(pieces.flatMap(({ values }) => [...values])).toEqual([...numbers]);
  });

  test('vectors, scalars, nothing, and rows that are not there', async () => {
    const checkpoint = await open(await write({ v: f32([3], numbers.slice(0, 3)), s: f32([], numbers.slice(0, 1)), none: f32([0, 4], new Float32Array(0)) }));
    expect(await checkpoint.readTensor('v', 'f32')).toEqual(numbers.slice(0, 3));
    expect(await checkpoint.readTensor('s', 'f32')).toEqual(numbers.slice(0, 1));
    expect(await checkpoint.readTensor('none', 'bf16')).toHaveLength(0);
    for (const [from, to] of [[0, 2], [-1, 1], [1, 0], [NaN, 1]] as const) await expectRefusal(() => checkpoint.rows('v', from, to, 'f32'), 'out-of-range', 'v');
    await expectRefusal(() => checkpoint.readTensor('w', 'f32'), 'invalid-file');
  });
});

describe('a model', () => {
  const config = parseConfig(TINY);
  const specs = tensorSpecs(decoderWeights(config, () => false));
  const tensors: Tensors = Object.fromEntries(specs.map(({ name, shape }, i) => {
    const values = new Random(i).normals(shape.reduce((n, d) => n * d, 1), 0.1);
    return [name, name.endsWith('bias') ? f32(shape, values) : bf16(shape, values)];
  }));
  const halves = (): [Tensors, Tensors] => {
    const entries = Object.entries(tensors);
    return [Object.fromEntries(entries.slice(0, 20)), Object.fromEntries(entries.slice(20))];
  };

  test.each([[1], [2]])('%i shards: everything is there, and progress counts it', async (count) => {
    const seen: LoadProgress[] = [];
    const checkpoint = await open(await write(...(count === 1 ? [tensors] : halves())), { onProgress: (p) => seen.push(p) });
    const weights = decoderWeights(config, (name) => checkpoint.has(name));
    checkpoint.expect(tensorSpecs(weights));
    for (const { name, shape } of specs) {
      const values = await checkpoint.readTensor(name, 'f32');
      const { data } = tensors[name]!;
      expect(values).toHaveLength(shape.reduce((n, d) => n * d, 1));
      if (tensors[name]!.dtype === 'BF16') expect(values[0]).toBe(fromBf16(data[0]! | (data[1]! << 8)));
    }
    const total = Object.values(tensors).reduce((sum, { data }) => sum + data.byteLength, 0);
    expect(seen).toHaveLength(specs.length);
    expect(seen.at(-1)).toEqual({ loadedBytes: total, totalBytes: total, tensor: specs.at(-1)!.name });
    expect(seen.every(({ loadedBytes }, i) => i === 0 || loadedBytes > seen[i - 1]!.loadedBytes)).toBe(true);
  });

  test('a tensor that is missing, and one of another shape', async () => {
    const { 'model.norm.weight': _, 'lm_head.weight': __, ...rest } = tensors;
    const missing = await open(await write(rest));
    const error = await expectRefusal(() => missing.expect(specs), 'invalid-file');
    expect(error.message).toMatch(/"model\.norm\.weight" and 1 more tensors are missing/);
    const other = await open(await write({ ...tensors, 'model.norm.weight': bf16([4, 2], numbers.slice(0, 8)) }));
    expect(await expectRefusal(() => other.expect(specs), 'invalid-shape', 'model.norm.weight')).toMatchObject({ expected: '[8]', got: '[4, 2]' });
  });

  test('a shard that is missing, truncated, no safetensors, or without a tensor of the index', async () => {
    const second = 'model-00002-of-00002.safetensors';
    const gone = await write(...halves());
    await rm(join(gone, second));
    await expectRefusal(() => open(gone), 'invalid-file', second);
    const short = await write(...halves());
    await truncate(join(short, second), 3000);
    await expectRefusal(() => open(short), 'invalid-file', second);
    const empty = await write(...halves());
    await writeFile(join(empty, second), '');
    await expectRefusal(() => open(empty), 'invalid-file', second);
    const wrong = await write(...halves());
    await writeIndex(wrong, { absent: second });
    expect((await expectRefusal(() => open(wrong), 'invalid-file', second)).message).toContain('"absent"');
  });

  test('a file that shrinks after its header was read', async () => {
    const folder = await write(tensors);
    const checkpoint = await open(folder);
    await truncate(join(folder, 'model.safetensors'), 7000);
    const last = [...checkpoint.tensors.values()].sort((a, b) => b.offset - a.offset)[0]!;
    await expectRefusal(() => checkpoint.readTensor(last.name, 'f32'), 'invalid-file', 'model.safetensors');
  });

  test('no checkpoint, and an index that is none', async () => {
    await expectRefusal(() => open(root), 'invalid-file', 'model.safetensors');
    for (const map of [undefined, [], { w: 3 }, { w: '../secret.safetensors' }, { w: '/etc/passwd' }, { w: 'a/../../b' }, { w: 'https://x/y' }]) {
      const folder = await write(tensors);
      await writeIndex(folder, map);
      await expectRefusal(() => open(folder), 'invalid-file');
    }
  });

  test('a header longer than a first read', async () => {
    const many = Object.fromEntries(Array.from({ length: 4000 }, (_, i) => [`model.layers.${i}.${'x'.repeat(40)}.weight`, bf16([1], numbers.slice(0, 1))]));
    expect((await open(await write(many))).tensors.size).toBe(4000);
  });
});

describe('a signal', () => {
  const two = { a: f32([6, 8], numbers), b: f32([6, 8], numbers) };

  test('stops between reads and while reading', async () => {
    const always = new AbortController();
    const checkpoint = await open(await write(two), { signal: always.signal, onProgress: () => always.abort() });
    expect(await checkpoint.readTensor('a', 'f32')).toEqual(numbers);
    await expectRefusal(() => checkpoint.readTensor('b', 'f32'), 'aborted', 'b');

    const one = new AbortController();
    const source = folderSource(await write(two));
    const slow: ModelSource = { ...source, read: async (file, range) => (one.abort(), source.read(file, range)) };
    const reading = await Checkpoint.open({ ...source, read: (file, range) => (range.offset === 0 ? source : slow).read(file, range) });
    await expectRefusal(() => reading.readTensor('a', 'f32', one.signal), 'aborted');
    // Of that call only.
    expect(await reading.readTensor('a', 'f32')).toEqual(numbers);
  });

  test('stops a source that does not look at it', async () => {
    const controller = new AbortController();
    const source = folderSource(await write(two));
    const deaf: ModelSource = { ...source, read: async (file, { offset, length }) => {
      const bytes = await source.read(file, { offset, length });
      if (offset > 0) controller.abort();
      return bytes;
    } };
    const checkpoint = await Checkpoint.open(deaf, { signal: controller.signal });
    await expectRefusal(() => checkpoint.readTensor('a', 'f32'), 'aborted', 'a');
  });

  test('stops a stack between its pieces, and the reading of headers', async () => {
    const controller = new AbortController();
    const folder = await write(two);
    const checkpoint = await open(folder);
    const stack = { shape: [12, 8], parts: [{ name: 'a', shape: [6, 8] }, { name: 'b', shape: [6, 8] }] };
    let pieces = 0;
    await expectRefusal(async () => {
      for await (const _ of checkpoint.pieces(stack, 'bf16', { elements: 8, signal: controller.signal })) if (++pieces === 3) controller.abort('enough');
    }, 'aborted');
    expect(pieces).toBe(3);
    const error = await expectRefusal(() => open(folder, { signal: AbortSignal.abort('enough') }), 'aborted');
    expect(error.cause).toBe('enough');
  });
});
