/** One kernel of the probe: its buffers, its clock, and how much work to give it. */

/** Timestamps of the device, or wall time until its queue is done. */
export type Clock = 'device' | 'wall';

/** Long enough for the clock, in milliseconds: browsers round timestamps to 0.1 ms; submitting takes wall time itself. */
const ENOUGH: Readonly<Record<Clock, number>> = { device: 10, wall: 40 };
/** Runs that count; the shortest is taken. */
const RUNS = 3;
const MOST_GROWTH = 16;
const MOST_STEPS = 12;

/** Grows the work from `least` until a run takes long enough. @returns the last amount, its shortest time and the clock */
export async function longEnough(
  least: number, time: (amount: number) => Promise<number>, clock: () => Clock,
): Promise<{ amount: number; ms: number; clock: Clock }> {
  // The first run compiles and pages in.
  await time(least);
  let amount = least;
  let ms = await time(amount);
  for (let step = 0; ms < ENOUGH[clock()] && step < MOST_STEPS; step++) {
    const wanted = (1.2 * ENOUGH[clock()]) / Math.max(ms, 1e-3);
    amount *= Math.max(2, Math.min(MOST_GROWTH, Math.ceil(wanted)));
    ms = await time(amount);
  }
  for (let run = 1; run < RUNS; run++) ms = Math.min(ms, await time(amount));
  return { amount, ms, clock: clock() };
}

export interface KernelSpec {
  /** Entry point `main`. Bindings in order: the storage buffer where there is one, results, uniform words. */
  readonly code: string;
  /** Workgroups. */
  readonly groups: number;
  /** Words of results. */
  readonly results: number;
}

const UNIFORM_BYTES = 16;

export class ProbeKernel {
  readonly #device: GPUDevice;
  readonly #pipeline: GPUComputePipeline;
  readonly #spec: KernelSpec;
  readonly #buffers: GPUBuffer[] = [];
  readonly #results: GPUBuffer;
  readonly #uniforms: GPUBuffer;
  readonly #times: { readonly queries: GPUQuerySet; readonly resolved: GPUBuffer } | undefined;
  #storage: GPUBuffer | undefined;
  #runs = 0;
  /** The device's clock was seen to stand still. */
  #stopped = false;

  private constructor(device: GPUDevice, pipeline: GPUComputePipeline, spec: KernelSpec) {
    this.#device = device;
    this.#pipeline = pipeline;
    this.#spec = spec;
    this.#results = this.#buffer(4 * spec.results, GPUBufferUsage.STORAGE | GPUBufferUsage.COPY_SRC);
    this.#uniforms = this.#buffer(UNIFORM_BYTES, GPUBufferUsage.UNIFORM | GPUBufferUsage.COPY_DST);
    if (device.features.has('timestamp-query')) {
      this.#times = {
        queries: device.createQuerySet({ type: 'timestamp', count: 2 }),
        resolved: this.#buffer(16, GPUBufferUsage.QUERY_RESOLVE | GPUBufferUsage.COPY_SRC),
      };
    }
  }

  /** @throws GPUPipelineError */
  static async make(device: GPUDevice, spec: KernelSpec): Promise<ProbeKernel> {
    const module = device.createShaderModule({ label: 'probe', code: spec.code });
    return new ProbeKernel(device, await device.createComputePipelineAsync({ label: 'probe', layout: 'auto', compute: { module, entryPoint: 'main' } }), spec);
  }

  clock = (): Clock => (this.#times && !this.#stopped ? 'device' : 'wall');

  /** The buffer to read, filled by `fill`, whose answer is passed on. @throws RangeError out of memory */
  storage<T>(bytes: number, fill: (words: Uint32Array) => T): T {
    this.#storage = this.#buffer(bytes, GPUBufferUsage.STORAGE, true);
    const answer = fill(new Uint32Array(this.#storage.getMappedRange()));
    this.#storage.unmap();
    return answer;
  }

  /** Milliseconds of one dispatch with these uniform words. */
  async time(words: readonly number[]): Promise<number> {
    const { queue } = this.#device;
    queue.writeBuffer(this.#uniforms, 0, Uint32Array.from(words));
    await queue.onSubmittedWorkDone();
    const start = performance.now();
    queue.submit([this.#encode()]);
    await queue.onSubmittedWorkDone();
    const wall = performance.now() - start;
    const onDevice = this.clock() === 'device' ? await this.#elapsed() : 0;
    // The first run's wall time is mostly compilation.
    if (this.#runs++ > 0 && onDevice <= 0 && wall > ENOUGH.wall) this.#stopped = true;
    return this.clock() === 'device' ? onDevice : wall;
  }

  /** What the last dispatch wrote. */
  results(): Promise<ArrayBuffer> {
    return this.#read(this.#results);
  }

  destroy(): void {
    for (const buffer of this.#buffers) buffer.destroy();
    this.#times?.queries.destroy();
  }

  #encode(): GPUCommandBuffer {
    const buffers = [...(this.#storage ? [this.#storage] : []), this.#results, this.#uniforms];
    const encoder = this.#device.createCommandEncoder({ label: 'probe' });
    const pass = encoder.beginComputePass({
      ...(this.#times && { timestampWrites: { querySet: this.#times.queries, beginningOfPassWriteIndex: 0, endOfPassWriteIndex: 1 } }),
    });
    pass.setPipeline(this.#pipeline);
    pass.setBindGroup(0, this.#device.createBindGroup({
      layout: this.#pipeline.getBindGroupLayout(0), entries: buffers.map((buffer, binding) => ({ binding, resource: { buffer } })),
    }));
    pass.dispatchWorkgroups(this.#spec.groups);
    pass.end();
    if (this.#times) encoder.resolveQuerySet(this.#times.queries, 0, 2, this.#times.resolved, 0);
    return encoder.finish();
  }

  async #elapsed(): Promise<number> {
    const [begin, end] = new BigUint64Array(await this.#read(this.#times!.resolved));
    return Number(end! - begin!) / 1e6;
  }

  async #read(source: GPUBuffer): Promise<ArrayBuffer> {
    const staging = this.#device.createBuffer({ size: source.size, usage: GPUBufferUsage.MAP_READ | GPUBufferUsage.COPY_DST });
    try {
      const encoder = this.#device.createCommandEncoder();
      encoder.copyBufferToBuffer(source, 0, staging, 0, source.size);
      this.#device.queue.submit([encoder.finish()]);
      await staging.mapAsync(GPUMapMode.READ);
      return staging.getMappedRange().slice(0);
    } finally {
      staging.destroy();
    }
  }

  #buffer(size: number, usage: number, mappedAtCreation = false): GPUBuffer {
    const buffer = this.#device.createBuffer({ label: 'probe', size, usage, mappedAtCreation });
    this.#buffers.push(buffer);
    return buffer;
  }
}
