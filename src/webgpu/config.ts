/**
 * Problem + device limits -> kernel configuration. Pure.
 *
 * A configuration says how many query rows share one pass over KV, how many keys a step takes and how threads are
 * laid over the step's products. Candidates are tried from the fastest down; each refusal has a reason.
 */
import { MlaError } from '../errors.ts';
import type { Problem } from '../validate.ts';

/** The limits that kernels depend on, by their WebGPU names. */
export interface KernelLimits {
  readonly maxStorageBufferBindingSize: number;
  readonly maxBufferSize: number;
  readonly maxStorageBuffersPerShaderStage: number;
  readonly maxComputeWorkgroupStorageSize: number;
  readonly maxComputeInvocationsPerWorkgroup: number;
  readonly maxComputeWorkgroupSizeX: number;
  readonly maxComputeWorkgroupsPerDimension: number;
}

/** Storage buffers of the decode kernel besides the cache's: q, plan, partials, out, lse. */
export const DECODE_BINDINGS = 5;

export interface DecodeConfig {
  /** Query rows a workgroup. */
  readonly rows: number;
  /** Keys a step. Divides every block size. */
  readonly tokens: number;
  readonly threads: number;
  /** Rows of S that a thread makes, times 4 tokens. */
  readonly rowTile: number;
  /** Ways the d_qk sum is cut. */
  readonly slices: number;
  /** Words of a slice that a turn of the loop takes; where more than one, all slices are whole turns. */
  readonly wordUnroll: number;
  /** Rows of P, times 4 tokens, that a thread makes. */
  readonly threadQuads: number;
  /** Rows of O that a thread holds, times `outWords` words of two columns. */
  readonly outRows: number;
  readonly outWords: number;
  /** Neighbouring threads that share rows of O; a thread's words are as far apart. */
  readonly outLanes: number;
  /** Bytes of workgroup memory. */
  readonly workgroupBytes: number;
}

interface Candidate {
  readonly rows: number;
  readonly tokens: number;
  readonly threads: number;
  readonly rowTile: number;
}

/** Ascending in rows; within a row count, the fastest first. */
const CANDIDATES: Readonly<Record<DeviceKind, readonly Candidate[]>> = {
  gpu: [
    { rows: 4, tokens: 16, threads: 128, rowTile: 2 },
    { rows: 4, tokens: 8, threads: 128, rowTile: 1 },
    { rows: 16, tokens: 16, threads: 256, rowTile: 2 },
    { rows: 16, tokens: 8, threads: 128, rowTile: 2 },
  ],
  // A software adapter runs threads one after another, 4 lanes at a time, and pays for each at every barrier: few threads
  // with much in registers each.
  software: [
    { rows: 4, tokens: 16, threads: 32, rowTile: 4 },
    { rows: 4, tokens: 8, threads: 32, rowTile: 4 },
    { rows: 16, tokens: 16, threads: 32, rowTile: 8 },
    { rows: 16, tokens: 8, threads: 32, rowTile: 8 },
  ],
};

export type DeviceKind = 'gpu' | 'software';

/** Row tiles, ascending, for the scheduler. */
export const ROW_TILES: readonly number[] = [4, 16];

export interface Verdict {
  readonly config: DecodeConfig | undefined;
  /** Why each candidate before the chosen one was passed over. */
  readonly rejected: readonly string[];
}

/** @param rows query rows a KV head */
export function chooseDecodeConfig(problem: Pick<Problem, 'dQk' | 'dV'>, rows: number, limits: KernelLimits, kind: DeviceKind): Verdict {
  const wanted = ROW_TILES.find((tile) => tile >= rows) ?? ROW_TILES[ROW_TILES.length - 1]!;
  const rejected: string[] = [];
  const order = [...CANDIDATES[kind].filter((c) => c.rows === wanted), ...CANDIDATES[kind].filter((c) => c.rows < wanted).reverse()];
  for (const candidate of order) {
    const config = complete(candidate, problem);
    const why = refuse(config, limits);
    if (!why) return { config, rejected };
    rejected.push(`${config.rows} rows x ${config.tokens} tokens: ${why}`);
  }
  return { config: undefined, rejected };
}

function complete({ rows, tokens, threads, rowTile }: Candidate, { dQk, dV }: Pick<Problem, 'dQk' | 'dV'>): DecodeConfig {
  const slices = (threads * rowTile * 4) / (rows * tokens);
  // Rows of O a thread: a divisor of the tile, so that no thread's rows reach into the next one.
  const outLanes = Math.min(threads, dV / 2);
  const outGroups = Math.floor(threads / outLanes);
  const threadQuads = Math.ceil((rows * tokens) / 4 / threads);
  const wordUnroll = (dQk / 2) % (slices * 2) === 0 ? 2 : 1;
  let outRows = Math.ceil(rows / outGroups);
  while (rows % outRows !== 0) outRows++;
  // The KV step; slice sums, scores and probabilities, 16 bytes a quad; two floats a row.
  const workgroupBytes = tokens * dQk * 2 + 16 * (rows * tokens / 4) * (slices + 2) + 8 * rows;
  return { rows, tokens, threads, rowTile, slices, wordUnroll, threadQuads, outRows, outWords: Math.ceil(dV / 2 / outLanes), outLanes, workgroupBytes };
}

function refuse(config: DecodeConfig, limits: KernelLimits): string | undefined {
  if (config.threads > limits.maxComputeInvocationsPerWorkgroup || config.threads > limits.maxComputeWorkgroupSizeX) {
    return `${config.threads} threads exceed ${Math.min(limits.maxComputeInvocationsPerWorkgroup, limits.maxComputeWorkgroupSizeX)}`;
  }
  if (config.workgroupBytes > limits.maxComputeWorkgroupStorageSize) {
    return `${config.workgroupBytes} B of workgroup memory exceed ${limits.maxComputeWorkgroupStorageSize}`;
  }
  return undefined;
}

/** How a cache is laid over bindings: block i is block i % blocksPerSegment of segment i / blocksPerSegment. */
export interface Segmentation {
  readonly segments: number;
  readonly blocksPerSegment: number;
}

/** `blocksPerSegment` of a cache in one binding: larger than any block id. */
export const ONE_SEGMENT = 0x7fffffff;

/**
 * Spreads a pool of blocks over as many bindings as it needs.
 * @throws MlaError limit-exceeded, naming the limit and the largest pool
 */
export function segmentPool(numBlocks: number, blockBytes: number, limits: KernelLimits): Segmentation {
  const bytes = Math.min(limits.maxStorageBufferBindingSize, limits.maxBufferSize);
  const perSegment = Math.floor(bytes / blockBytes);
  const most = limits.maxStorageBuffersPerShaderStage - DECODE_BINDINGS;
  const largest = perSegment * most;
  if (numBlocks > largest) {
    throw new MlaError('limit-exceeded', 'pool too large for this device', {
      argument: 'numBlocks',
      expected: `at most ${largest} blocks of ${blockBytes} B (${most} bindings of maxStorageBufferBindingSize = ${bytes} B)`,
      got: String(numBlocks),
      fix: limits.maxStorageBuffersPerShaderStage <= 8 ? 'Ask for a device with more than the default limits' : 'Use several caches',
    });
  }
  const segments = Math.ceil(numBlocks / perSegment);
  return { segments, blocksPerSegment: segments === 1 ? ONE_SEGMENT : perSegment };
}
