/**
 * How kernels read weights and the vectors that meet them. Pure.
 *
 * A unit is what one load brings of a row of weights: 16 bytes where rows are cut evenly into such, else 4 numbers. Kernels see
 * units as quads of f32.
 */
import type { TensorId } from '../backend.ts';
import type { Rows, Weight } from '../ops.ts';
import { reads } from './launch.ts';
import type { StorageBinding } from './kernel.ts';

export interface WeightReader {
  /** Names it. */
  readonly key: string;
  /** Numbers a unit. */
  readonly unit: number;
  /** weight, and scales where it has such. */
  readonly bindings: readonly StorageBinding[];
  /** `Unit`, `load_unit(row, unit, units a row)`, `quad_of(unit, quad)`, `row_scale(row)`. They may use `p.k`. Asked for once a kernel. */
  source(): string;
}

const NO_SCALE = 'fn row_scale(row: u32) -> f32 { return 1.0; }';
const FIND = 'fn load_unit(row: u32, u: u32, units: u32) -> Unit { return weight[row * units + u]; }';
const BF16_PAIRS = 'vec4<f32>(bitcast<f32>(x << 16u), bitcast<f32>(x & 0xffff0000u), bitcast<f32>(y << 16u), bitcast<f32>(y & 0xffff0000u))';
const QUADS = 'alias Unit = vec4<f32>;\nfn quad_of(unit: Unit, quad: u32) -> vec4<f32> { return unit; }';

export function weightReader({ form }: Pick<Weight, 'form'>, k: number): WeightReader {
  if (form === 'int8') return k % 16 === 0 ? INT8 : INT8_WORDS;
  if (form === 'bf16') return k % 8 === 0 ? BF16 : BF16_RAGGED;
  return k % 4 === 0 ? F32 : F32_RAGGED;
}

/** What a reader's bindings are bound to. */
export function weightTensors({ form, data, scales }: Weight): TensorId[] {
  return form === 'int8' ? [data, scales!] : [data];
}

const BF16: WeightReader = {
  key: 'bf16', unit: 8, bindings: [reads('weight', 'vec4<u32>')],
  source: () => `alias Unit = vec4<u32>;
fn quad_of(unit: Unit, quad: u32) -> vec4<f32> {
  let x = unit[2u * quad];
  let y = unit[2u * quad + 1u];
  return ${BF16_PAIRS};
}
${FIND}
${NO_SCALE}`,
};
const F32: WeightReader = { key: 'f32', unit: 4, bindings: [reads('weight', 'vec4<f32>')], source: () => `${QUADS}\n${FIND}\n${NO_SCALE}` };
const [BF16_RAGGED, F32_RAGGED] = [ragged('bf16'), ragged('f32')];
const [INT8, INT8_WORDS] = [int8('vec4<u32>', 16, 'unit[quad]'), int8('u32', 4, 'unit')];

function int8(element: 'vec4<u32>' | 'u32', unit: number, word: string): WeightReader {
  return {
    key: `int8 ${element}`, unit, bindings: [reads('weight', element), reads('scales', 'f32')],
    source: () => `alias Unit = ${element};
fn quad_of(unit: Unit, quad: u32) -> vec4<f32> {
  return vec4<f32>((vec4<i32>(i32(${word})) << vec4<u32>(24u, 16u, 8u, 0u)) >> vec4<u32>(24u));
}
fn row_scale(row: u32) -> f32 { return scales[row]; }
${FIND}`,
  };
}

/** What is past a row's end is another row: it counts as zero. */
function ragged(form: 'bf16' | 'f32'): WeightReader {
  const number = (i: number): string => `select(0.0, number(row * p.k + min(4u * u + ${i}u, p.k - 1u)), 4u * u + ${i}u < p.k)`;
  return {
    key: `${form} ragged`, unit: 4, bindings: [reads('weight', form === 'f32' ? 'f32' : 'u32')],
    source: () => `${QUADS}
fn number(at: u32) -> f32 { return ${element('weight', form === 'bf16')}; }
fn load_unit(row: u32, u: u32, units: u32) -> Unit { return Unit(${[0, 1, 2, 3].map(number).join(', ')}); }
${NO_SCALE}`,
  };
}

export interface VectorReader {
  readonly key: string;
  readonly binding: StorageBinding;
  /** `load_x(row's first element, i)`: four numbers of the vector from i on. It may use `p.k`. */
  source(): string;
}

export function vectorReader({ stride, group, offset }: Omit<Rows, 'tensor'>, k: number, bf16: boolean): VectorReader {
  const whole = stride % 4 === 0 && group % 4 === 0 && offset % 4 === 0 && k % 4 === 0;
  return bf16 ? (whole ? BF16_VECTOR : BF16_RAGGED_VECTOR) : whole ? F32_VECTOR : F32_RAGGED_VECTOR;
}

const F32_VECTOR: VectorReader = {
  key: 'f32', binding: reads('x_data', 'vec4<f32>'), source: () => 'fn load_x(at: u32, i: u32) -> vec4<f32> { return x_data[(at + i) / 4u]; }',
};
const BF16_VECTOR: VectorReader = {
  key: 'bf16', binding: reads('x_data', 'vec2<u32>'),
  source: () => `fn load_x(at: u32, i: u32) -> vec4<f32> {
  let pair = x_data[(at + i) / 4u];
  let x = pair.x;
  let y = pair.y;
  return ${BF16_PAIRS};
}`,
};
const [BF16_RAGGED_VECTOR, F32_RAGGED_VECTOR] = [raggedVector(true), raggedVector(false)];

/** Zero past its end: what is there may be a NaN, which no weight makes zero. */
function raggedVector(bf16: boolean): VectorReader {
  const number = (i: number): string => `select(0.0, x_number(at + min(i + ${i}u, p.k - 1u)), i + ${i}u < p.k)`;
  return {
    key: `${bf16 ? 'bf16' : 'f32'} ragged`, binding: reads('x_data', bf16 ? 'u32' : 'f32'),
    source: () => `fn x_number(at: u32) -> f32 { return ${element('x_data', bf16)}; }
fn load_x(at: u32, i: u32) -> vec4<f32> { return vec4<f32>(${[0, 1, 2, 3].map(number).join(', ')}); }`,
  };
}

/** Element `at` of an array of f32, or of bf16 two to a word. */
function element(name: string, bf16: boolean): string {
  return bf16 ? `bitcast<f32>(select(${name}[at / 2u] << 16u, ${name}[at / 2u] & 0xffff0000u, at % 2u == 1u))` : `${name}[at]`;
}
