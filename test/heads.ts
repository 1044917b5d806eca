/** Widths and block size of a problem. */
import type { CaseOptions } from './cases.ts';

export interface Heads {
  readonly dV: number;
  readonly rope: number;
  readonly blockSize: number;
}

/** What the cuda kernels decode, and nothing else. */
export const DEEPSEEK: Heads = { dV: 512, rope: 64, blockSize: 64 };

/** The narrowest there are: every instance compiles its kernels anew, and narrow ones compile soonest. */
export const NARROW: Heads = { dV: 32, rope: 16, blockSize: 16 };

/** Whether a case has these heads. */
export function hasHeads({ dV = 512, rope = 64, blockSize = 64 }: CaseOptions, heads: Heads): boolean {
  return dV === heads.dV && rope === heads.rope && blockSize === heads.blockSize;
}
