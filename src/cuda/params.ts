/** The bytes that launches pass to the kernels: struct DecodeParams of native-cuda/params.cuh and its like. Pure. */
import type { HostBlock } from './driver.ts';

export const TENSOR_MAP_BYTES = 128;

/** Offsets in DecodeParams. */
export const DECODE_PARAMS = {
  kvLow: 0, kvHigh: 128, qLow: 256, qHigh: 384,
  // struct Plan
  parts: 512, sequences: 520, merges: 528, table: 536, tableStride: 544, rows: 548, group: 552, hKv: 556, sQ: 560, causal: 564, scaleLog2: 568,
  out: 576, lse: 584, partialOut: 592, partialInfo: 600,
  bytes: 640, // the maps' alignment, 64, is the struct's
} as const;

/** CombineParams are the bytes of DecodeParams from here on. */
export const COMBINE_PARAMS_AT: number = DECODE_PARAMS.parts;

export interface DecodeParams {
  /** Two tensor maps each. */
  readonly kvMaps: Uint8Array;
  readonly qMaps: Uint8Array;
  readonly parts: number;
  readonly sequences: number;
  readonly merges: number;
  readonly table: number;
  readonly tableStride: number;
  readonly rows: number;
  readonly group: number;
  readonly hKv: number;
  readonly sQ: number;
  readonly causal: boolean;
  readonly softmaxScale: number;
  readonly out: number;
  readonly lse: number;
  readonly partialOut: number;
  readonly partialInfo: number;
}

/** In place of a scale of zero, which the kernel's masks do not bear: with it every score rounds to the same weight. */
const SMALLEST_SCALE = 1e-30;

export function writeDecodeParams(to: HostBlock, p: DecodeParams): void {
  const at = DECODE_PARAMS;
  to.bytes.set(p.kvMaps, at.kvLow);
  to.bytes.set(p.qMaps, at.qLow);
  to.setPointer(at.parts, p.parts);
  to.setPointer(at.sequences, p.sequences);
  to.setPointer(at.merges, p.merges);
  to.setPointer(at.table, p.table);
  to.i32[at.tableStride / 4] = p.tableStride;
  to.i32[at.rows / 4] = p.rows;
  to.i32[at.group / 4] = p.group;
  to.i32[at.hKv / 4] = p.hKv;
  to.i32[at.sQ / 4] = p.sQ;
  to.i32[at.causal / 4] = p.causal ? 1 : 0;
  const scaleLog2 = Math.fround(p.softmaxScale * Math.LOG2E);
  to.f32[at.scaleLog2 / 4] = scaleLog2 === 0 ? SMALLEST_SCALE : scaleLog2;
  to.setPointer(at.out, p.out);
  to.setPointer(at.lse, p.lse);
  to.setPointer(at.partialOut, p.partialOut);
  to.setPointer(at.partialInfo, p.partialInfo);
}

/** Offsets in AppendParams of native-cuda/append.cu. */
export const APPEND_PARAMS = { cache: 0, latent: 8, rope: 16, slots: 24, rows: 32, hKv: 36, latentChunks: 40, rowChunks: 44, bytes: 48 } as const;

export interface AppendParams {
  readonly cache: number;
  readonly latent: number;
  /** 0 when `latent` holds whole rows. */
  readonly rope: number;
  readonly slots: number;
  readonly rows: number;
  readonly hKv: number;
  readonly latentChunks: number;
  readonly rowChunks: number;
}

export function writeAppendParams(to: HostBlock, p: AppendParams): void {
  const at = APPEND_PARAMS;
  to.setPointer(at.cache, p.cache);
  to.setPointer(at.latent, p.latent);
  to.setPointer(at.rope, p.rope);
  to.setPointer(at.slots, p.slots);
  to.i32[at.rows / 4] = p.rows;
  to.i32[at.hKv / 4] = p.hKv;
  to.i32[at.latentChunks / 4] = p.latentChunks;
  to.i32[at.rowChunks / 4] = p.rowChunks;
}

/** Offsets in GatherParams of native-cuda/gather_q.cu. */
export const GATHER_PARAMS = { from: 0, to: 8, rows: 16, sQ: 20, hKv: 24, group: 28, bytes: 32 } as const;

export interface GatherParams {
  readonly from: number;
  readonly to: number;
  /** b * s_q * h_q. */
  readonly rows: number;
  readonly sQ: number;
  readonly hKv: number;
  readonly group: number;
}

export function writeGatherParams(to: HostBlock, p: GatherParams): void {
  const at = GATHER_PARAMS;
  to.setPointer(at.from, p.from);
  to.setPointer(at.to, p.to);
  to.i32[at.rows / 4] = p.rows;
  to.i32[at.sQ / 4] = p.sQ;
  to.i32[at.hKv / 4] = p.hKv;
  to.i32[at.group / 4] = p.group;
}
