/** A GPUDevice that is not there: it says what it is told to say, and self-tests write what `run` returns. It computes nothing. */
import { GpuContext } from '../src/webgpu/device.ts';

export interface FakeGpu {
  readonly features?: readonly string[];
  readonly subgroups?: readonly [min: number, max: number];
  readonly matrixConfigs?: readonly object[];
  /** What a kernel writes; a string is a compiler's complaint, `lost` the end of the device. */
  readonly run?: (code: string) => Uint32Array | string;
  readonly lost?: boolean;
  /** Buffers cannot be mapped, though the device lives. */
  readonly unmappable?: boolean;
}

/** Buffers that are alive. */
export class FakeBuffers {
  alive = 0;
}

export function fakeGpu({ features = [], subgroups, matrixConfigs, run = () => 'nothing runs here', lost = false, unmappable = false }: FakeGpu, buffers = new FakeBuffers()): GpuContext {
  let code = '';
  let complaint: string | undefined;
  const device = {
    features: new Set(features),
    limits: { maxComputeInvocationsPerWorkgroup: 256 },
    lost: lost ? Promise.resolve({ reason: 'unknown', message: 'gone' }) : new Promise(() => undefined),
    queue: { submit: () => undefined },
    pushErrorScope: () => undefined,
    popErrorScope: async () => {
      if (lost) throw new Error('the device is lost');
      const message = complaint;
      complaint = undefined;
      return message === undefined ? null : { message };
    },
    createShaderModule: (descriptor: { code: string }) => {
      ({ code } = descriptor);
      return {};
    },
    createComputePipeline: () => ({ getBindGroupLayout: () => ({}) }),
    createBindGroup: () => ({}),
    createCommandEncoder: () => ({
      beginComputePass: () => ({ setPipeline: () => undefined, setBindGroup: () => undefined, dispatchWorkgroups: () => undefined, end: () => undefined }),
      copyBufferToBuffer: () => undefined,
      finish: () => ({}),
    }),
    createBuffer: () => {
      buffers.alive++;
      let words = new Uint32Array();
      return {
        mapAsync: async () => {
          if (lost) throw new Error('the device is lost');
          if (unmappable) throw new Error('no mapping');
          const result = run(code);
          if (typeof result === 'string') complaint = result;
          else words = result as Uint32Array<ArrayBuffer>;
        },
        getMappedRange: () => words.buffer,
        destroy: () => buffers.alive--,
      };
    },
  };
  const info = { ...(subgroups && { subgroupMinSize: subgroups[0], subgroupMaxSize: subgroups[1] }), ...(matrixConfigs && { subgroupMatrixConfigs: matrixConfigs }) };
  return new GpuContext(device as unknown as GPUDevice, false, info as unknown as GPUAdapterInfo);
}
