/** A device on which some buffers fail for want of memory, as real ones do: an invalid buffer, and GPUOutOfMemoryError in the error scope around its making. */
import { altered } from './altered.ts';

export interface Scarcity {
  /** Which are refused, by their labels. */
  label: string | undefined;
  /** How many were. */
  refused: number;
}

// Named as WebGPU names it: by that it is known.
class GPUOutOfMemoryError {
  readonly message = 'no memory, says the test';
}

export function scarce(real: GPUDevice, scarcity: Scarcity): GPUDevice {
  return altered(real, {
    createBuffer: (descriptor: GPUBufferDescriptor) => {
      if (descriptor.label !== scarcity.label) return real.createBuffer(descriptor);
      scarcity.refused++;
      // No buffer may be mapped and bound.
      return real.createBuffer({ ...descriptor, usage: 0x1 | 0x2 | 0x80 });
    },
    popErrorScope: async () => {
      const error = await real.popErrorScope();
      return error && /MapRead/.test(error.message) && !/Invalid Buffer/.test(error.message) ? new GPUOutOfMemoryError() : error;
    },
  });
}

export function scarceAdapter(adapter: GPUAdapter, scarcity: Scarcity): GPUAdapter {
  return altered(adapter, { requestDevice: async (descriptor?: GPUDeviceDescriptor) => scarce(await adapter.requestDevice(descriptor), scarcity) });
}
