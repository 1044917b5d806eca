/** A product's shape + kind of device -> its kernel, of few tokens or of many, and how that is cut. Pure. */
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

/** How a product of many tokens is cut: shaders/matmul_tiled.wgsl. */
export interface TileConfig {
  readonly threads: number;
  /** Rows of the weight a workgroup. */
  readonly tileRows: number;
  /** Pairs of rows a thread. */
  readonly pairs: number;
  /** Tokens a thread. */
  readonly tokens: number;
  /** Numbers along k that are in workgroup memory at a time: a multiple of 16, the largest unit. */
  readonly step: number;
}

/** Tokens a workgroup. */
export function tileTokens({ threads, tileRows, pairs, tokens }: TileConfig): number {
  return (threads / (tileRows / (2 * pairs))) * tokens;
}

/** Below so many a tile is mostly empty. */
const FEWEST_TILED_TOKENS = 32;
const TILES: Readonly<Record<DeviceKind, TileConfig>> = {
  software: { threads: 16, tileRows: 32, pairs: 4, tokens: 8, step: 16 },
  gpu: { threads: 64, tileRows: 64, pairs: 4, tokens: 8, step: 16 },
};

/** Fewer tiles leave most of a large GPU idle, where the other kernel cuts rows along k until it is full. */
const FEWEST_TILES: Readonly<Record<DeviceKind, number>> = { software: 1, gpu: 64 };

/** Undefined where the kernel for a few tokens is to be taken. @param n rows a group */
export function tileConfig(kind: DeviceKind, tokens: number, groups: number, n: number): TileConfig | undefined {
  const config = TILES[kind];
  if (tokens < FEWEST_TILED_TOKENS || n < config.tileRows) return undefined;
  const tiles = groups * Math.ceil(n / config.tileRows) * Math.ceil(tokens / tileTokens(config));
  return tiles >= FEWEST_TILES[kind] ? config : undefined;
}
