/** Copies device buffers to the host without stopping the queue. */
import { MlaError } from '../errors.ts';
import type { GpuContext } from './device.ts';
import type { DeviceMemory } from './memory.ts';
import { faultOf, type Storage } from './storage.ts';

/** The elements as stored. Segments are laid end to end. @throws MlaError out-of-memory, device-lost */
export async function readStorage(gpu: GpuContext, memory: DeviceMemory, storage: Storage): Promise<ArrayBuffer> {
  const { device } = gpu;
  const result = roomFor(storage.byteLength);
  const copies = storage.buffers.map((buffer, i) => {
    const at = i * storage.blocksPerSegment * storage.rowBytes;
    const bytes = Math.min(storage.byteLength - at, storage.blocksPerSegment * storage.rowBytes);
    const copied = Math.ceil(bytes / 4) * 4;
    const staging = memory.staging(copied);
    // At the call, not after a wait: what is enqueued later must not overtake it.
    const { value: mapped, fault } = gpu.watch('reading back', () => {
      const encoder = device.createCommandEncoder({ label: 'readback' });
      encoder.copyBufferToBuffer(buffer, 0, staging.buffer, 0, copied);
      device.queue.submit([encoder.finish()]);
      return staging.buffer.mapAsync(1 /* READ */, 0, copied);
    });
    mapped.catch(() => undefined);
    return { at, bytes, copied, staging, mapped, fault };
  });
  try {
    const refused = await faultOf(storage);
    if (refused) throw refused;
    for (const { at, bytes, copied, staging, mapped, fault } of copies) {
      const failed = (await staging.fault) ?? (await fault);
      if (failed) throw failed;
      await gpu.settle(mapped);
      // Another turn may have destroyed what is mapped.
      gpu.check();
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

function roomFor(bytes: number): Uint8Array<ArrayBuffer> {
  try {
    return new Uint8Array(bytes);
  } catch (cause) {
    throw new MlaError('out-of-memory', 'this process has no room for what is read', { argument: 'tensor', expected: 'fewer bytes', got: `${bytes} B`, cause });
  }
}
