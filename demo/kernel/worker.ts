/**
 * The thread that owns the GPU: serves the package's backend to the page.
 *
 * Besides that it tells the page when the device goes away, loses it on request, so that a visitor can see what that
 * is like, and finds out what the device can do at best.
 */
import { createBackend } from '../../src/index.ts';
import { serve } from '../../src/worker/index.ts';
import { LOSE_DEVICE, isProbeRequest, type DeviceLostNotice, type ProbeAnswer, type ProbeRequest } from './notices.ts';
import { probe } from './probe.ts';

let device: GPUDevice | undefined;

serve((options) => {
  const gpu = navigator.gpu as GPU | undefined;
  return createBackend(gpu ? { ...options, gpu: watched(gpu) } : options);
});

self.addEventListener('message', ({ data }: MessageEvent) => {
  if (data === LOSE_DEVICE) device?.destroy();
  if (isProbeRequest(data)) void answerProbe(data);
});

async function answerProbe({ port, ...options }: ProbeRequest): Promise<void> {
  let answer: ProbeAnswer;
  try {
    if (!device) throw new Error('there is no device to probe');
    const lost = device.lost.then(({ message }) => Promise.reject(new Error(message)));
    answer = { ceilings: await Promise.race([probe(device, options), lost]) };
  } catch (error) {
    answer = { fault: (error as Error).message };
  }
  port.postMessage(answer);
  port.close();
}

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
