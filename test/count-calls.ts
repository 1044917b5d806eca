/** Counts what Dawn is asked for: every method of the devices, queues, buffers and passes of this process. */

type Counts = ReadonlyMap<string, number>;

export interface CallCounter {
  /** Calls since the start or the last reset, as `GPUDevice.createBuffer`. */
  readonly counts: Counts;
  reset(): void;
  /** Takes the wrappers off. */
  stop(): void;
}

const CLASSES = ['GPUDevice', 'GPUQueue', 'GPUBuffer', 'GPUCommandEncoder', 'GPUComputePassEncoder'] as const;

/** Call it once Dawn is loaded; devices made before are counted too. */
export async function countCalls(): Promise<CallCounter> {
  const { globals } = (await import('webgpu')) as unknown as { globals: Readonly<Record<string, { prototype: object }>> };
  const counts = new Map<string, number>();
  const undo: (() => void)[] = [];
  for (const name of CLASSES) {
    const { prototype } = globals[name]!;
    for (const [method, descriptor] of Object.entries(Object.getOwnPropertyDescriptors(prototype))) {
      const original: unknown = descriptor.value;
      if (typeof original !== 'function' || method === 'constructor') continue;
      const key = `${name}.${method}`;
      const counted = function (this: unknown, ...args: unknown[]): unknown {
        counts.set(key, (counts.get(key) ?? 0) + 1);
        return (original as (...args: unknown[]) => unknown).apply(this, args);
      };
      Object.defineProperty(prototype, method, { ...descriptor, value: counted });
      undo.push(() => void Object.defineProperty(prototype, method, descriptor));
    }
  }
  return { counts, reset: () => counts.clear(), stop: () => undo.splice(0).forEach((restore) => restore()) };
}
