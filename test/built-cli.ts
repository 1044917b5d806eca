/** The built program, run as a user does, and decode problems as the files that it reads. */
import { execFile } from 'node:child_process';
import { existsSync } from 'node:fs';
import { fileURLToPath } from 'node:url';
import { decode16 } from '../src/bf16.ts';
import type { SafetensorsDType, SafetensorsTensor } from '../src/safetensors.ts';
import type { DecodeCase } from './cases.ts';

export const CLI: string = fileURLToPath(new URL('../dist/cli.js', import.meta.url));

export function checkBuilt(): void {
  if (!existsSync(CLI)) throw new Error('dist/cli.js is not there: run npm run build first');
}

export interface Ended {
  readonly status: number | null;
  readonly signal: string | null;
  readonly stdout: string;
  readonly stderr: string;
}

export function runCli(args: readonly string[], env: NodeJS.ProcessEnv = process.env): Promise<Ended> {
  return new Promise((resolve) => {
    const child = execFile(process.execPath, [CLI, ...args], { env }, (_, stdout, stderr) => {
      resolve({ status: child.exitCode, signal: child.signalCode, stdout, stderr });
    });
  });
}

export function bytes({ buffer, byteOffset, byteLength }: ArrayBufferView): Uint8Array {
  return new Uint8Array(buffer, byteOffset, byteLength);
}

/** A case as the tensors of a file, q and kv_cache as `dtype`. */
export function tensorsOf(c: DecodeCase, dtype: SafetensorsDType = c.dtype === 'f16' ? 'F16' : 'BF16'): Map<string, SafetensorsTensor> {
  const floats = (bits: Uint16Array): Uint8Array => bytes(dtype === 'F32' ? decode16(c.dtype, bits) : bits);
  return new Map<string, SafetensorsTensor>([
    ['q', { dtype, shape: [c.b, c.sQ, c.hQ, c.dQk], data: floats(c.q) }],
    ['kv_cache', { dtype, shape: [c.numBlocks, c.blockSize, c.hKv, c.dQk], data: floats(c.kvCache) }],
    ['block_table', { dtype: 'I32', shape: [c.b, c.maxBlocksPerSeq], data: bytes(c.blockTable) }],
    ['cache_seqlens', { dtype: 'I32', shape: [c.b], data: bytes(c.cacheSeqlens) }],
  ]);
}
