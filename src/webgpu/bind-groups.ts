/** Bind groups by kernel and buffers, kept so that a loop over the same buffers makes none after its first steps. */
import { PARAM_BYTES, type Kernel } from './kernel.ts';

/** More than the dispatches of a model's step: each layer has weights and a cache of its own. */
const KEPT = 8192;

export class BindGroups {
  readonly #device: GPUDevice;
  readonly #kept: number;
  /** The least lately used first. */
  readonly #groups = new Map<string, GPUBindGroup>();
  readonly #ids = new WeakMap<Kernel | GPUBuffer, number>();
  /** Groups that bind a buffer, by the buffer's id. */
  readonly #users = new Map<number, Set<string>>();
  #nextId = 0;

  constructor(device: GPUDevice, kept: number = KEPT) {
    this.#device = device;
    this.#kept = kept;
  }

  get count(): number {
    return this.#groups.size;
  }

  /** A bind group of whole buffers, in binding order; of parameters, of those at an offset that is not known here. */
  get(kernel: Kernel, buffers: readonly GPUBuffer[], label: string): GPUBindGroup {
    let key = `${this.#id(kernel)}`;
    for (const buffer of buffers) key += `/${this.#id(buffer)}`;
    const known = this.#groups.get(key);
    if (known) {
      this.#groups.delete(key);
      this.#groups.set(key, known);
      return known;
    }
    const group = this.#device.createBindGroup({
      label, layout: kernel.layout, entries: buffers.map((buffer, binding) => ({ binding, resource: { buffer, ...(kernel.hasParams && binding === 0 && { size: PARAM_BYTES }) } })),
    });
    if (this.#groups.size >= this.#kept) this.#drop(this.#groups.keys().next().value!);
    this.#groups.set(key, group);
    for (const buffer of buffers) {
      const id = this.#id(buffer);
      const users = this.#users.get(id);
      if (users) users.add(key);
      else this.#users.set(id, new Set([key]));
    }
    return group;
  }

  /** Lets go of a buffer that will not be bound again: a group would keep it alive. */
  forget(buffer: GPUBuffer): void {
    for (const key of this.#users.get(this.#id(buffer)) ?? []) this.#drop(key);
  }

  #drop(key: string): void {
    this.#groups.delete(key);
    for (const id of key.split('/').slice(1).map(Number)) {
      const users = this.#users.get(id);
      users?.delete(key);
      if (users?.size === 0) this.#users.delete(id);
    }
  }

  #id(object: Kernel | GPUBuffer): number {
    let id = this.#ids.get(object);
    if (id === undefined) this.#ids.set(object, (id = this.#nextId++));
    return id;
  }
}
