/** What a tensor is on the device: one buffer, or one a segment for a cache larger than a binding. */
import { elementBytes, elementCount, isIndex, type TensorSpec } from '../backend.ts';
import { MlaError, shapeText } from '../errors.ts';
import { ONE_SEGMENT, bindingBytes, segmentPool, type KernelLimits, type Segmentation } from './config.ts';
import { roomToGrow } from '../pool.ts';
import type { Allocation, DeviceMemory } from './memory.ts';

export interface Storage extends Segmentation {
  readonly spec: TensorSpec;
  readonly byteLength: number;
  /** Bytes of one row of dimension 0 (a block, for a cache). */
  readonly rowBytes: number;
  readonly buffers: readonly GPUBuffer[];
  /** Ours to release; none for an adopted buffer. */
  readonly allocations: readonly Allocation[];
  /** i32 tensors: the contents, for plans made on the host. */
  readonly host: Int32Array | undefined;
}

/** @throws MlaError limit-exceeded, device-lost */
export function allocate(spec: TensorSpec, memory: DeviceMemory, limits: KernelLimits, host?: Int32Array): Storage {
  const byteLength = elementCount(spec.shape) * elementBytes(spec.dtype);
  const rows = spec.shape[0] ?? 1;
  const rowBytes = byteLength / rows;
  const label = `${spec.dtype} ${shapeText(spec.shape)}`;
  const most = bindingBytes(limits);
  // Only a cache may lie in several bindings. A tensor may become one.
  const mayBeCache = spec.shape.length === 4 && elementBytes(spec.dtype) === 2 && spec.argument !== 'q' && spec.argument !== 'out';
  if (byteLength > most && !mayBeCache) {
    throw new MlaError('limit-exceeded', `${label} is larger than one binding of this device`, { argument: spec.argument, expected: `at most ${most} B`, got: `${byteLength} B` });
  }
  const { segments, blocksPerSegment }: Segmentation =
    byteLength > most ? segmentPool(rows, rowBytes, limits, spec.argument) : { segments: 1, blocksPerSegment: ONE_SEGMENT };
  const allocations: Allocation[] = [];
  try {
    for (let i = 0; i < segments; i++) {
      const held = segments === 1 ? rows : Math.min(blocksPerSegment, rows - i * blocksPerSegment);
      // Tables and lengths come anew each step, a little longer at times.
      const bytes = isIndex(spec) ? roomToGrow(held * rowBytes) : held * rowBytes;
      allocations.push(memory.storage(bytes, segments === 1 ? label : `${label} part ${i}`));
    }
  } catch (error) {
    for (const allocation of allocations) memory.release(allocation);
    throw error;
  }
  return { spec, byteLength, rowBytes, segments, blocksPerSegment, buffers: allocations.map((a) => a.buffer), allocations, host };
}

/** The buffer of a tensor that must lie in one. @throws MlaError limit-exceeded */
export function wholeBuffer({ buffers, byteLength, rowBytes, blocksPerSegment }: Storage, argument: string): GPUBuffer {
  if (buffers.length > 1) {
    throw new MlaError('limit-exceeded', 'larger than one binding of this device', { argument, expected: `at most ${blocksPerSegment * rowBytes} B`, got: `${byteLength} B`, fix: 'Use smaller batches' });
  }
  return buffers[0]!;
}

/** @throws MlaError invalid-argument when the buffer is too small or lacks a usage, limit-exceeded when it is too large to bind */
export function adopted(spec: TensorSpec, buffer: GPUBuffer, limits: KernelLimits): Storage {
  const byteLength = elementCount(spec.shape) * elementBytes(spec.dtype);
  const needed = 0x80 | 0x04; // STORAGE | COPY_SRC
  if (typeof buffer?.size !== 'number' || buffer.size < byteLength || (buffer.usage & needed) !== needed) {
    throw new MlaError('invalid-argument', 'GPUBuffer does not hold the tensor', {
      argument: 'gpuBuffer', expected: `${byteLength} B with usage STORAGE | COPY_SRC`, got: `${buffer?.size} B with usage ${buffer?.usage}`,
    });
  }
  const most = bindingBytes(limits);
  if (buffer.size > most) {
    throw new MlaError('limit-exceeded', 'GPUBuffer is larger than one binding of this device', { argument: 'gpuBuffer', expected: `at most ${most} B`, got: `${buffer.size} B` });
  }
  return {
    spec, byteLength, rowBytes: byteLength / (spec.shape[0] ?? 1), segments: 1, blocksPerSegment: ONE_SEGMENT,
    buffers: [buffer], allocations: [], host: undefined,
  };
}

/** The first thing the device refused of this tensor's allocations, if any. */
export async function faultOf(storage: Storage): Promise<MlaError | undefined> {
  for (const { fault } of storage.allocations) {
    const error = await fault;
    if (error) return error;
  }
  return undefined;
}
