/**
 * The thread that owns the GPU: serves the package's backend to the page.
 *
 * Besides that it tells the page when the device goes away, loses it on request, so that a visitor can see what that
 * is like, and finds out what the device can do at best.
 */
import { createBackend } from '../../src/index.ts';
import { serve } from '../../src/worker/index.ts';
import { watchGpu } from '../site/watched-gpu.ts';
import { LOSE_DEVICE, isProbeRequest, type DeviceLostNotice, type ProbeAnswer, type ProbeRequest } from './notices.ts';
import { probe } from './probe.ts';

const gpu = navigator.gpu as GPU | undefined;
const watched = gpu && watchGpu(gpu, (message) => self.postMessage({ notice: 'device-lost', message } satisfies DeviceLostNotice));

serve((options) => createBackend(watched ? { ...options, gpu: watched.gpu } : options));

self.addEventListener('message', ({ data }: MessageEvent) => {
  if (data === LOSE_DEVICE) watched?.lose();
  if (isProbeRequest(data)) void answerProbe(data);
});

async function answerProbe({ port, ...options }: ProbeRequest): Promise<void> {
  let answer: ProbeAnswer;
  try {
    const device = watched?.device;
    if (!device) throw new Error('there is no device to probe');
    const lost = device.lost.then(({ message }) => Promise.reject(new Error(message)));
    answer = { ceilings: await Promise.race([probe(device, options), lost]) };
  } catch (error) {
    answer = { fault: (error as Error).message };
  }
  port.postMessage(answer);
  port.close();
}
