/**
 * Problem + device -> kernel configurations. Pure.
 *
 * A configuration says how many query rows share one pass over KV, how many keys a step takes and how threads are
 * laid over the step's products. Which there are is in candidates.ts; here they are worked out and fitted to the device, and
 * each refusal has a reason.
 */
import { MlaError } from '../errors.ts';
import type { ScheduleInfo } from '../mla.ts';
import { chooseRowTile } from '../schedule.ts';
import type { Problem } from '../validate.ts';
import { candidates, occupancy, type Candidate } from './candidates.ts';
import { deviceClass } from './device-class.ts';
import { matrixConfig, matrixShapes, type MatrixDecodeConfig } from './matrix-config.ts';
import type { MatrixTraits } from './matrix-test.ts';
import type { SubgroupSize } from './subgroup-test.ts';
import { TIERS, type Tier } from './tier.ts';

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

/** The most that one storage binding holds, in bytes. */
export function bindingBytes({ maxStorageBufferBindingSize, maxBufferSize }: Pick<KernelLimits, 'maxStorageBufferBindingSize' | 'maxBufferSize'>): number {
  return Math.min(maxStorageBufferBindingSize, maxBufferSize);
}

/** Storage buffers of the decode kernel besides the cache's: q, plan, partials, out, lse. */
export const DECODE_BINDINGS = 5;

/** What a configuration depends on besides the problem. */
export interface DeviceTraits {
  readonly limits: KernelLimits;
  readonly kind: DeviceKind;
  readonly vendor: string;
  readonly architecture: string;
  readonly tier: Tier;
  /** subgroup and matrix tiers. */
  readonly subgroupSize?: SubgroupSize | undefined;
  /** matrix tier. */
  readonly matrix?: MatrixTraits | undefined;
  /** Whether shaders are known to be compiled without bounds checks. */
  readonly unchecked?: boolean;
  /** Processors of this machine, which a software adapter computes on; where they are known. */
  readonly processors?: number | undefined;
}

export type DeviceKind = 'gpu' | 'software';

/** What of a decode call its configuration depends on. */
export type DecodeProblem = Pick<Problem, 'dQk' | 'dV' | 'dtype'> & Partial<Pick<Problem, 'blockSize'>>;

/** What of a decode call its kernel is built for. */
export type KernelProblem = DecodeProblem & Pick<Problem, 'hKv'>;

/** A configuration, told apart by its tier. */
export type DecodeConfig = ScalarConfig | MatrixDecodeConfig;

/** A configuration of shaders/decode.wgsl. */
export interface ScalarConfig extends Required<Candidate> {
  readonly tier: 'base' | 'subgroup';
  /** Names the configuration for good: among all there are, and from one version to the next. */
  readonly key: string;
  /** Ways the d_qk sum is cut. */
  readonly slices: number;
  /** Units of d that slices take whole; what is left, if anything, makes half a unit each. */
  readonly wholeUnits: number;
  /** Sums of slices in workgroup memory, 16 bytes each; none where they come together by shuffles. */
  readonly sliceSums: number;
  /** Units between a token and the next in workgroup memory. */
  readonly stride: number;
  /** Neighbouring threads that load one token. */
  readonly stageLanes: number;
  /** Rows of P, times 4 tokens, that a thread makes. */
  readonly threadQuads: number;
  /** Lanes that a row's `quadTile` times 4 tokens are spread over once shuffled. */
  readonly quadLanes: number;
  /** A row's maximum comes together by shuffles too. */
  readonly shuffleMax: boolean;
  /** Rows of O that a thread holds, times `outUnits` units, each as much as a load takes. */
  readonly outRows: number;
  readonly outUnits: number;
  /** Neighbouring threads that share rows of O; a thread's units are as far apart. */
  readonly outLanes: number;
  /** Sums of S and O that a thread holds at once. */
  readonly sums: number;
  /** Bytes of workgroup memory. */
  readonly workgroupBytes: number;
}

/** By configurations' keys. */
export type Faults = ReadonlyMap<string, string>;

const NONE: Faults = new Map();

/** Configurations that fit, best guess first, and why each other one does not. */
export interface Candidates {
  readonly fits: readonly DecodeConfig[];
  readonly rejected: readonly string[];
}

/**
 * Those of the device's tier; where none fits, those of the next.
 * @param rows query rows a KV head
 * @param faults what the device has said against configurations, by their keys
 */
export function decodeCandidates(problem: DecodeProblem, rows: number, traits: DeviceTraits, faults: Faults = NONE): Candidates {
  const rejected: string[] = [];
  for (const tier of TIERS.slice(TIERS.indexOf(traits.tier))) {
    const fits: DecodeConfig[] = [];
    for (const config of ofTier(tier, problem, traits)) {
      const why = typeof config === 'string' ? config : refuse(config, problem, traits, faults);
      if (typeof config !== 'string' && why === undefined) fits.push(config);
      else rejected.push(why!);
    }
    if (fits.length > 0) return inOrder(fits, rows, rejected);
  }
  return { fits: [], rejected };
}

/** The configuration named `preferredKey` where it fits, else the best guess; undefined where none fits. */
export function chooseDecodeConfig(
  problem: DecodeProblem, rows: number, traits: DeviceTraits, preferredKey?: string, faults?: Faults,
): { config: DecodeConfig | undefined; rejected: readonly string[] } {
  const { fits, rejected } = decodeCandidates(problem, rows, traits, faults);
  return { config: fits.find(({ key }) => key === preferredKey) ?? fits[0], rejected };
}

/** DeepSeek's heads: row tiles for the scheduler, which does not know the heads, are those that fit these. */
const USUAL: DecodeProblem = { dQk: 576, dV: 512, dtype: 'bf16', blockSize: 64 };

/** What the scheduler must know of the device. */
export function scheduleInfo(traits: DeviceTraits): ScheduleInfo {
  const rowTiles = [...new Set(decodeCandidates(USUAL, Infinity, traits).fits.map(({ rows }) => rows))].sort((a, b) => a - b);
  return { ...occupancy(traits), rowTiles };
}

/** The tile that wastes fewest rows first, then smaller ones: a larger one only wastes. The table's order within a tile. */
function inOrder(fits: readonly DecodeConfig[], rows: number, rejected: readonly string[]): Candidates {
  const wanted = chooseRowTile([...new Set(fits.map((c) => c.rows))].sort((a, b) => a - b), rows);
  return {
    fits: fits.filter((c) => c.rows <= wanted).sort((a, b) => b.rows - a.rows),
    rejected: [...rejected, ...fits.filter((c) => c.rows > wanted).map(({ key }) => `${key}: ${rows} rows leave more of it empty than of ${wanted}`)],
  };
}

/** All there are for these widths; what there is none for, as `key: reason`. */
function ofTier(tier: Tier, problem: DecodeProblem, traits: DeviceTraits): (DecodeConfig | string)[] {
  const { matrix } = traits;
  if (tier === 'matrix') return matrix ? matrixShapes(traits).map((shape) => matrixConfig(shape, problem, matrix)) : [];
  return candidates(tier, traits).map((candidate) => scalarConfig(tier, candidate, problem, traits));
}

/** Words of O, two columns each, that a thread holds of each of its rows; more where threads are few. */
const OUT_WORDS = 4;

/** @returns the configuration, or `key: reason` where there is none for these widths */
export function scalarConfig(
  tier: 'base' | 'subgroup', candidate: Candidate, { dQk, dV }: DecodeProblem, { subgroupSize }: Pick<DeviceTraits, 'subgroupSize'>,
): ScalarConfig | string {
  const { rows, tokens, threads, rowTile, quadTile = 1, vec = 4, scoreThreads = threads, prefetch = false, quadProbs = false, scoreTurns = 1, pairSums = 0 } = candidate;
  const shuffles = tier === 'subgroup';
  const quads = tokens / 4;
  const slices = (scoreThreads * rowTile * quadTile) / (rows * quads);
  const units = dQk / 2 / vec;
  const key = `${tier} ${rows}x${tokens}/${threads} s${rowTile}x${quadTile}/${scoreThreads}${scoreTurns === 1 ? '' : `x${scoreTurns}`}${prefetch ? ' prefetch' : ''}${pairSums === 0 ? '' : ` pairs of ${pairSums}`}`;
  const wholeUnits = vec === 4 && scoreThreads === threads && 2 * (units % slices) === slices ? units - slices / 2 : units;
  if (scoreTurns > 1 && wholeUnits % (slices * scoreTurns) !== 0) return `${key}: ${scoreTurns} turns do not divide what ${slices} slices have of d_qk = ${dQk}`;
  if (pairSums > 0 && rowTile * quadTile > slices * pairSums) return `${key}: ${slices} slices do not halve ${rowTile * quadTile} vectors until ${pairSums} are left`;
  // Eight lanes at a time load 16 bytes each: fewer slices than that reach the token four on too, which must lie in other banks.
  const stride = vec === 4 && slices < 8 ? units | 1 : units;
  // Rows of O a thread: a divisor of the tile, so that no thread's rows reach into the next one.
  const outLanes = Math.min(threads, Math.ceil(dV / 2 / OUT_WORDS));
  let outRows = Math.ceil(rows / Math.floor(threads / outLanes));
  while (rows % outRows !== 0) outRows++;
  const sliceSums = shuffles ? 0 : pairSums > 0 ? threads * pairSums : rows * quads * slices;
  const quadLanes = Math.min(quadTile, Math.max(1, slices / rowTile));
  // The KV step; slices' sums; 16 bytes of probabilities and a float a quad, two a row, one beside.
  const workgroupBytes = tokens * stride * vec * 4 + 16 * sliceSums + 20 * rows * quads + 8 * rows + 4;
  const outUnits = Math.ceil(dV / 2 / vec / outLanes);
  return {
    rows, tokens, threads, rowTile, quadTile, vec, scoreThreads, prefetch, quadProbs, scoreTurns, pairSums, tier,
    key, slices, wholeUnits, sliceSums, quadLanes, stride, stageLanes: Math.max(threads / tokens, 8),
    threadQuads: shuffles ? Math.max(1, rowTile / slices) * (quadTile / quadLanes) : Math.ceil((rows * quads) / threads),
    shuffleMax: shuffles && quadTile === quadLanes && slices * (quads / quadTile) <= (subgroupSize?.min ?? 0),
    outRows, outUnits, outLanes, sums: 2 * vec * outRows * outUnits + 4 * rowTile * quadTile, workgroupBytes,
  };
}

/** Why a configuration does not fit, as `key: reason`. */
function refuse(config: DecodeConfig, problem: DecodeProblem, traits: DeviceTraits, faults: Faults): string | undefined {
  const why = misfit(config, problem, traits) ?? faults.get(config.key);
  return why && `${config.key}: ${why}`;
}

function misfit(config: DecodeConfig, { blockSize = 16 }: DecodeProblem, { limits, subgroupSize, kind, vendor, architecture }: DeviceTraits): string | undefined {
  const { threads, tokens, slices, workgroupBytes, tier } = config;
  if (threads > limits.maxComputeInvocationsPerWorkgroup || threads > limits.maxComputeWorkgroupSizeX) {
    return `${threads} threads exceed ${Math.min(limits.maxComputeInvocationsPerWorkgroup, limits.maxComputeWorkgroupSizeX)}`;
  }
  if (workgroupBytes > limits.maxComputeWorkgroupStorageSize) {
    return `${workgroupBytes} B of workgroup memory exceed ${limits.maxComputeWorkgroupStorageSize}`;
  }
  if (blockSize % tokens !== 0) return `${tokens} tokens do not divide blocks of ${blockSize}`;
  const lanes = subgroupSize?.min ?? 0;
  if (config.tier !== 'matrix' && kind === 'gpu') {
    const most = deviceClass(vendor, architecture);
    const what = [vendor, architecture].filter(Boolean).join(' ') || 'an unknown GPU';
    if (config.sums > most.sums) return `${config.sums} sums a thread exceed the ${most.sums} that registers are taken to hold on ${what}`;
    if (threads > most.threads) return `${threads} threads exceed the ${most.threads} that are taken to be good on ${what}`;
  }
  if (tier === 'subgroup' && slices > lanes) return `${slices} slices exceed subgroups of ${lanes}`;
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
export function segmentPool(numBlocks: number, blockBytes: number, limits: KernelLimits, argument: string): Segmentation {
  const bytes = bindingBytes(limits);
  const perSegment = Math.floor(bytes / blockBytes);
  const most = limits.maxStorageBuffersPerShaderStage - DECODE_BINDINGS;
  const largest = perSegment * most;
  if (numBlocks > largest) {
    throw new MlaError('limit-exceeded', 'pool too large for this device', {
      argument,
      expected: `at most ${largest} blocks of ${blockBytes} B (${most} bindings of maxStorageBufferBindingSize = ${bytes} B)`,
      got: String(numBlocks),
      fix: limits.maxStorageBuffersPerShaderStage <= 8 ? 'Ask for a device with more than the default limits' : 'Use several caches',
    });
  }
  const segments = Math.ceil(numBlocks / perSegment);
  return { segments, blocksPerSegment: segments === 1 ? ONE_SEGMENT : perSegment };
}
