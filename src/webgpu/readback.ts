/** Copies device buffers to the host without stopping the queue. */
import type { GpuContext } from './device.ts';
import type { DeviceMemory } from './memory.ts';
import { faultOf, type Storage } from './storage.ts';

/** The elements as stored. Segments are laid end to end. @throws MlaError out-of-memory, device-lost */
export async function readStorage(gpu: GpuContext, memory: DeviceMemory, storage: Storage): Promise<ArrayBuffer> {
  const { device } = gpu;
  const fault = await faultOf(storage);
  if (fault) throw fault;
  const result = new Uint8Array(storage.byteLength);
  const copies = storage.buffers.map((buffer, i) => {
    const at = i * storage.blocksPerSegment * storage.rowBytes;
    const bytes = Math.min(storage.byteLength - at, storage.blocksPerSegment * storage.rowBytes);
    const copied = Math.ceil(bytes / 4) * 4;
    const staging = memory.staging(copied);
    const encoder = device.createCommandEncoder({ label: 'readback' });
    encoder.copyBufferToBuffer(buffer, 0, staging.buffer, 0, copied);
    device.queue.submit([encoder.finish()]);
    const mapped = staging.buffer.mapAsync(1 /* READ */, 0, copied);
    mapped.catch(() => undefined);
    return { at, bytes, copied, staging, mapped };
  });
  try {
    for (const { at, bytes, copied, staging, mapped } of copies) {
      const refused = await staging.fault;
      if (refused) throw refused;
      await gpu.settle(mapped);
      result.set(new Uint8Array(staging.buffer.getMappedRange(0, copied), 0, bytes), at);
      staging.buffer.unmap();
    }
  } catch (error) {
    for (const { staging } of copies) memory.discard(staging);
    throw error;
  }
  for (const { staging } of copies) memory.release(staging);
  return result.buffer;
}
