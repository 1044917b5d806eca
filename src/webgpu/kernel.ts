/** Puts WGSL together and compiles it. Pipelines are cached by their source. */
import { MlaError } from '../errors.ts';
import type { GpuContext } from './device.ts';

export interface Kernel {
  readonly pipeline: GPUComputePipeline;
  readonly layout: GPUBindGroupLayout;
  /** Set once the device has refused the kernel. */
  fault: MlaError | undefined;
  readonly compiled: Promise<void>;
}

export type Access = 'read' | 'read_write';

/** One storage binding of a kernel: `var<storage, access> name: array<element>`. */
export interface Binding {
  readonly name: string;
  readonly access: Access;
  readonly element: 'u32' | 'vec2<u32>' | 'vec2<f32>' | 'vec4<f32>';
}

/** `const NAME = value;` for every entry; numbers are u32. */
export function constants(values: Readonly<Record<string, number | boolean>>): string {
  return Object.entries(values)
    .map(([name, value]) => (typeof value === 'boolean' ? `const ${name} = ${value};` : `const ${name} = ${value}u;`))
    .join('\n');
}

/**
 * Expands `#unroll x < COUNT` ... `#end` (nested, each alone on its line): the lines between, COUNT times, with $x
 * replaced by 0, 1, ... COUNT is a number or a key of `values`. Kernels use it where arrays must live in registers:
 * not every WGSL compiler unrolls, and one that does not keeps an array that a loop indexes in memory.
 */
export function unroll(source: string, values: Readonly<Record<string, number | boolean>>): string {
  const lines = source.split('\n');
  const expand = (from: number, to: number): string[] => {
    const out: string[] = [];
    for (let i = from; i < to; i++) {
      const open = /^\s*#unroll (\w+) < (\w+)$/.exec(lines[i]!);
      if (!open) {
        out.push(lines[i]!);
        continue;
      }
      let depth = 1;
      let end = i + 1;
      for (; end < to && depth > 0; end++) depth += /^\s*#unroll /.test(lines[end]!) ? 1 : /^\s*#end$/.test(lines[end]!) ? -1 : 0;
      const count = Number(values[open[2]!] ?? open[2]);
      if (depth > 0 || !Number.isInteger(count)) throw new MlaError('internal', `bad ${lines[i]!.trim()}`);
      const body = expand(i + 1, end - 1).join('\n');
      for (let k = 0; k < count; k++) out.push(body.replaceAll(new RegExp(`\\$${open[1]}(?![a-tv-zA-Z0-9])`, 'g'), String(k)));
      i = end - 1;
    }
    return out;
  };
  return expand(0, lines.length).join('\n');
}

/** A cache's bindings, one a segment. */
export function kvBindings(segments: number, access: Access, element: Binding['element']): Binding[] {
  return Array.from({ length: segments }, (_, i) => ({ name: `kv${i}`, access, element }));
}

/** `load_kv(segment, index)` over those bindings. The segment is the same for a whole workgroup. */
export function loadKv(segments: number): string {
  const cases = Array.from({ length: segments - 1 }, (_, i) => `  if (segment == ${i}u) { return kv${i}[index]; }\n`).join('');
  return `fn load_kv(segment: u32, index: u32) -> u32 {\n${cases}  return kv${segments - 1}[index];\n}`;
}

/** `store_kv(segment, index, value)` over those bindings. */
export function storeKv(segments: number): string {
  const cases = Array.from({ length: segments }, (_, i) => `  if (segment == ${i}u) { kv${i}[index] = value; }\n`).join('');
  return `fn store_kv(segment: u32, index: u32, value: u32) {\n${cases}}`;
}

/** Where launchers get their kernels: at once, or compiled in the background. */
export interface Kernels<Result> {
  /** The kernel named `key`, compiled from `source` with `bindings` at @group(0) on first use. */
  get(key: string, bindings: () => readonly Binding[], source: () => string): Result;
}

export class KernelCache implements Kernels<Kernel> {
  readonly #gpu: GpuContext;
  readonly #kernels = new Map<string, Kernel>();
  /** The same kernels, compiled while the device works on. A refusal rejects, and is nobody else's concern. @throws MlaError internal */
  readonly background: Kernels<Promise<Kernel>> = { get: (key, bindings, source) => this.#getInBackground(key, bindings, source) };

  constructor(gpu: GpuContext) {
    this.#gpu = gpu;
  }

  get count(): number {
    return this.#kernels.size;
  }

  get(key: string, bindings: () => readonly Binding[], source: () => string): Kernel {
    const known = this.#kernels.get(key);
    if (known) {
      if (known.fault) throw known.fault;
      return known;
    }
    const { value, fault } = this.#gpu.watch(`compiling ${key}`, () => {
      const { layout, descriptor } = this.#describe(key, bindings(), source());
      return { layout, pipeline: this.#gpu.device.createComputePipeline(descriptor) };
    });
    const kernel: Kernel = {
      ...value, fault: undefined,
      compiled: fault.then((error) => {
        kernel.fault = error;
        if (error) this.#gpu.note(error);
      }),
    };
    this.#kernels.set(key, kernel);
    return kernel;
  }

  async #getInBackground(key: string, bindings: () => readonly Binding[], source: () => string): Promise<Kernel> {
    const known = this.#kernels.get(key);
    if (known) {
      await known.compiled;
      if (known.fault) throw known.fault;
      return known;
    }
    const { value, fault } = this.#gpu.watch(`compiling ${key}`, () => {
      const { layout, descriptor } = this.#describe(key, bindings(), source());
      const pipeline = this.#gpu.device.createComputePipelineAsync(descriptor);
      pipeline.catch(() => undefined);
      return { layout, pipeline };
    });
    const error = await fault;
    if (error) throw error;
    const pipeline = await value.pipeline.catch((cause: Error) => {
      throw new MlaError('internal', `compiling ${key}: ${cause.message}`, { cause });
    });
    // Unless a call has come meanwhile that could not wait.
    const kernel = this.#kernels.get(key) ?? { pipeline, layout: value.layout, fault: undefined, compiled: Promise.resolve() };
    this.#kernels.set(key, kernel);
    return kernel;
  }

  #describe(key: string, list: readonly Binding[], source: string): { layout: GPUBindGroupLayout; descriptor: GPUComputePipelineDescriptor } {
    const { device } = this.#gpu;
    const header = list.map(({ name, access, element }, i) => `@group(0) @binding(${i}) var<storage, ${access}> ${name}: array<${element}>;`).join('\n');
    const layout = device.createBindGroupLayout({
      label: key,
      entries: list.map(({ access }, binding) => ({
        binding, visibility: 0x4 /* COMPUTE */, buffer: { type: access === 'read' ? 'read-only-storage' as const : 'storage' as const },
      })),
    });
    const module = device.createShaderModule({ label: key, code: `${header}\n\n${source}` });
    return {
      layout,
      descriptor: { label: key, layout: device.createPipelineLayout({ label: key, bindGroupLayouts: [layout] }), compute: { module, entryPoint: 'main' } },
    };
  }
}
