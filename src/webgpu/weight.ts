/**
 * How kernels read weights and the vectors that meet them. Pure.
 *
 * A unit is what one load brings of a row of weights: 16 bytes where rows are cut evenly into such, else 4 numbers. Kernels see
 * units as quads of f32.
 */
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
  /** `Unit`, `load_unit(row, unit, units a row)`, `quad_of(unit, quad)`, `row_scale(row)`. They may use `p.k`. */
  readonly source: string;
}

const NO_SCALE = 'fn row_scale(row: u32) -> f32 { return 1.0; }';
const FIND = 'fn load_unit(row: u32, u: u32, units: u32) -> Unit { return weight[row * units + u]; }';
const BF16_PAIRS = 'vec4<f32>(bitcast<f32>(x << 16u), bitcast<f32>(x & 0xffff0000u), bitcast<f32>(y << 16u), bitcast<f32>(y & 0xffff0000u))';
const INT8_QUAD = 'fn quad_of_word(word: u32) -> vec4<f32> { return vec4<f32>((vec4<i32>(i32(word)) << vec4<u32>(24u, 16u, 8u, 0u)) >> vec4<u32>(24u)); }';

export function weightReader({ form }: Pick<Weight, 'form'>, k: number): WeightReader {
  if (form === 'int8') {
    const whole = k % 16 === 0;
    const bindings = [reads('weight', whole ? 'vec4<u32>' : 'u32'), reads('scales', 'f32')];
    const quad = whole ? 'unit[quad]' : 'unit';
    return {
      key: `int8${whole ? '' : ' words'}`, unit: whole ? 16 : 4, bindings,
      source: [
        `alias Unit = ${whole ? 'vec4<u32>' : 'u32'};`, FIND, INT8_QUAD, `fn quad_of(unit: Unit, quad: u32) -> vec4<f32> { return quad_of_word(${quad}); }`,
        'fn row_scale(row: u32) -> f32 { return scales[row]; }',
      ].join('\n'),
    };
  }
  if (form === 'bf16' && k % 8 === 0) {
    return {
      key: 'bf16', unit: 8, bindings: [reads('weight', 'vec4<u32>')],
      source: ['alias Unit = vec4<u32>;', FIND, `fn quad_of(unit: Unit, quad: u32) -> vec4<f32> {\n  let x = unit[2u * quad];\n  let y = unit[2u * quad + 1u];\n  return ${BF16_PAIRS};\n}`, NO_SCALE].join('\n'),
    };
  }
  const quads = 'alias Unit = vec4<f32>;\nfn quad_of(unit: Unit, quad: u32) -> vec4<f32> { return unit; }';
  if (form === 'f32' && k % 4 === 0) return { key: 'f32', unit: 4, bindings: [reads('weight', 'vec4<f32>')], source: [quads, FIND, NO_SCALE].join('\n') };
  // What is past a row's end is another row: it counts as zero.
  const unit = [0, 1, 2, 3].map((i) => `select(0.0, number(row * p.k + min(4u * u + ${i}u, p.k - 1u)), 4u * u + ${i}u < p.k)`).join(', ');
  return {
    key: `${form} ragged`, unit: 4, bindings: [reads('weight', form === 'f32' ? 'f32' : 'u32')],
    source: [quads, `fn number(at: u32) -> f32 { return ${element('weight', form === 'bf16')}; }`, `fn load_unit(row: u32, u: u32, units: u32) -> Unit { return Unit(${unit}); }`, NO_SCALE].join('\n'),
  };
}

export interface VectorReader {
  readonly key: string;
  readonly binding: StorageBinding;
  /** `load_x(row's first element, i)`: four numbers of the vector from i on. It may use `p.k`. */
  readonly source: string;
}

export function vectorReader({ stride, group, offset }: Omit<Rows, 'tensor'>, k: number, bf16: boolean): VectorReader {
  const key = bf16 ? 'bf16' : 'f32';
  if ([stride, group, offset, k].every((x) => x % 4 === 0)) {
    const load = bf16
      ? `  let pair = x_data[(at + i) / 4u];\n  let x = pair.x;\n  let y = pair.y;\n  return ${BF16_PAIRS};`
      : '  return x_data[(at + i) / 4u];';
    return { key, binding: reads('x_data', bf16 ? 'vec2<u32>' : 'vec4<f32>'), source: `fn load_x(at: u32, i: u32) -> vec4<f32> {\n${load}\n}` };
  }
  // Zero past its end: what is there may be a NaN, which no weight makes zero.
  const four = [0, 1, 2, 3].map((i) => `select(0.0, x_number(at + min(i + ${i}u, p.k - 1u)), i + ${i}u < p.k)`).join(', ');
  return {
    key: `${key} ragged`, binding: reads('x_data', bf16 ? 'u32' : 'f32'),
    source: `fn x_number(at: u32) -> f32 { return ${element('x_data', bf16)}; }\nfn load_x(at: u32, i: u32) -> vec4<f32> { return vec4<f32>(${four}); }`,
  };
}

/** Element `at` of an array of f32, or of bf16 two to a word. */
function element(name: string, bf16: boolean): string {
  return bf16 ? `bitcast<f32>(select(${name}[at / 2u] << 16u, ${name}[at / 2u] & 0xffff0000u, at % 2u == 1u))` : `${name}[at]`;
}
