/** `target` with some of its members replaced. */
export function altered<T extends object>(target: T, members: Partial<T>): T {
  return new Proxy(target, {
    get: (_, name) => {
      const own = (members as Record<string | symbol, unknown>)[name];
      const value = own ?? Reflect.get(target, name, target);
      return typeof value === 'function' ? (value.bind(target) as unknown) : value;
    },
  });
}
