/** Names and shapes of a decoder's tensors, and what is done to weights on the way to the device. */
import { describe, expect, test } from 'vitest';
import { fromBf16, toBf16 } from '../src/bf16.ts';
import { parseConfig } from '../src/model/config.ts';
import { quantizeRows } from '../src/model/quantize.ts';
import { decoderWeights, splitKvB, tensorSpecs, type DecoderWeights, type LayerWeights } from '../src/model/weights.ts';
import { expectRefusal } from './check.ts';
import { TINY, V2_LITE, V3 } from './model/configs.ts';
import { Random } from './random.ts';

const none = (): boolean => false;
const shapes = (weights: DecoderWeights): Record<string, readonly number[]> => Object.fromEntries(tensorSpecs(weights).map(({ name, shape }) => [name, shape]));

describe('names and shapes', () => {
  test('a V3 of two layers, in full', () => {
    const attention = {
      'self_attn.q_a_proj.weight': [6, 8], 'self_attn.q_a_layernorm.weight': [6], 'self_attn.q_b_proj.weight': [2 * 20, 6],
      'self_attn.kv_a_proj_with_mqa.weight': [48, 8], 'self_attn.kv_a_layernorm.weight': [32], 'self_attn.kv_b_proj.weight': [2 * 8, 32],
      'self_attn.o_proj.weight': [8, 8], 'input_layernorm.weight': [8], 'post_attention_layernorm.weight': [8],
    };
    const expert = (name: string, size: number): object => ({ [`${name}.gate_proj.weight`]: [size, 8], [`${name}.up_proj.weight`]: [size, 8], [`${name}.down_proj.weight`]: [8, size] });
    const layer = (i: number, tensors: object): object => Object.fromEntries(Object.entries(tensors).map(([name, shape]) => [`model.layers.${i}.${name}`, shape as number[]]));
    expect(shapes(decoderWeights(parseConfig(TINY), none))).toEqual({
      'model.embed_tokens.weight': [20, 8], 'model.norm.weight': [8], 'lm_head.weight': [20, 8],
      ...layer(0, { ...attention, ...expert('mlp', 12) }),
      ...layer(1, {
        ...attention, 'mlp.gate.weight': [4, 8], 'mlp.gate.e_score_correction_bias': [4], ...expert('mlp.shared_experts', 4),
        ...expert('mlp.experts.0', 4), ...expert('mlp.experts.1', 4), ...expert('mlp.experts.2', 4), ...expert('mlp.experts.3', 4),
      }),
    });
  });

  test('experts in one tensor, as transformers 5 can save them', () => {
    const config = parseConfig(TINY);
    const fused = shapes(decoderWeights(config, (name) => name.endsWith('.experts.gate_up_proj')));
    expect(fused['model.layers.1.mlp.experts.gate_up_proj']).toEqual([4, 8, 8]);
    expect(fused['model.layers.1.mlp.experts.down_proj']).toEqual([4, 8, 4]);
    expect(Object.keys(fused).filter((name) => /experts\.\d/.test(name))).toEqual([]);
  });

  test('stacks: gate before up, expert after expert', () => {
    const { mlp } = decoderWeights(parseConfig(TINY), none).layers[1]! as LayerWeights & { mlp: { kind: 'moe' } };
    expect(mlp.gateUp.shape).toEqual([4, 8, 8]);
    expect(mlp.gateUp.parts.slice(0, 3).map(({ name }) => name.split('experts.')[1])).toEqual(['0.gate_proj.weight', '0.up_proj.weight', '1.gate_proj.weight']);
  });

  test('DeepSeek-V2-Lite: one query projection, no bias in the router; DeepSeek-V3 without the layer that predicts further', () => {
    const lite = shapes(decoderWeights(parseConfig(V2_LITE), none));
    expect(lite['model.layers.0.self_attn.q_proj.weight']).toEqual([16 * 192, 2048]);
    expect(lite['model.layers.1.mlp.shared_experts.up_proj.weight']).toEqual([2816, 2048]);
    expect(Object.keys(lite)).toHaveLength(3 + 27 * 7 + 3 + 26 * (1 + 3 + 64 * 3));
    const v3 = Object.keys(shapes(decoderWeights(parseConfig(V3), none)));
    expect(v3.filter((name) => name.startsWith('model.layers.61.'))).toEqual([]);
    expect(v3).toHaveLength(3 + 61 * 9 + 3 * 3 + 58 * (2 + 3 + 256 * 3));
  });

  test('tied embeddings', () => {
    const weights = decoderWeights(parseConfig({ ...TINY, tie_word_embeddings: true }), none);
    expect(weights.lmHead).toBe(weights.embed);
    expect(shapes(weights)['lm_head.weight']).toBeUndefined();
  });
});

describe('kv_b_proj in halves', () => {
  const sizes = { heads: 3, nope: 4, v: 2, lora: 5 };
  const random = new Random(1);
  const kvB = random.normals(3 * 6 * 5, 1);
  const kvAt = (h: number, row: number, j: number): number => kvB[(h * 6 + row) * 5 + j]!;

  test('absorbed scores and outputs are those of the whole projection', () => {
    const { uk, uv } = splitKvB(Float32Array.from(kvB), sizes);
    const q = random.normals(4, 1);
    const latent = random.normals(5, 1);
    for (let h = 0; h < 3; h++) {
      // q . (K latent) = (uk q) . latent
      let score = 0;
      for (let i = 0; i < 4; i++) for (let j = 0; j < 5; j++) score += q[i]! * kvAt(h, i, j) * latent[j]!;
      let absorbed = 0;
      for (let j = 0; j < 5; j++) for (let i = 0; i < 4; i++) absorbed += uk[(h * 5 + j) * 4 + i]! * q[i]! * latent[j]!;
      expect(absorbed).toBeCloseTo(score, 12);
      for (let row = 0; row < 2; row++) {
        expect([...uv.subarray((h * 2 + row) * 5, (h * 2 + row + 1) * 5)]).toEqual(Array.from({ length: 5 }, (_, j) => kvAt(h, 4 + row, j)));
      }
    }
  });

  test('bits stay bits', () => {
    const { uk, uv } = splitKvB(Uint16Array.from(kvB, toBf16), sizes);
    expect(uk).toBeInstanceOf(Uint16Array);
    const floats = splitKvB(Float32Array.from(kvB, (x) => fromBf16(toBf16(x))), sizes);
    expect(Array.from(uk, fromBf16)).toEqual([...floats.uk]);
    expect(Array.from(uv, fromBf16)).toEqual([...floats.uv]);
  });
});

describe('int8', () => {
  test('within half a step of the row, four to a word from the lowest byte', () => {
    const k = 12;
    const values = new Random(2).normals(5 * k, 0.3);
    values.fill(0, 4 * k);
    const { data, scales } = quantizeRows(values, k);
    expect(data).toHaveLength(5 * 3);
    for (let i = 0; i < values.length; i++) {
      const scale = scales[Math.floor(i / k)]!;
      const number = (data[i >> 2]! << (24 - 8 * (i & 3))) >> 24;
      expect(Math.abs(number * scale - values[i]!)).toBeLessThanOrEqual(scale * 0.5001);
    }
    for (let row = 0; row < 4; row++) expect(scales[row]! * 127).toBeCloseTo(Math.max(...values.slice(row * k, (row + 1) * k).map(Math.abs)), 6);
    expect([scales[4], ...data.subarray(12)]).toEqual([0, 0, 0, 0]);
  });

  test('the ends of the range, and numbers that are hardly any', () => {
    const { data, scales } = quantizeRows(Float32Array.of(-2, 2, 1, 0, 1e-45, 0, 0, 0), 4);
    expect([...new Int8Array(data.buffer)]).toEqual([-127, 127, 64, 0, 0, 0, 0, 0]);
    expect([...scales]).toEqual([Math.fround(2 / 127), 0]);
  });

  test('refuses rows that are no multiple of 4, and what is not finite', async () => {
    await expectRefusal(() => quantizeRows(new Float32Array(6), 6, 'x'), 'invalid-shape', 'x');
    await expectRefusal(() => quantizeRows(new Float32Array(6), 4), 'invalid-shape');
    await expectRefusal(() => quantizeRows(Float32Array.of(0, NaN, 0, 0), 4, 'x'), 'invalid-argument', 'x');
    await expectRefusal(() => quantizeRows(Float32Array.of(0, 0, 0, -Infinity), 4), 'invalid-argument');
  });
});
