/**
 * The thread that owns the GPU: serves the package's backend to the page.
 *
 * Besides that it tells the page when the device goes away, and loses it on request, so that a visitor can see
 * what that is like.
 */
import { createBackend } from '../../src/index.ts';
import { serve } from '../../src/worker/index.ts';
import { LOSE_DEVICE, type DeviceLostNotice } from './notices.ts';

let device: GPUDevice | undefined;

serve((options) => {
  const gpu = navigator.gpu as GPU | undefined;
  return createBackend(gpu ? { ...options, gpu: watched(gpu) } : options);
});

self.addEventListener('message', ({ data }: MessageEvent) => {
  if (data === LOSE_DEVICE) device?.destroy();
});

/** The same GPU, whose devices are remembered here. */
function watched(gpu: GPU): GPU {
  const requestAdapter: GPU['requestAdapter'] = async (options) => {
    const adapter = await gpu.requestAdapter(options);
    if (adapter === null) return null;
    const requestDevice = adapter.requestDevice.bind(adapter);
    return Object.assign(adapter, {
      async requestDevice(descriptor?: GPUDeviceDescriptor): Promise<GPUDevice> {
        device = await requestDevice(descriptor);
        void device.lost.then(({ message }) => self.postMessage({ notice: 'device-lost', message } satisfies DeviceLostNotice));
        return device;
      },
    });
  };
  return { requestAdapter } as GPU;
}
