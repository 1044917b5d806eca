/** A product's shape + kind of device -> how its kernel is cut. Pure. */
import type { DeviceKind } from './config.ts';

export interface MatmulConfig {
  readonly threads: number;
  /** Neighbouring threads that share rows, each with its part of k. */
  readonly lanes: number;
  /** Rows of the weight a thread; even, for bf16 results are written in pairs. */
  readonly rows: number;
  /** Tokens that a load of the weight meets. */
  readonly tokens: number;
}

/** Rows that fill a large GPU: below, a row's sum is cut finer. */
const MANY_ROWS = 4096;

/** @param units of a row; @param outputs rows in all, of all groups */
export function matmulConfig(kind: DeviceKind, tokens: number, units: number, outputs: number): MatmulConfig {
  const software = kind === 'software';
  const threads = software ? 16 : 128;
  const most = software ? 4 : outputs >= MANY_ROWS ? 32 : threads;
  // No lane without a unit.
  const lanes = Math.min(most, Math.max(4, 2 ** Math.ceil(Math.log2(units))));
  const tile = [1, 2, 4, 8].find((t) => t >= Math.min(tokens, software ? 4 : 8))!;
  return { threads, lanes, rows: tile > 2 && outputs >= MANY_ROWS ? 4 : 2, tokens: tile };
}

/** Rows a workgroup. */
export function tileRows({ threads, lanes, rows }: MatmulConfig): number {
  return (threads / lanes) * rows;
}
