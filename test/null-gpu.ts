/** Kernels' texts, and Dawn's null backend: it compiles shaders, also for features that no machine here has, and runs nothing. */
import { create } from 'webgpu';
import { kernelText, type Kernels } from '../src/webgpu/kernel.ts';

/** For launchers: their kernels' whole texts. */
export const texts: Kernels<string> = { get: (_key, bindings, source, directives = []) => kernelText(bindings(), source(), directives) };

// Dawn's instance must outlive every adapter and device made from it.
let gpu: GPU | undefined;

/** What the compiler says against `code` on a device with every feature that kernels use; undefined when nothing. */
export async function compileError(code: string): Promise<string | undefined> {
  gpu ??= create(['backend=null', 'enable-dawn-features=allow_unsafe_apis']);
  device ??= await (await gpu.requestAdapter())!.requestDevice({
    requiredFeatures: ['subgroups', 'shader-f16', 'chromium-experimental-subgroup-matrix' as GPUFeatureName],
  });
  device.pushErrorScope('validation');
  device.createShaderModule({ code });
  return (await device.popErrorScope())?.message;
}

let device: GPUDevice | undefined;
