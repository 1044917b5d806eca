/** The kernels' own conversions, shaders/bf16.wgsl, run on this page's GPU. */
import bf16Source from '../../shaders/bf16.wgsl?raw';

export interface GpuNumbers {
  /** f32 bits of the two halves of a word. */
  readonly low: number;
  readonly high: number;
  /** Both packed again. */
  readonly word: number;
}

const MAIN = `
@group(0) @binding(0) var<storage, read_write> words: array<u32>;

@compute @workgroup_size(1)
fn main() {
  let low = unpack_low(words[0]);
  let high = unpack_high(words[0]);
  words[1] = bitcast<u32>(low);
  words[2] = bitcast<u32>(high);
  words[3] = pack(low, high);
}`;
const BYTES = 16;

/** The text of a function of shaders/bf16.wgsl. */
export function shaderFunction(name: string): string {
  return new RegExp(`^fn ${name}\\b[^]*?^}`, 'm').exec(bf16Source)![0];
}

export class GpuBits {
  readonly #device: GPUDevice;
  readonly #pipeline: GPUComputePipeline;

  private constructor(device: GPUDevice, pipeline: GPUComputePipeline) {
    this.#device = device;
    this.#pipeline = pipeline;
  }

  /** undefined where there is no GPU. */
  static async open(): Promise<GpuBits | undefined> {
    const adapter = await (navigator.gpu as GPU | undefined)?.requestAdapter();
    if (!adapter) return undefined;
    const device = await adapter.requestDevice();
    const module = device.createShaderModule({ code: `const IS_BF16 = true;\n${bf16Source}${MAIN}` });
    return new GpuBits(device, await device.createComputePipelineAsync({ layout: 'auto', compute: { module, entryPoint: 'main' } }));
  }

  async unpack(word: number): Promise<GpuNumbers> {
    const { COPY_DST, COPY_SRC, MAP_READ, STORAGE } = GPUBufferUsage;
    const words = this.#device.createBuffer({ size: BYTES, usage: STORAGE | COPY_DST | COPY_SRC });
    const readable = this.#device.createBuffer({ size: BYTES, usage: MAP_READ | COPY_DST });
    try {
      this.#device.queue.writeBuffer(words, 0, Uint32Array.of(word));
      const encoder = this.#device.createCommandEncoder();
      const pass = encoder.beginComputePass();
      pass.setPipeline(this.#pipeline);
      pass.setBindGroup(0, this.#device.createBindGroup({ layout: this.#pipeline.getBindGroupLayout(0), entries: [{ binding: 0, resource: { buffer: words } }] }));
      pass.dispatchWorkgroups(1);
      pass.end();
      encoder.copyBufferToBuffer(words, 0, readable, 0, BYTES);
      this.#device.queue.submit([encoder.finish()]);
      await readable.mapAsync(GPUMapMode.READ);
      const [, low, high, again] = new Uint32Array(readable.getMappedRange());
      return { low: low!, high: high!, word: again! };
    } finally {
      words.destroy();
      readable.destroy();
    }
  }
}
