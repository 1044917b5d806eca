// A worker whose device goes away when it is told so.
import { createBackend } from '/dist/index.js';
import { serve } from '/dist/worker.js';

const channel = new BroadcastChannel('lose');

serve(async (options) => {
  const adapter = await navigator.gpu.requestAdapter();
  const device = await adapter.requestDevice();
  channel.onmessage = () => device.destroy();
  return createBackend({ ...options, device });
});
