/** Launcher of shaders/subgroup_test.wgsl: whether the device's subgroups are what the subgroup tier takes them for. */
import subgroupSource from '../../shaders/subgroup.wgsl?raw';
import testSource from '../../shaders/subgroup_test.wgsl?raw';
import type { GpuContext } from './device.ts';
import { constants } from './kernel.ts';
import { firstDifference, runSelfTest } from './self-test.ts';

/** Sizes that a kernel's subgroups may have on this device. */
export interface SubgroupSize {
  readonly min: number;
  readonly max: number;
}

/** Fewer lanes than this are not worth shuffling. */
const LEAST_LANES = 4;

/** Workgroups of these sizes are tried, a subgroup's or a few, and many. */
const WORKGROUPS: readonly number[] = [32, 256];

/**
 * A kernel sums over groups of `min` lanes at most, so that it is right with any size from `min` up, even where the compiler
 * chooses another size for another kernel.
 * @returns the sizes, or why the tier cannot work. @throws MlaError device-lost, out-of-memory
 */
export async function testSubgroups(gpu: GpuContext): Promise<SubgroupSize | string> {
  if (!gpu.features.includes('subgroups')) return 'no feature subgroups';
  const size = gpu.subgroupSize;
  if (!size) return 'the adapter does not say its subgroup sizes';
  const refused = refuseSizes(size);
  if (refused) return refused;
  for (const threads of WORKGROUPS.filter((n) => n <= gpu.limits.maxComputeInvocationsPerWorkgroup)) {
    const got = await runSelfTest(gpu, `subgroup self-test, ${threads} threads`, selfTestSource(threads, size.min), threads * WORDS);
    if (typeof got === 'string') return got;
    const wrong = judge(got, size);
    if (wrong) return `self-test with ${threads} threads: ${wrong}`;
  }
  return size;
}

/** Why a kernel can not use subgroups of these sizes; undefined when it can. Pure. */
export function refuseSizes({ min, max }: SubgroupSize): string | undefined {
  if (min < LEAST_LANES) return `subgroups may be as small as ${min}, ${LEAST_LANES} lanes are needed`;
  if (![min, max].every((n) => (n & (n - 1)) === 0) || max < min) return `subgroup sizes ${min} to ${max} are not powers of two`;
  return undefined;
}

export function selfTestSource(threads: number, width: number): string {
  return [
    'enable subgroups;', '@group(0) @binding(0) var<storage, read_write> result: array<u32>;',
    constants({ THREADS: threads, WIDTH: width }), subgroupSource, testSource,
  ].join('\n');
}

/** A thread's words: its subgroup's size, its lane, its sum, whether the last thread is in its subgroup. */
const WORDS = 4;

/** What is wrong with the self-test's result, WORDS a thread. Pure. */
export function judge(words: Uint32Array, { min, max }: SubgroupSize): string | undefined {
  const threads = words.length / WORDS;
  const size = words[0]!;
  if (size < min || size > max || (size & (size - 1)) !== 0) return `a subgroup of ${size} where ${min} to ${max} was promised`;
  const of = (field: number): Uint32Array => Uint32Array.from({ length: threads }, (_, t) => words[t * WORDS + field]!);
  const sizes = firstDifference(of(0), Array.from({ length: threads }, () => size));
  if (sizes) return `subgroups of several sizes: ${sizes}`;
  const lanes = firstDifference(of(1), Array.from({ length: threads }, (_, t) => t % size));
  if (lanes) return `lanes are not neighbouring threads: ${lanes}`;
  const sums = firstDifference(new Float32Array(of(2).buffer), expectedSums(threads, min));
  if (sums) return `wrong sums: ${sums}`;
  const any = firstDifference(of(3), Array.from({ length: threads }, (_, t) => Number(Math.floor(t / size) === Math.floor((threads - 1) / size))));
  return any && `a subgroup is told wrong what holds for one of its lanes: ${any}`;
}

/** The sums that shaders/subgroup_test.wgsl should find. */
export function expectedSums(threads: number, width: number): number[] {
  const value = (thread: number, odd: boolean): number => (odd ? ((thread * 7) % 31) - 8 : ((thread * thread) % 61) + 0.5);
  return Array.from({ length: threads }, (_, thread) => {
    const start = thread - (thread % width);
    return Array.from({ length: width }, (_, i) => value(start + i, thread % 2 === 1)).reduce((a, b) => a + b);
  });
}
