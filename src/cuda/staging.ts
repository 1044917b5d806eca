/**
 * Copies between this program and the device, through pinned memory, so that neither waits for the device's work.
 *
 * Uploads are laid one after another into segments; a segment is used again once the device has passed the fence behind
 * its last copy. Where uploads outrun the device by MOST_SEGMENTS, and only there, the next one waits for it.
 */
import { MlaError } from '../errors.ts';
import { Pool } from '../pool.ts';
import type { CudaContext } from './context.ts';
import { OUT_OF_MEMORY, describeResult } from './driver.ts';

interface Pinned {
  readonly address: number;
  readonly bytes: Uint8Array<ArrayBuffer>;
}

const SEGMENT_BYTES = 4 << 20;
/** Node 20 views no more than 4 GiB of memory at once. */
const MOST_PINNED = 1 << 30;
const MOST_SEGMENTS = 32;
const POOLED_BYTES = 64 << 20;
const PORTABLE = 1; // CU_MEMHOSTALLOC_PORTABLE
const ALIGNMENT = 256;

export class Staging {
  readonly #context: CudaContext;
  readonly #pool: Pool<Pinned>;
  #current: Pinned | undefined;
  #used = 0;
  /** Full segments, oldest first, each with the fence behind its last copy. */
  readonly #busy: { readonly segment: Pinned; readonly fence: number }[] = [];
  #segments = 0;

  constructor(context: CudaContext) {
    this.#context = context;
    this.#pool = new Pool(({ address }) => void context.driver.calls.cuMemFreeHost(address), POOLED_BYTES);
  }

  /** Enqueues a copy; `data` may change afterwards. @throws MlaError out-of-memory, device-lost */
  upload(to: number, { buffer, byteOffset, byteLength }: ArrayBufferView): void {
    const { driver, stream } = this.#context;
    for (let done = 0; done < byteLength; ) {
      if (this.#current === undefined || this.#used === SEGMENT_BYTES) this.#nextSegment();
      const segment = this.#current!;
      const part = Math.min(byteLength - done, SEGMENT_BYTES - this.#used);
      segment.bytes.set(new Uint8Array(buffer, byteOffset + done, part), this.#used);
      this.#context.check(driver.calls.cuMemcpyHtoDAsync_v2(to + done, segment.address + this.#used, part, stream), 'copying to the device');
      this.#used = Math.min(SEGMENT_BYTES, Math.ceil((this.#used + part) / ALIGNMENT) * ALIGNMENT);
      done += part;
    }
  }

  /** Enqueues the copy at once: what is enqueued later does not overtake it. @throws MlaError out-of-memory, device-lost, destroyed */
  async read(from: number, length: number): Promise<ArrayBuffer> {
    const { driver, stream } = this.#context;
    const pieces: { readonly at: number; readonly bytes: number; readonly staging: Pinned }[] = [];
    try {
      for (let at = 0; at < length; at += MOST_PINNED) {
        const bytes = Math.min(MOST_PINNED, length - at);
        const staging = this.#pool.take(bytes, 'read', (size) => this.#pin(size));
        pieces.push({ at, bytes, staging });
        this.#context.check(driver.calls.cuMemcpyDtoHAsync_v2(staging.address, from + at, bytes, stream), 'copying from the device');
      }
      await this.#context.wait(this.#context.fence());
      const result = new ArrayBuffer(length);
      for (const { at, bytes, staging } of pieces) new Uint8Array(result, at, bytes).set(staging.bytes.subarray(0, bytes));
      return result;
    } finally {
      // After `destroy` these are blocks that the pool no longer knows.
      for (const { staging } of pieces) this.#pool.release(staging);
    }
  }

  destroy(): void {
    this.#busy.length = 0;
    this.#current = undefined;
    this.#pool.destroy();
  }

  #nextSegment(): void {
    if (this.#current) this.#busy.push({ segment: this.#current, fence: this.#context.fence() });
    this.#current = undefined;
    const oldest = this.#busy[0];
    if (oldest && (this.#context.passed(oldest.fence) || this.#segments === MOST_SEGMENTS)) {
      this.#context.check(this.#context.driver.calls.cuEventSynchronize(oldest.fence), 'waiting for copies to the device');
      this.#busy.shift();
      this.#context.retire(oldest.fence);
      this.#current = oldest.segment;
    } else {
      this.#current = this.#pool.take(SEGMENT_BYTES, 'upload', (size) => this.#pin(size));
      this.#segments++;
    }
    this.#used = 0;
  }

  #pin(size: number): Pinned {
    const { driver, out } = this.#context;
    const result = driver.calls.cuMemHostAlloc(out.address, size, PORTABLE);
    if (result === OUT_OF_MEMORY) {
      throw new MlaError('out-of-memory', `no room for a copy of ${size} B: the NVIDIA driver reports ${describeResult(driver, result)}`, { fix: 'Free memory of this machine or read smaller tensors' });
    }
    this.#context.check(result, 'allocating pinned memory');
    const address = out.pointer(0);
    return { address, bytes: new Uint8Array(driver.view(address, size)) };
  }
}
