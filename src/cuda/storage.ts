/** What a tensor is on the device: one allocation. */
import { elementBytes, elementCount, type HostData, type TensorSpec } from '../backend.ts';
import { shapeText } from '../errors.ts';
import type { CudaContext } from './context.ts';
import type { Allocation, DeviceMemory } from './memory.ts';

export interface Storage {
  readonly spec: TensorSpec;
  readonly byteLength: number;
  readonly allocation: Allocation;
  /** i32 tensors: the contents, for plans made on the host. */
  readonly host: Int32Array | undefined;
}

/** @throws MlaError limit-exceeded, out-of-memory, device-lost */
export function allocate(spec: TensorSpec, memory: DeviceMemory, context: CudaContext, data: HostData | undefined): Storage {
  const byteLength = elementCount(spec.shape) * elementBytes(spec.dtype);
  const rows = spec.shape[0] ?? 1;
  const isCache = spec.argument === 'numBlocks' || spec.argument === 'kvCache';
  const blockBytes = byteLength / rows;
  const allocation = memory.take(byteLength, `${spec.dtype} ${shapeText(spec.shape)}`, isCache
    ? { argument: spec.argument, expected: `at most ${Math.floor(context.device.memoryBytes / blockBytes)} blocks of ${blockBytes} B`, got: String(rows) }
    : { argument: spec.argument });
  return { spec, byteLength, allocation, host: spec.dtype === 'i32' && data ? (data as Int32Array).slice() : undefined };
}
