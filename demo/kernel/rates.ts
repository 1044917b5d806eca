/** Rates of a decode, and what part they are of what the adapter can do. Pure. */
import { digits } from '../site/format.ts';
import type { Ceilings } from './probe.ts';
import type { Cost } from './shape.ts';

export interface Rates {
  readonly gbps: number;
  readonly tflops: number;
}

/** Undefined where the clock was too coarse for a time. */
export function ratesOf({ flops, bytes }: Cost, ms: number): Rates | undefined {
  return ms > 0 ? { gbps: bytes / ms / 1e6, tflops: flops / ms / 1e9 } : undefined;
}

/** Parts of the adapter's measured ceilings: 1 is all of it. */
export function sharesOf({ gbps, tflops }: Rates, { reads, computes }: Pick<Ceilings, 'reads' | 'computes'>): { readonly read: number; readonly compute: number } {
  return { read: gbps / reads, compute: tflops / computes };
}

export function percent(part: number): string {
  return `${digits(part < 0.1 ? Number((part * 100).toPrecision(2)) : Math.round(part * 100))} %`;
}

/** TFLOP/s, or GFLOP/s where those would begin with zeros. */
export function flopRate(tflops: number): string {
  return tflops < 0.1 ? `${digits(tflops * 1000)} GFLOP/s` : `${digits(tflops)} TFLOP/s`;
}
