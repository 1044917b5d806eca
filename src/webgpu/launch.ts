/** What launchers of a step's operations have in common. */
import { MlaError } from '../errors.ts';
import type { Rows } from '../ops.ts';
import type { KernelLimits } from './config.ts';
import type { StorageBinding } from './kernel.ts';

/** Threads of a kernel whose threads have nothing to do with each other. */
export const COLUMN_THREADS = 64;

const scratch = new Float32Array(1);
const bits = new Uint32Array(scratch.buffer);

/** A number as a word of parameters. */
export function f32Bits(value: number): number {
  scratch[0] = value;
  return bits[0]!;
}

/** A grid of columns in x and rows in y, where kernels take every so many-th row. */
export function columnGrid(columns: number, rows: number, { maxComputeWorkgroupsPerDimension: most }: KernelLimits): [number, number, number] {
  return [Math.ceil(columns / COLUMN_THREADS), Math.min(rows, most), 1];
}

/** Workgroups that take every so many-th token. */
export function tokenGrid(tokens: number, { maxComputeWorkgroupsPerDimension: most }: KernelLimits): [number, number, number] {
  return [Math.min(tokens, most), 1, 1];
}

/** @throws MlaError limit-exceeded */
export function checkGrid(grid: readonly [number, number, number], argument: string, { maxComputeWorkgroupsPerDimension: most }: KernelLimits): void {
  if (Math.max(...grid) > most) {
    throw new MlaError('limit-exceeded', 'too large for one dispatch', { argument, expected: `at most ${most} workgroups a dimension`, got: grid.join(' x '), fix: 'Take fewer tokens a step' });
  }
}

/** bf16 is written two numbers at a time. @throws MlaError invalid-argument */
export function checkPairs({ stride, group, offset }: Omit<Rows, 'tensor'>, n: number): void {
  if ([stride, group, offset, n].every((x) => x % 2 === 0)) return;
  throw new MlaError('invalid-argument', 'rows of bf16 must begin and end at even elements', {
    argument: 'out', expected: 'even numbers', got: `${n} numbers from ${offset} on, ${stride} a token, ${group} a group`,
  });
}

export function reads(name: string, element: StorageBinding['element']): StorageBinding {
  return { name, access: 'read', element };
}

export function writes(name: string, element: StorageBinding['element']): StorageBinding {
  return { name, access: 'read_write', element };
}

/** The bindings that StepEncoder fills in. */
export const PARAMS = { access: 'params' } as const;
export const ARGS: StorageBinding = reads('args', 'u32');
