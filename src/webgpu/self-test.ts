/** Runs a small kernel once, to see whether the device does what its features promise. */
import { MlaError, firstLine } from '../errors.ts';
import type { GpuContext } from './device.ts';

/**
 * Compiles `code` (entry point `main`; binding 0 is `result`), runs one workgroup and resolves to the `words` it wrote, or to
 * why the device refused.
 * @throws MlaError device-lost, out-of-memory
 */
export async function runSelfTest(gpu: GpuContext, label: string, code: string, words: number): Promise<Uint32Array | string> {
  const { device } = gpu;
  const bytes = words * 4;
  const buffers: GPUBuffer[] = [];
  const buffer = (usage: number): GPUBuffer => {
    const made = device.createBuffer({ label, size: bytes, usage });
    buffers.push(made);
    return made;
  };
  try {
    const { value: mapped, fault } = gpu.watch(label, () => {
      const result = buffer(0x80 | 0x04 /* STORAGE | COPY_SRC */);
      const staging = buffer(0x01 | 0x08 /* MAP_READ | COPY_DST */);
      const pipeline = device.createComputePipeline({ label, layout: 'auto', compute: { module: device.createShaderModule({ label, code }), entryPoint: 'main' } });
      const group = device.createBindGroup({ label, layout: pipeline.getBindGroupLayout(0), entries: [{ binding: 0, resource: { buffer: result } }] });
      const encoder = device.createCommandEncoder({ label });
      const pass = encoder.beginComputePass({ label });
      pass.setPipeline(pipeline);
      pass.setBindGroup(0, group);
      pass.dispatchWorkgroups(1);
      pass.end();
      encoder.copyBufferToBuffer(result, 0, staging, 0, bytes);
      device.queue.submit([encoder.finish()]);
      return staging.mapAsync(1 /* READ */).then(() => new Uint32Array(staging.getMappedRange().slice(0)));
    });
    mapped.catch(() => undefined);
    const refused = await fault;
    // A lost device has no word of its own on the kernel.
    gpu.check();
    if (refused) throw refused;
    return await gpu.settle(mapped);
  } catch (error) {
    if (error instanceof MlaError && error.code === 'internal') return firstLine(error.message);
    throw error;
  } finally {
    for (const made of buffers) made.destroy();
  }
}

/** The first place where two arrays differ, in words; undefined when they are the same. */
export function firstDifference(got: ArrayLike<number>, expected: ArrayLike<number>): string | undefined {
  for (let i = 0; i < expected.length; i++) if (got[i] !== expected[i]) return `${got[i]} where ${expected[i]} is right (number ${i})`;
  return undefined;
}
