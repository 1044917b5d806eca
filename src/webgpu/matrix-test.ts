/** Launcher of shaders/matrix_test.wgsl: whether the device multiplies subgroup matrices, and in which of the two syntaxes. */
import testSource from '../../shaders/matrix_test.wgsl?raw';
import type { GpuContext } from './device.ts';
import { constants } from './kernel.ts';
import { firstDifference, runSelfTest } from './self-test.ts';

/** `new`: majorness as a template argument; `old`: column-majorness as a boolean. */
export type MatrixSyntax = 'new' | 'old';

export interface MatrixTraits {
  readonly syntax: MatrixSyntax;
  /** Lanes of every subgroup. */
  readonly subgroupSize: number;
}

const FEATURES = ['chromium-experimental-subgroup-matrix', 'shader-f16', 'subgroups'] as const;

/** What shaders with subgroup matrices begin with. Matrices are loaded at offsets that a compiler cannot prove uniform. */
export const MATRIX_ENABLES: string = [
  'enable f16;', 'enable subgroups;', 'enable chromium_experimental_subgroup_matrix;', 'diagnostic(off, chromium.subgroup_matrix_uniformity);',
].join('\n');

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
    const got = await runSelfTest(gpu, `matrix self-test, ${syntax} syntax`, selfTestSource(size.max, syntax), 256);
    const wrong = typeof got === 'string' ? got : firstDifference(new Float32Array(got.buffer), expectedProduct());
    if (wrong === undefined) return { syntax, subgroupSize: size.max };
    reasons.push(`${syntax} syntax: ${wrong}`);
  }
  return reasons.join('; ');
}

export function selfTestSource(threads: number, syntax: MatrixSyntax): string {
  const load = (type: string, at: number): string =>
    syntax === 'new' ? `subgroupMatrixLoad<${type}, row_major>(&operands, ${at}u, 16u)` : `subgroupMatrixLoad<${type}>(&operands, ${at}u, false, 16u)`;
  return [
    MATRIX_ENABLES, '@group(0) @binding(0) var<storage, read_write> result: array<f32>;', constants({ THREADS: threads }),
    testSource
      .replace('let left = LOAD_LEFT', `let left = ${load('subgroup_matrix_left<f16, 16, 16>', 0)}`)
      .replace('let right = LOAD_RIGHT', `let right = ${load('subgroup_matrix_right<f16, 16, 16>', 256)}`)
      .replace('  STORE_SUM;', syntax === 'new' ? '  subgroupMatrixStore<row_major>(&result, 0u, sum, 16u);' : '  subgroupMatrixStore(&result, 0u, sum, false, 16u);'),
  ].join('\n');
}

/** The product that shaders/matrix_test.wgsl should find, row by row. */
export function expectedProduct(): number[] {
  const left = (row: number, k: number): number => (row === 3 ? 96 : ((row * 3 + k * 5) % 11) - 4);
  const right = (k: number, column: number): number => (column === 5 ? 64 : ((k * 7 + column * 2) % 13) - 5);
  return Array.from({ length: 256 }, (_, i) => {
    let sum = 0;
    for (let k = 0; k < 16; k++) sum += left(i >> 4, k) * right(k, i % 16);
    return 2 * sum;
  });
}
