/** Tables of configurations to try, by tier and device, best guess first. Pure. */
import type { ScheduleInfo } from '../mla.ts';
import type { DeviceTraits } from './config.ts';
import { deviceClass } from './device-class.ts';

/** What is chosen; the rest of a configuration follows. Numbers are powers of two. */
export interface Candidate {
  /** Query rows a workgroup. */
  readonly rows: number;
  /** Keys a step. */
  readonly tokens: number;
  readonly threads: number;
  /** Rows of S that a thread makes, times 4 `quadTile` tokens. */
  readonly rowTile: number;
  /** 1 when absent. */
  readonly quadTile?: number;
  /**
   * Words a load of Q and of workgroup memory, 4 when absent; the cache is read 4 words at a time. With 1 O leaves by way of workgroup memory, in
   * a loop over rows. Written out for each of a thread's rows it is most of the kernel's code, which takes a software adapter's compiler long; but a GPU's
   * gives the loops before it the better registers then.
   */
  readonly vec?: 1 | 4;
  /** Threads that make scores; all when absent. */
  readonly scoreThreads?: number;
  /** Turns of the scores' loop that are one, for loads to be ahead of products: a divisor of the whole units a slice has; 1 when absent. */
  readonly scoreTurns?: number;
  /**
   * Base tier: where the slices of a sum are too many for workgroup memory, they come together by pairs, as many vectors a thread at a time; in
   * one go when absent. All threads make scores then.
   */
  readonly pairSums?: number;
  /** Load the next step's rows while this one's output is made. */
  readonly prefetch?: boolean;
  /** Four neighbouring lanes load four probabilities and pass them round: where a load costs more than a shuffle. */
  readonly quadProbs?: boolean;
}

/**
 * What a thread of a GPU loads and computes for a word (2 numbers) of scores: rowTile + 4 quadTile words for 8 rowTile quadTile
 * multiply-adds; for a token of output: outRows probabilities and 4 words for 8 outRows of them. A core that makes
 * four multiply-adds while it loads a word wants those ratios above four, and registers are what large tiles cost:
 * 8 outRows + 4 rowTile quadTile are live at once. 16 x 4 words of O and 4 x 8 of S come out at 5.3 and above in some 160.
 */
const LARGE: Readonly<Record<'base' | 'subgroup', readonly Candidate[]>> = {
  subgroup: [
    { rows: 64, tokens: 16, threads: 256, rowTile: 4, quadTile: 2, prefetch: true },
    { rows: 64, tokens: 16, threads: 256, rowTile: 8, prefetch: true, scoreTurns: 3 },
    { rows: 64, tokens: 16, threads: 256, rowTile: 8 },
    { rows: 64, tokens: 32, threads: 256, rowTile: 8, quadTile: 2 },
    { rows: 64, tokens: 16, threads: 512, rowTile: 8, prefetch: true },
    { rows: 64, tokens: 32, threads: 512, rowTile: 8, prefetch: true },
    { rows: 32, tokens: 16, threads: 128, rowTile: 4, quadTile: 2, prefetch: true },
    { rows: 32, tokens: 16, threads: 128, rowTile: 8, prefetch: true },
    { rows: 32, tokens: 16, threads: 128, rowTile: 8 },
    { rows: 32, tokens: 32, threads: 128, rowTile: 8, quadTile: 2, prefetch: true },
    { rows: 32, tokens: 16, threads: 256, rowTile: 8, prefetch: true },
    { rows: 32, tokens: 16, threads: 256, rowTile: 4, prefetch: true },
    { rows: 32, tokens: 32, threads: 256, rowTile: 8, prefetch: true },
    { rows: 16, tokens: 8, threads: 64, rowTile: 4, quadTile: 2, prefetch: true, scoreTurns: 2 },
    { rows: 16, tokens: 8, threads: 64, rowTile: 4, prefetch: true, scoreTurns: 3 },
    { rows: 16, tokens: 16, threads: 128, rowTile: 4, quadTile: 2, prefetch: true, scoreTurns: 2 },
    { rows: 16, tokens: 16, threads: 128, rowTile: 4, prefetch: true },
    { rows: 16, tokens: 8, threads: 64, rowTile: 4, prefetch: true },
    { rows: 16, tokens: 16, threads: 128, rowTile: 8, prefetch: true },
    { rows: 16, tokens: 16, threads: 64, rowTile: 8, prefetch: true },
    { rows: 16, tokens: 32, threads: 128, rowTile: 8, prefetch: true },
    { rows: 16, tokens: 32, threads: 64, rowTile: 8, quadTile: 2, prefetch: true },
    { rows: 4, tokens: 16, threads: 64, rowTile: 4, prefetch: true },
    { rows: 4, tokens: 16, threads: 128, rowTile: 2, prefetch: true },
    // For subgroups of 4 lanes and up.
    { rows: 32, tokens: 16, threads: 128, rowTile: 4, prefetch: true },
    { rows: 16, tokens: 16, threads: 64, rowTile: 4, prefetch: true },
    { rows: 4, tokens: 16, threads: 64, rowTile: 1, prefetch: true },
  ],
  base: [
    { rows: 64, tokens: 16, threads: 256, rowTile: 4, quadTile: 2, pairSums: 2, prefetch: true },
    { rows: 64, tokens: 16, threads: 256, rowTile: 4, prefetch: true, scoreTurns: 6 },
    { rows: 64, tokens: 16, threads: 256, rowTile: 4, prefetch: true },
    { rows: 64, tokens: 8, threads: 256, rowTile: 8, prefetch: true },
    { rows: 64, tokens: 16, threads: 256, rowTile: 4 },
    { rows: 32, tokens: 16, threads: 256, rowTile: 4, prefetch: true },
    { rows: 32, tokens: 16, threads: 128, rowTile: 8, prefetch: true },
    { rows: 32, tokens: 16, threads: 128, rowTile: 8 },
    { rows: 32, tokens: 16, threads: 128, rowTile: 4, prefetch: true },
    { rows: 16, tokens: 8, threads: 64, rowTile: 4, quadTile: 2, pairSums: 2, prefetch: true, scoreTurns: 2 },
    { rows: 16, tokens: 8, threads: 64, rowTile: 2, prefetch: true, scoreTurns: 9 },
    { rows: 16, tokens: 16, threads: 128, rowTile: 2, prefetch: true, scoreTurns: 6 },
    { rows: 16, tokens: 16, threads: 64, rowTile: 4, prefetch: true },
    { rows: 16, tokens: 16, threads: 128, rowTile: 4, prefetch: true },
    { rows: 16, tokens: 16, threads: 128, rowTile: 8, prefetch: true },
    { rows: 4, tokens: 16, threads: 64, rowTile: 4, prefetch: true },
    { rows: 4, tokens: 16, threads: 128, rowTile: 2, prefetch: true },
  ],
};

/** What fits WebGPU's default limits, 16 KiB of workgroup memory, and subgroups of 4 or 8. */
const SMALL: readonly Candidate[] = [
  { rows: 32, tokens: 8, threads: 128, rowTile: 4 },
  { rows: 16, tokens: 8, threads: 64, rowTile: 4 },
  { rows: 16, tokens: 8, threads: 128, rowTile: 2 },
  { rows: 4, tokens: 8, threads: 64, rowTile: 1 },
  { rows: 4, tokens: 8, threads: 32, rowTile: 4 },
];

/**
 * SwiftShader, as its JIT code shows: a load from buffer or workgroup memory is lane by lane, some 95 instructions with its bounds
 * checks; each variable that a loop carries costs a masked store a turn; every value has a place of its own on the stack, so that long
 * unrolled code leaves the caches; each group of 4 threads pays at every barrier, active or not. Hence few threads, few of which make
 * scores, and tiles of S just large enough to share loads.
 */
const SOFTWARE: Readonly<Record<'base' | 'subgroup', readonly Candidate[]>> = {
  subgroup: [
    { rows: 16, tokens: 16, threads: 16, rowTile: 8, quadTile: 2, scoreThreads: 8, vec: 1, quadProbs: true },
    { rows: 16, tokens: 8, threads: 16, rowTile: 8, quadTile: 2, scoreThreads: 8, vec: 1, quadProbs: true },
    { rows: 4, tokens: 16, threads: 32, rowTile: 4, quadTile: 2, scoreThreads: 8, vec: 1, quadProbs: true },
    { rows: 4, tokens: 8, threads: 32, rowTile: 4, scoreThreads: 8, vec: 1, quadProbs: true },
  ],
  base: [
    { rows: 16, tokens: 16, threads: 16, rowTile: 8, quadTile: 2, scoreThreads: 8, vec: 1 },
    { rows: 16, tokens: 8, threads: 16, rowTile: 8, quadTile: 2, scoreThreads: 8, vec: 1 },
    { rows: 4, tokens: 16, threads: 32, rowTile: 4, quadTile: 2, scoreThreads: 8, vec: 1 },
    { rows: 4, tokens: 8, threads: 32, rowTile: 4, scoreThreads: 8, vec: 1 },
  ],
};

/** Candidates of a tier for a device. What a GPU is too small for is refused by itself, with a reason. */
export function candidates(tier: 'base' | 'subgroup', { kind }: DeviceTraits): readonly Candidate[] {
  return kind === 'software' ? SOFTWARE[tier] : [...LARGE[tier], ...SMALL];
}

/** What each sequence costs a workgroup of the matrix tier besides its tokens, in tokens: on an H200 best from 128 to 256. Of the other tiers it is little. */
const MATRIX_SEQUENCE_TOKENS = 192;

/** Whether a tier's decode kernel takes sequences in any order. */
export function takesAnyOrder({ tier }: Pick<DeviceTraits, 'tier'>): boolean {
  return tier === 'matrix';
}

/**
 * How many workgroups the device is taken to run at once, how few tokens are worth one, what it takes to begin with a sequence, and whether
 * kernels take sequences in any order.
 */
export function occupancy(traits: DeviceTraits): Required<Pick<ScheduleInfo, 'slots' | 'minTokensPerPart' | 'sequenceTokens' | 'anyOrder'>> {
  const { kind, vendor, architecture, tier, processors = 8 } = traits;
  const anyOrder = takesAnyOrder(traits);
  // A software adapter runs a workgroup a processor, and merging costs it more than a second round; a GPU several on each of its tens to
  // hundreds of cores.
  if (kind === 'software') return { slots: Math.max(4, processors), minTokensPerPart: 256, sequenceTokens: 0, anyOrder };
  const { slots } = deviceClass(vendor, architecture);
  // Workgroups of the matrix tier take a third of a core's registers and more.
  return { slots: tier === 'matrix' ? slots / 2 : slots, minTokensPerPart: 64, sequenceTokens: tier === 'matrix' ? MATRIX_SEQUENCE_TOKENS : 0, anyOrder };
}
