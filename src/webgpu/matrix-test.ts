/** Launcher of shaders/matrix_test.wgsl: whether the device does all that the matrix tier does with subgroup matrices, and in which of the two syntaxes. */
import kernelSource from '../../shaders/decode_matrix.wgsl?raw';
import testSource from '../../shaders/matrix_test.wgsl?raw';
import type { GpuContext } from './device.ts';
import { constants, expand } from './kernel.ts';
import { MATRIX_ARRAYS, MATRIX_ENABLES, older, type MatrixSyntax } from './matrix-syntax.ts';
import { firstDifference, runSelfTest } from './self-test.ts';

export interface MatrixTraits {
  readonly syntax: MatrixSyntax;
  /** Lanes of every subgroup. */
  readonly subgroupSize: number;
}

const FEATURES = ['chromium-experimental-subgroup-matrix', 'shader-f16', 'subgroups'] as const;

/** @returns what the matrix tier builds on, or why it cannot work. @throws MlaError device-lost, out-of-memory */
export async function testMatrices(gpu: GpuContext): Promise<MatrixTraits | string> {
  const missing = FEATURES.filter((name) => !gpu.features.includes(name));
  if (missing.length > 0) return `no feature ${missing.join(', ')}`;
  if (!gpu.matrixConfigs.some((c) => c.componentType === 'f16' && c.resultComponentType === 'f32' && c.M === 16 && c.N === 16 && c.K === 16)) {
    return 'no 16 x 16 x 16 matrices of f16 with f32 sums';
  }
  const size = gpu.subgroupSize;
  // How many subgroups a workgroup has is built into the kernel.
  if (!size || size.min !== size.max) return size ? `subgroups of ${size.min} to ${size.max} lanes, one size is needed` : 'the adapter does not say its subgroup sizes';
  const reasons: string[] = [];
  for (const syntax of ['new', 'old'] as const) {
    const got = await runSelfTest(gpu, `matrix self-test, ${syntax} syntax`, selfTestSource(size.max, syntax), RESULT_WORDS);
    const wrong = typeof got === 'string' ? got : judge(new Float32Array(got.buffer), syntax);
    if (wrong === undefined) return { syntax, subgroupSize: size.max };
    reasons.push(`${syntax} syntax: ${wrong}`);
  }
  return reasons.join('; ');
}

/** Vectors of 4 in `slices`, which has room for two matrices: a check's answer. */
const ANSWER = 128;

/** Places and strides, in the arrays' elements, as of a kernel with steps of 32 keys and two tiles: operands of 16 columns in rows of 32 and some. */
const LAYOUT = {
  TILES: 2, TILE_SIZE: 80, KV_STRIDE: 5, Q_AT: 2, K_AT: 82, V_AT: 80, TOKENS: 32, ROWS: 16, PROBS_SIZE: 160, P_STRIDE: 10, P_AT: 4, SLICES_SIZE: ANSWER, O_AT: 3, O_STRIDE: 5,
  SPLIT_Q: false,
} as const;

/** What shaders/matrix_test.wgsl has untouched. */
const UNTOUCHED = 0.5;

/** 16 rows of 4 vectors from vector `at` on, `stride` of them apart. */
interface Rows {
  readonly numbers: readonly number[];
  readonly at?: number;
  readonly stride?: number;
}

function answer(...parts: Rows[]): number[] {
  const all = Array.from({ length: 4 * ANSWER }, () => UNTOUCHED);
  for (const { numbers, at = 0, stride = 4 } of parts) numbers.forEach((x, i) => (all[4 * (at + (i >> 4) * stride) + (i % 16)] = x));
  return all;
}

/** `times` the product of the shader's operands, row by row. */
function product(times = 1): number[] {
  const left = (row: number, k: number): number => (row === 3 ? 96 : ((row * 3 + k * 5) % 11) - 4);
  const right = (k: number, column: number): number => (column === 5 ? 64 : ((k * 7 + column * 2) % 13) - 5);
  return Array.from({ length: 256 }, (_, i) => {
    let sum = 0;
    for (let k = 0; k < 16; k++) sum += left(i >> 4, k) * right(k, i % 16);
    return times * sum;
  });
}

/** Of four columns of a row each: whether one is infinite or no number, and else their sum. */
function foundNotFinite(): number[] {
  const of = product();
  return Array.from({ length: 64 }, (_, i) => {
    const [row, quad] = [i >> 2, i % 4];
    const found = row === 7 || row === 12 || quad < 3;
    return [Number(found), found ? 0 : of.slice(4 * i, 4 * i + 4).reduce((a, b) => a + b), 0, 0];
  }).flat();
}

interface Check {
  /** What the tier's note says came out wrong. */
  readonly what: string;
  readonly right: () => number[];
  /** Not in the older syntax, in which the kernel does not do it. */
  readonly newOnly?: true;
}

/** The shader's checks, in its order, what others rest on first. */
const CHECKS: Readonly<Record<string, Check>> = {
  ROW_LOADS: { what: 'a row-major load', right: () => answer({ numbers: product() }, { numbers: product(), at: 64 }) },
  COLUMN_LOADS: { what: 'a column-major load', right: () => answer({ numbers: product() }, { numbers: product(), at: 64 }) },
  PAIR_LOADS: { what: 'a load of probabilities', right: () => answer({ numbers: product() }, { numbers: product(), at: 64 }) },
  SUMS: { what: 'a sum of several products', right: () => answer({ numbers: product(3) }) },
  NEXT_SUMS: { what: 'a matrix made zero again', right: () => answer({ numbers: product(3) }) },
  STORES: { what: 'a store', right: () => answer({ numbers: product(), at: LAYOUT.O_AT, stride: LAYOUT.O_STRIDE }) },
  LOADED_SUMS: { what: 'a sum loaded back', right: () => answer({ numbers: product(3), at: LAYOUT.O_AT, stride: LAYOUT.O_STRIDE }) },
  OVERWRITTEN: { what: 'an operand overwritten once loaded', right: () => answer({ numbers: product() }, { numbers: Array.from({ length: 256 }, () => 1), at: 64 }) },
  TILE_STORES: { what: 'a store among the keys', newOnly: true, right: () => answer({ numbers: product() }) },
  CONVERSIONS: {
    what: 'a number beyond f16\'s range',
    right: () => answer({ numbers: [...Array.from({ length: 10 }, () => 0x7c00), 0x7bf8, 0x7c00] }),
  },
  SMALL_NUMBERS: { what: 'a product of f16\'s smallest numbers', right: () => answer({ numbers: product() }) },
  NOT_FINITE: { what: 'a product of infinity or NaN', right: () => answer({ numbers: foundNotFinite() }) },
  EVENTS: { what: 'an event of another thread', right: () => answer({ numbers: Array.from({ length: 256 }, (_, i) => [4, 12, 8, 0][i % 4]!) }) },
};

/** The checks' answers, and a vector of zeros. */
const RESULT_WORDS = 4 * (ANSWER * Object.keys(CHECKS).length + 1);

/** A function as the kernel has it. */
function ofKernel(name: string): string {
  return new RegExp(`^fn ${name}\\([^]*?^}`, 'm').exec(kernelSource)![0];
}

export function selfTestSource(threads: number, syntax: MatrixSyntax): string {
  const names = Object.keys(CHECKS);
  const values = {
    ...LAYOUT, THREADS: threads, IS_BF16: true, POSITIVE_INFINITY: 0x7f800000, O_IN_TILE: syntax === 'new', ZEROS_AT: ANSWER * names.length, ...Object.fromEntries(names.map((name, i) => [name, i])),
  };
  const body = expand(testSource, values);
  return [
    MATRIX_ENABLES, '@group(0) @binding(0) var<storage, read_write> result: array<vec4<f32>>;', constants(values),
    expand(MATRIX_ARRAYS[syntax], values), ofKernel('halves'), ofKernel('out_of_range'), syntax === 'old' ? older(body) : body,
  ].join('\n');
}

/** What the self-test finds where all is right. */
export function rightAnswers(): number[] {
  return [...Object.values(CHECKS).flatMap(({ right }) => right()), 0, 0, 0, 0];
}

/** Which checks came out wrong, and how the first did; undefined when all are right. Pure. */
export function judge(got: Float32Array, syntax: MatrixSyntax): string | undefined {
  const wrong = Object.values(CHECKS).flatMap(({ what, right, newOnly }, i) => {
    const how = newOnly && syntax === 'old' ? undefined : firstDifference(got.subarray(4 * ANSWER * i), right());
    return how === undefined ? [] : [{ what, how }];
  });
  return wrong.length === 0 ? undefined : `${wrong.map(({ what }) => what).join(', ')} came out wrong: ${wrong[0]!.how}`;
}
