/** The same GPU, whose devices are watched: a page can tell that one was lost, and can lose one to show what that is like. */
export interface WatchedGpu {
  readonly gpu: GPU;
  /** The last that was made of it. */
  readonly device: GPUDevice | undefined;
  /** Destroys the last device, as a driver reset does. */
  lose(): void;
}

export function watchGpu(gpu: GPU, onLost: (message: string) => void): WatchedGpu {
  let device: GPUDevice | undefined;
  const requestAdapter: GPU['requestAdapter'] = async (options) => {
    const adapter = await gpu.requestAdapter(options);
    if (adapter === null) return null;
    const requestDevice = adapter.requestDevice.bind(adapter);
    return Object.assign(adapter, {
      async requestDevice(descriptor?: GPUDeviceDescriptor): Promise<GPUDevice> {
        device = await requestDevice(descriptor);
        void device.lost.then(({ message }) => onLost(message));
        return device;
      },
    });
  };
  return {
    gpu: { requestAdapter } as GPU,
    get device() {
      return device;
    },
    lose: () => device?.destroy(),
  };
}
