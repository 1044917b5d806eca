/** Puts WGSL together and compiles it. Pipelines are cached by their source. */
import { MlaError } from '../errors.ts';
import type { GpuContext } from './device.ts';

export interface Kernel {
  readonly pipeline: GPUComputePipeline;
  readonly layout: GPUBindGroupLayout;
  /** Its first binding is its parameters, at an offset that is given when it is set. */
  readonly hasParams: boolean;
  /** Set once the device has refused the kernel. */
  fault: MlaError | undefined;
  readonly compiled: Promise<void>;
}

export type Access = 'read' | 'read_write';

/** One storage binding of a kernel: `var<storage, access> name: array<element>`. */
export interface StorageBinding {
  readonly name: string;
  readonly access: Access;
  readonly element: 'u32' | 'f32' | 'vec2<u32>' | 'vec4<u32>' | 'vec2<f32>' | 'vec4<f32>';
}

/** Parameters that change from call to call: `var<uniform> p: Params`, a struct of the kernel's of at most PARAM_BYTES. */
export type Binding = StorageBinding | { readonly access: 'params' };

/** As many as any kernel has. */
export const PARAM_BYTES = 64;

/** `const NAME = value;` for every entry; numbers are u32. */
export function constants(values: Readonly<Record<string, number | boolean>>): string {
  return Object.entries(values)
    .map(([name, value]) => (typeof value === 'boolean' ? `const ${name} = ${value};` : `const ${name} = ${value}u;`))
    .join('\n');
}

type Values = Readonly<Record<string, number | boolean>>;

/**
 * Expands a kernel's directives, each alone on its line and ended by `#end`; they nest.
 *   #unroll x < COUNT   the lines between, COUNT times, with $x replaced by 0, 1, ...; COUNT is a number or a key of `values`
 *   #if NAME, #if !NAME the lines between, or those after `#else`, as `values` says
 * Kernels unroll where arrays must live in registers: not every WGSL compiler does, and one that does not keeps an array that a
 * loop indexes in memory.
 */
export function expand(source: string, values: Values): string {
  const lines = source.split('\n');
  const bad = (line: string): MlaError => new MlaError('internal', `bad ${line.trim()}`);
  /** The lines from `from` up to what ends them, and where that is. */
  const block = (from: number): { text: string[]; end: number } => {
    const text: string[] = [];
    for (let i = from; i < lines.length; i++) {
      const line = lines[i]!;
      const [, directive, rest = ''] = /^\s*#(\w+) ?(.*)$/.exec(line) ?? [];
      if (directive === undefined) {
        text.push(line);
      } else if (directive === 'end' || directive === 'else') {
        return { text, end: i };
      } else {
        const first = block(i + 1);
        const otherwise = /^\s*#else$/.test(lines[first.end] ?? '') ? block(first.end + 1) : undefined;
        i = (otherwise ?? first).end;
        if (i >= lines.length) throw bad(line);
        text.push(...directed(directive, rest, first.text, otherwise?.text, bad(line)));
      }
    }
    return { text, end: lines.length };
  };
  const directed = (directive: string, rest: string, first: string[], otherwise: string[] | undefined, fault: MlaError): string[] => {
    const [, not, name] = /^(!?)(\w+)$/.exec(rest) ?? [];
    if (directive === 'if' && typeof values[name!] === 'boolean') return values[name!] === (not === '') ? first : otherwise ?? [];
    const [, variable, bound] = /^(\w+) < (\w+)$/.exec(rest) ?? [];
    const count = Number(values[bound!] ?? bound);
    if (directive !== 'unroll' || otherwise || !Number.isInteger(count)) throw fault;
    const pattern = new RegExp(`\\$${variable}(?![a-tv-zA-Z0-9])`, 'g');
    return Array.from({ length: count }, (_, k) => first.map((line) => line.replaceAll(pattern, String(k)))).flat();
  };
  const { text, end } = block(0);
  if (end < lines.length) throw bad(lines[end]!);
  return text.join('\n');
}

/** A cache's bindings, one a segment: read 8 numbers at a time, written 2. */
export function kvBindings(segments: number, access: Access): StorageBinding[] {
  return Array.from({ length: segments }, (_, i) => ({ name: `kv${i}`, access, element: access === 'read' ? 'vec4<u32>' : 'u32' }));
}

/** `load_kv(segment, index)` over those bindings. The segment is the same for a whole workgroup. */
export function loadKv(segments: number): string {
  const cases = Array.from({ length: segments - 1 }, (_, i) => `  if (segment == ${i}u) { return kv${i}[index]; }\n`).join('');
  return `fn load_kv(segment: u32, index: u32) -> vec4<u32> {\n${cases}  return kv${segments - 1}[index];\n}`;
}

/** `store_kv(segment, index, value)` over those bindings. */
export function storeKv(segments: number): string {
  const cases = Array.from({ length: segments }, (_, i) => `  if (segment == ${i}u) { kv${i}[index] = value; }\n`).join('');
  return `fn store_kv(segment: u32, index: u32, value: u32) {\n${cases}}`;
}

/** The whole text of a kernel. */
export function kernelText(bindings: readonly Binding[], source: string, directives: readonly string[]): string {
  const header = bindings.map((b, i) => `@group(0) @binding(${i}) ${b.access === 'params' ? 'var<uniform> p: Params' : `var<storage, ${b.access}> ${b.name}: array<${b.element}>`};`).join('\n');
  return [...directives, header, '', source].join('\n');
}

/** Where launchers get their kernels: at once, or compiled in the background. */
export interface Kernels<Result> {
  /** The kernel named `key`, compiled from `source` with `bindings` at @group(0) on first use; `directives` are WGSL's, which come before all else. */
  get(key: string, bindings: () => readonly Binding[], source: () => string, directives?: readonly string[]): Result;
}

const BUFFERS: Readonly<Record<Binding['access'], GPUBufferBindingLayout>> = {
  read: { type: 'read-only-storage' }, read_write: { type: 'storage' }, params: { type: 'uniform', hasDynamicOffset: true, minBindingSize: PARAM_BYTES },
};

export class KernelCache implements Kernels<Kernel> {
  readonly #gpu: GpuContext;
  readonly #kernels = new Map<string, Kernel>();
  /** The same kernels, compiled while the device works on. A refusal rejects, and is nobody else's concern. @throws MlaError internal */
  readonly background: Kernels<Promise<Kernel>> = { get: (...kernel) => this.#getInBackground(...kernel) };

  constructor(gpu: GpuContext) {
    this.#gpu = gpu;
  }

  get count(): number {
    return this.#kernels.size;
  }

  get(key: string, bindings: () => readonly Binding[], source: () => string, directives: readonly string[] = []): Kernel {
    const known = this.#kernels.get(key);
    if (known) {
      if (known.fault) throw known.fault;
      return known;
    }
    const { value, fault } = this.#gpu.watch(`compiling ${key}`, () => {
      const { descriptor, ...rest } = this.#describe(key, bindings(), source(), directives);
      return { ...rest, pipeline: this.#gpu.device.createComputePipeline(descriptor) };
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

  async #getInBackground(key: string, bindings: () => readonly Binding[], source: () => string, directives: readonly string[] = []): Promise<Kernel> {
    const known = this.#kernels.get(key);
    if (known) {
      await known.compiled;
      if (known.fault) throw known.fault;
      return known;
    }
    const { value, fault } = this.#gpu.watch(`compiling ${key}`, () => {
      const { descriptor, ...rest } = this.#describe(key, bindings(), source(), directives);
      const pipeline = this.#gpu.device.createComputePipelineAsync(descriptor);
      pipeline.catch(() => undefined);
      return { ...rest, pipeline };
    });
    const error = await fault;
    if (error) throw error;
    const pipeline = await value.pipeline.catch((cause: Error) => {
      throw new MlaError('internal', `compiling ${key}: ${cause.message}`, { cause });
    });
    // Unless a call has come meanwhile that could not wait.
    const kernel = this.#kernels.get(key) ?? { ...value, pipeline, fault: undefined, compiled: Promise.resolve() };
    this.#kernels.set(key, kernel);
    return kernel;
  }

  #describe(key: string, list: readonly Binding[], source: string, directives: readonly string[]): Pick<Kernel, 'layout' | 'hasParams'> & { descriptor: GPUComputePipelineDescriptor } {
    const { device } = this.#gpu;
    const layout = device.createBindGroupLayout({
      label: key,
      entries: list.map(({ access }, binding) => ({
        binding, visibility: 0x4 /* COMPUTE */, buffer: BUFFERS[access],
      })),
    });
    const module = device.createShaderModule({ label: key, code: kernelText(list, source, directives) });
    return {
      layout, hasParams: list[0]?.access === 'params',
      descriptor: { label: key, layout: device.createPipelineLayout({ label: key, bindGroupLayouts: [layout] }), compute: { module, entryPoint: 'main' } },
    };
  }
}
