/**
 * What an adapter can do at best: how fast its kernels read a buffer, and how fast they multiply and add in f32.
 *
 * Short on any adapter: the work grows until it takes long enough for the clock. Both kernels return sums that are
 * compared with what they should be, so that a rate stands for work that was done.
 */
import { ProbeKernel, longEnough, type Clock } from './probe-kernel.ts';
import fmaSource from './probe-fma.wgsl?raw';
import readSource from './probe-read.wgsl?raw';

export interface Ceilings {
  /** GB/s of a kernel that only reads a buffer of `bytes`. */
  readonly reads: number;
  readonly bytes: number;
  /** TFLOP/s of a kernel that only multiplies and adds in f32. */
  readonly computes: number;
  readonly clock: Clock;
}

const THREADS = 256;
const MOST_GROUPS = 1024;
const SOFTWARE_GROUPS = 32;
/** As the read kernel takes at a time, of vectors of 16 bytes. */
const VECTORS_AT_ONCE = 4;
const LEAST_BYTES = 1 << 20;
const MOST_BYTES = 256 << 20;
/** Chains of vec4 in the FMA kernel, four steps a round, two operations a step. */
const FLOPS_A_ROUND = 8 * 4 * 4 * 2;
/** Rounds until all of its numbers are 2 for certain. */
const LEAST_ROUNDS = 16;

export interface ProbeOptions {
  /** The working set to compare with: reads are faster from a buffer that stays in the caches. */
  readonly bytes: number;
  /** The device is the processor: fewer threads are enough. */
  readonly software: boolean;
}

/** @throws Error when the device refuses or computes wrong sums */
export async function probe(device: GPUDevice, { bytes, software }: ProbeOptions): Promise<Ceilings> {
  const most = Math.min(MOST_BYTES, device.limits.maxBufferSize, device.limits.maxStorageBufferBindingSize);
  const size = powerOfTwo(Math.max(LEAST_BYTES, Math.min(bytes, most)), most);
  const reads = await readRate(device, size, software);
  const computes = await fmaRate(device, software);
  return { reads: reads.rate / 1e9, bytes: size, computes: computes.rate / 1e12, clock: reads.clock };
}

/** The size that a probe for `bytes` reads. */
function powerOfTwo(bytes: number, most: number): number {
  const up = 2 ** Math.ceil(Math.log2(bytes));
  return up <= most ? up : 2 ** Math.floor(Math.log2(most));
}

interface Rate {
  /** A second. */
  readonly rate: number;
  readonly clock: Clock;
}

async function readRate(device: GPUDevice, bytes: number, software: boolean): Promise<Rate> {
  const vectors = bytes / 16;
  const groups = Math.min(software ? SOFTWARE_GROUPS : MOST_GROUPS, vectors / THREADS / VECTORS_AT_ONCE);
  const kernel = await ProbeKernel.make(device, { code: readSource, groups, results: groups * THREADS });
  try {
    const once = kernel.storage(bytes, fillWords);
    const { amount, ms, clock } = await longEnough(1, (passes) => kernel.time([vectors, passes]), kernel.clock);
    const sum = new Uint32Array(await kernel.results()).reduce((a, b) => (a + b) >>> 0, 0);
    if (sum !== Math.imul(once, amount) >>> 0) throw new Error('the read probe added up other words than it was given');
    return { rate: (bytes * amount * 1000) / ms, clock };
  } finally {
    kernel.destroy();
  }
}

/** Fills with words that do not repeat. @returns their sum, modulo 2^32 */
function fillWords(words: Uint32Array): number {
  let sum = 0;
  for (let i = 0; i < words.length; i++) {
    words[i] = Math.imul(i + 1, 0x9e3779b1);
    sum = (sum + words[i]!) >>> 0;
  }
  return sum;
}

async function fmaRate(device: GPUDevice, software: boolean): Promise<Rate> {
  const groups = software ? SOFTWARE_GROUPS : MOST_GROUPS;
  const kernel = await ProbeKernel.make(device, { code: fmaSource, groups, results: groups * THREADS });
  try {
    const numbers = Array.from(new Uint32Array(Float32Array.of(0.5, 1).buffer));
    const { amount, ms, clock } = await longEnough(LEAST_ROUNDS, (rounds) => kernel.time([rounds, ...numbers]), kernel.clock);
    if (new Float32Array(await kernel.results()).some((sum) => sum !== 64)) throw new Error('the arithmetic probe came to a wrong sum');
    return { rate: (groups * THREADS * amount * FLOPS_A_ROUND * 1000) / ms, clock };
  } finally {
    kernel.destroy();
  }
}
