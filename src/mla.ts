/**
 * The contract: what every backend of this package offers, in FlashMLA's vocabulary.
 *
 * This file holds types only. `src/index.ts` (any environment) and `src/node.ts` (Node) export a `createMla`
 * that returns an {@link Mla}; `src/worker/` gives the same interface from another thread.
 */

export type BackendName = 'cuda' | 'webgpu' | 'cpu';

/** Element types of Q, the KV cache and the output. Held as 16-bit patterns. */
export type KvDType = 'bf16' | 'f16';

/** Element types of tensors. `lse` is f32; block tables and lengths are i32. */
export type DType = KvDType | 'f32' | 'i32';

/**
 * A tensor on the backend's device.
 *
 * It stays there until read. Work that produces it may still be under way: `read` waits for it, and is where
 * errors of the device surface.
 */
export interface MlaTensor {
  readonly dtype: DType;
  readonly shape: readonly number[];
  /** Bytes of the elements on the device. */
  readonly byteLength: number;
  readonly destroyed: boolean;
  /** The values: bf16, f16 and f32 as Float32Array, i32 as Int32Array. @throws MlaError device-lost, out-of-memory, destroyed */
  read(): Promise<Float32Array | Int32Array>;
  /** The elements as they are stored: 16-bit types as Uint16Array. */
  readBits(): Promise<Uint16Array | Float32Array | Int32Array>;
  /** Gives the memory back. Work already enqueued on the tensor still completes. */
  destroy(): void;
}

/**
 * A tensor in this program's memory. Float32Array is rounded to `dtype` (to nearest even); Uint16Array holds
 * bit patterns of `dtype`. `dtype` defaults to bf16 for Float32Array and Uint16Array, i32 for Int32Array.
 */
export interface HostTensor {
  readonly data: Float32Array | Uint16Array | Int32Array;
  readonly shape: readonly number[];
  readonly dtype?: DType;
  /** Worker only: move the array's buffer to the other thread in place of a copy (the array is empty afterwards). */
  readonly transfer?: boolean;
}

/**
 * A buffer of the caller's own GPUDevice, seen as a tensor (webgpu backend, same thread). It is never destroyed
 * or written by this package unless it is passed as `out` or `lse`. 16-bit elements are packed two to a u32.
 */
export interface GpuBufferTensor {
  /** With usage STORAGE | COPY_SRC, COPY_DST too where a cache is copied into; at most as large as a binding of the device. */
  readonly gpuBuffer: GPUBuffer;
  readonly shape: readonly number[];
  readonly dtype: DType;
}

export type TensorInput = MlaTensor | HostTensor | GpuBufferTensor;
/** Lengths and block tables may also be bare Int32Arrays: [b], and [b, length / b]. */
export type IndexInput = MlaTensor | HostTensor | Int32Array;

/** The tile scheduler's result: which part of the machine takes which KV blocks. Made once a step, reused by every layer. */
export interface MlaMetadata {
  /**
   * [parts, 8] i32, a row a part: place of its first sequence, first block in it, place of its last sequence, end block in it (exclusive),
   * index of the first sequence's split that this part computes, 1 when the first sequence is split, 1 when the
   * last is, 0.
   */
  readonly tileSchedulerMetadata: Int32Array;
  /**
   * [b] i32, the sequence at each place: parts take sequences in this order. Where that order is another than the batch's, more of the
   * sequences end where a part does, and fewer are split.
   */
  readonly order: Int32Array;
  /** [b + 1] i32, prefix sums of the number of splits of each sequence. */
  readonly numSplits: Int32Array;
  /** [b] i32, the lengths it was made for. */
  readonly cacheSeqlens: Int32Array;
  readonly numQTokensPerHeadK: number;
  readonly numHeadsK: number;
  readonly blockSize: number;
  readonly parts: number;
}

export interface MetadataArgs {
  /** [b] tokens in the cache, this step's included. */
  readonly cacheSeqlens: Int32Array;
  /** Query rows that share a KV head: s_q * h_q / h_kv. */
  readonly numQTokensPerHeadK: number;
  /** h_kv. */
  readonly numHeadsK: number;
  /** Tokens a block; 64 when absent. */
  readonly blockSize?: number;
}

export interface DecodeArgs {
  /** [b, s_q, h_q, d_qk], bf16 or f16. */
  readonly q: TensorInput;
  /** [num_blocks, block_size, h_kv, d_qk], as q. V is the first `headDimV` numbers of each row. */
  readonly kvCache: TensorInput;
  /** [b, max_blocks_per_seq] i32. Entries past a sequence's last block are never read. */
  readonly blockTable: IndexInput;
  /** [b] i32, tokens in the cache, this step's included. */
  readonly cacheSeqlens: IndexInput;
  /** d_v: a multiple of 32 up to 512. */
  readonly headDimV: number;
  /** From `getMlaMetadata`; made on the spot when absent. */
  readonly metadata?: MlaMetadata;
  /** d_qk ** -0.5 when absent. */
  readonly softmaxScale?: number;
  /** Bottom-right aligned: query i of s_q sees keys 0 .. seqlen - s_q + i. */
  readonly causal?: boolean;
  /** Where to write, to reuse memory from step to step: [b, s_q, h_q, d_v], as q. */
  readonly out?: MlaTensor;
  /** Where to write: [b, h_q, s_q] f32. */
  readonly lse?: MlaTensor;
}

export interface DecodeResult {
  /** [b, s_q, h_q, d_v], as q. */
  readonly out: MlaTensor;
  /** [b, h_q, s_q] f32, natural log; +inf where a row had nothing to attend to. */
  readonly lse: MlaTensor;
}

/** What the scheduler must know of a machine. */
export interface ScheduleInfo {
  /** Workgroups (or blocks of threads) that the machine runs at once, all told. */
  readonly slots: number;
  /** Row tiles the kernels have, ascending: query rows that share one pass over KV. */
  readonly rowTiles: readonly number[];
  /** Row tiles past one are taken in groups of so many, the last one filled up; 1 when absent. */
  readonly rowTileMultiple?: number;
  /** Fewest KV tokens worth a part of their own. */
  readonly minTokensPerPart: number;
  /** More parts than so many must have twice that: they take longer to merge. No limit when absent. */
  readonly mostSmallParts?: number;
  /** What each sequence costs a part that works on it, besides its tokens, in tokens; 0 when absent. */
  readonly sequenceTokens?: number;
  /** Whether its kernels take sequences in whatever order the schedule lays them; only in the batch's when absent. */
  readonly anyOrder?: boolean;
  /** What tuning found, in place of `slots` and `rowTiles`, for calls of these rows, heads and loads. */
  readonly tuned?: readonly TunedSchedule[];
}

/**
 * How much a decode call has to read: 'short' up to 32,768 tokens in the cache, those of all its sequences together, 'medium' up to
 * 131,072; else 'long'.
 */
export type LoadClass = 'short' | 'medium' | 'long';

export interface TunedSchedule {
  /** Calls of as many query rows a KV head, or a few less (see `rowClass`). */
  readonly rows: number;
  readonly numHeadsK: number;
  readonly load: LoadClass;
  readonly slots: number;
  readonly rowTile: number;
  /** Keys a step of the kernel: calls on blocks that it does not divide are scheduled as if nothing had been tuned. */
  readonly tokens: number;
}

/** Decode calls that one kernel configuration serves best, or one for each load. */
export interface TuneArgs {
  /** Query rows that share a KV head: s_q * h_q / h_kv. */
  readonly numQTokensPerHeadK: number;
  /** h_kv; 1 when absent. */
  readonly numHeadsK?: number;
  /** d_qk; 576 when absent. */
  readonly headDim?: number;
  /** d_v; 512 when absent. */
  readonly headDimV?: number;
  /** bf16 when absent. */
  readonly dtype?: KvDType;
  /** Only for calls of this load; for all when absent. */
  readonly load?: LoadClass;
  /** Measure though the choice is known. */
  readonly again?: boolean;
}

/** One configuration that was tried. */
export interface TuneTrial {
  /** Names the kernel configuration. */
  readonly config: string;
  /** Workgroups that the schedule was cut for. */
  readonly slots?: number;
  /** Milliseconds of a call. */
  readonly ms?: number;
  /** Why it was not measured, or not to the end: its results may be wrong. */
  readonly refused?: string;
}

/** A kernel configuration and the slots to schedule for. */
export interface TuneChoice {
  readonly config: string;
  readonly slots: number;
  /** Milliseconds of the call that it was chosen by. */
  readonly ms: number;
}

/** What became of tuning for one load. */
export interface TuneReport {
  /** The class in words, as it is remembered. */
  readonly shapeClass: string;
  readonly load: LoadClass;
  /** 'none': nothing to tune, and `note` says why. */
  readonly source: 'measured' | 'remembered' | 'none';
  readonly trials: readonly TuneTrial[];
  readonly chosen?: TuneChoice;
  /** Operations and bytes of the call that was measured, for TFLOP/s and GB/s. */
  readonly flops?: number;
  readonly bytes?: number;
  /** Where times come from: timestamps of the device, else wall time. */
  readonly timing?: 'device' | 'wall';
  /** Where the choice is remembered, or why nowhere; or why there is none. */
  readonly note: string;
}

/** What came out of looking at the machine. */
export interface MlaInfo {
  readonly backend: BackendName;
  /** Why this backend: what was preferred and why it was passed over. */
  readonly reason: string;
  /** Name of the device. */
  readonly device: string;
  /** webgpu: kernel tier in use. */
  readonly tier?: string;
  /** webgpu: why each better tier was passed over. */
  readonly tierNotes?: readonly string[];
  /** webgpu: calls so far that another tier or configuration served than the first choice, `what: why`. Changes with the calls that are made. */
  readonly kernelNotes?: readonly string[];
  readonly features: readonly string[];
  readonly limits: Readonly<Record<string, number>>;
  readonly software: boolean;
  /** Changes when tuning finds better. */
  readonly schedule: ScheduleInfo;
  /** webgpu: what became of tuning in the background, where that is worth knowing. */
  readonly tuning?: string;
}

export interface MemoryStats {
  /** Bytes of device memory held now, pooled and scratch buffers included. */
  readonly bytes: number;
  /** Device allocations held now. */
  readonly allocations: number;
  /** Device allocations made since the start. */
  readonly allocated: number;
  /** Kernels compiled since the start. */
  readonly pipelines: number;
}

/** Multi-head Latent Attention decode on one device. */
export interface Mla {
  readonly info: MlaInfo;
  /** Moves data to the device. @throws MlaError invalid-argument, invalid-shape, invalid-dtype, limit-exceeded */
  tensor(input: HostTensor | GpuBufferTensor): Promise<MlaTensor>;
  /** The tile scheduler. Pure and cheap; call it once a step. @throws MlaError out-of-range, invalid-argument */
  getMlaMetadata(args: MetadataArgs): MlaMetadata;
  /**
   * Attention of one decode step over a paged latent cache. Resolves when the work is enqueued, in call order.
   * @throws MlaError before anything is enqueued when an argument is wrong
   */
  flashMlaWithKvCache(args: DecodeArgs): Promise<DecodeResult>;
  /** A pool of KV blocks with per-sequence block tables. @throws MlaError limit-exceeded, out-of-memory */
  createKvCache(options: KvCacheOptions): Promise<PagedKvCache>;
  /** Resolves when everything enqueued so far is done. @throws MlaError device-lost */
  finished(): Promise<void>;
  /**
   * Device time in milliseconds of the decode calls enqueued by `run`: from timestamp queries (`source: 'device'`)
   * where the device has them, else wall time until the work is done (`'wall'`).
   */
  time(run: () => Promise<unknown>): Promise<{ ms: number; source: 'device' | 'wall' }>;
  /**
   * Measures the kernel configurations for a class of calls and uses the best from then on, or finds the choice
   * remembered. The schedule may change with it: make metadata anew to profit; metadata made before stays right.
   * @returns a report for each load, short ones first, or for the one asked for alone
   * @throws MlaError invalid-argument, invalid-shape, invalid-dtype, out-of-memory, device-lost
   */
  tune(args: TuneArgs): Promise<TuneReport[]>;
  /** Pushes earlier data out of the device's caches, so that a benchmark reads from memory. */
  flushCache(): Promise<void>;
  memory(): Promise<MemoryStats>;
  /** Frees all it holds. A device that the caller brought lives on. Idempotent. */
  destroy(): Promise<void>;
}

export interface KvCacheOptions {
  readonly numBlocks: number;
  /** 16, 32, 64 (default) or 128 tokens a block. */
  readonly blockSize?: number;
  /** h_kv; 1 when absent. */
  readonly numHeadsK?: number;
  /** d_qk; 576 when absent. */
  readonly headDim?: number;
  /** d_v; 512 when absent. */
  readonly headDimV?: number;
  /** bf16 when absent. */
  readonly dtype?: KvDType;
  /** Layers that share the block tables, each with a pool of its own; 1 when absent. */
  readonly numLayers?: number;
}

/** Names a sequence of a cache. Never reused within one cache. */
export type SequenceId = number;

export interface AppendArgs {
  /** Where the tokens go, in order: `counts[i]` tokens to `sequences[i]`. */
  readonly sequences: readonly SequenceId[];
  readonly counts: readonly number[];
}

/** Where reserved tokens go: what `reserve` returns and `write` takes, once a layer. */
export interface AppendPlan {
  /** [tokens] i32: block id * block_size + offset. */
  readonly slots: Int32Array;
  readonly tokens: number;
}

export interface KvCacheStats {
  readonly numBlocks: number;
  readonly freeBlocks: number;
  readonly usedBlocks: number;
  /** Blocks that more than one sequence holds. */
  readonly sharedBlocks: number;
  readonly sequences: number;
  /** Sum of sequence lengths; tokens in shared blocks count once for every holder. */
  readonly tokens: number;
  /** Device bytes of the pools, all layers. */
  readonly bytes: number;
  /** Bytes in use: used blocks, all layers. */
  readonly usedBytes: number;
}

/**
 * A paged KV cache: a pool of blocks on the device and, on the host, a free list, a block table a sequence and
 * reference counts. Blocks are taken as sequences grow, shared by `fork` (copy on write) and returned by `free`.
 * A request that cannot be met changes nothing and throws.
 */
export interface PagedKvCache {
  readonly numBlocks: number;
  readonly blockSize: number;
  readonly numHeadsK: number;
  readonly headDim: number;
  readonly headDimV: number;
  readonly dtype: KvDType;
  readonly numLayers: number;
  /** The pool of one layer: [num_blocks, block_size, h_kv, d_qk]. Pass it as `kvCache`. */
  tensor(layer?: number): MlaTensor;
  /** A new, empty sequence. */
  createSequence(): SequenceId;
  /** A new sequence with the same tokens; blocks are shared until one of the two writes. @throws MlaError out-of-range */
  fork(sequence: SequenceId): SequenceId;
  /** Ends sequences and returns the blocks that nobody else holds. @throws MlaError out-of-range */
  free(...sequences: SequenceId[]): void;
  /** Shortens a sequence to `length` tokens (speculative tokens that were refused). @throws MlaError out-of-range */
  truncate(sequence: SequenceId, length: number): void;
  /** Tokens of a sequence. */
  length(sequence: SequenceId): number;
  /** Block ids of a sequence, in order. */
  blocks(sequence: SequenceId): Int32Array;
  /** Lengthens sequences, taking blocks and copying shared ones where needed. @throws MlaError pool-exhausted, out-of-range */
  reserve(args: AppendArgs): Promise<AppendPlan>;
  /**
   * Writes reserved tokens of one layer into their pages, in a kernel.
   * `latent` is [tokens, h_kv, d_v] and `rope` [tokens, h_kv, d_qk - d_v], or `latent` alone is [tokens, h_kv, d_qk].
   */
  write(plan: AppendPlan, data: { latent: TensorInput; rope?: TensorInput; layer?: number }): Promise<void>;
  /** `reserve` and `write` in one, for a cache of one layer. */
  append(args: AppendArgs & { latent: TensorInput; rope?: TensorInput }): Promise<void>;
  /** [b, max_blocks_per_seq]; unused entries are 0. */
  blockTable(sequences: readonly SequenceId[]): HostTensor & { readonly data: Int32Array };
  /** [b]. */
  cacheSeqlens(sequences: readonly SequenceId[]): Int32Array;
  stats(): KvCacheStats;
  /** Frees the pools. Idempotent. */
  destroy(): void;
}
