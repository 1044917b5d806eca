/** Reads fields of a JSON object by name and type; what is wrong is named with its path. */
import { MlaError, describe } from '../errors.ts';

export class Fields {
  readonly #json: Readonly<Record<string, unknown>>;
  readonly #path: string;

  /** @throws MlaError invalid-file unless `json` is an object */
  constructor(json: unknown, path: string) {
    if (typeof json !== 'object' || json === null || Array.isArray(json)) {
      throw new MlaError('invalid-file', 'is not a JSON object', { argument: path, expected: 'an object', got: describe(json) });
    }
    this.#json = json as Record<string, unknown>;
    this.#path = path;
  }

  path(name: string): string {
    return `${this.#path}.${name}`;
  }

  /** As it stands; undefined where it is absent or null. */
  raw(name: string): unknown {
    return Object.hasOwn(this.#json, name) ? this.#json[name] ?? undefined : undefined;
  }

  has(name: string): boolean {
    return Object.hasOwn(this.#json, name);
  }

  entries(): [string, unknown][] {
    return Object.entries(this.#json);
  }

  /** A field that is an object itself; undefined where it is absent or null. */
  object(name: string): Fields | undefined {
    const value = this.raw(name);
    return value === undefined ? undefined : new Fields(value, this.path(name));
  }

  /** An integer of at least `least`. */
  count(name: string, fallback?: number, least = 1): number {
    return this.#value(name, fallback, `an integer of ${least} or more`, (v): v is number => Number.isSafeInteger(v) && (v as number) >= least);
  }

  number(name: string, fallback?: number): number {
    return this.#value(name, fallback, 'a number', (v): v is number => Number.isFinite(v));
  }

  positive(name: string, fallback?: number): number {
    return this.#value(name, fallback, 'a number above 0', (v): v is number => Number.isFinite(v) && (v as number) > 0);
  }

  flag(name: string, fallback?: boolean): boolean {
    return this.#value(name, fallback, 'true or false', (v): v is boolean => typeof v === 'boolean');
  }

  text(name: string, fallback?: string): string {
    return this.#value(name, fallback, 'a string', (v): v is string => typeof v === 'string');
  }

  /** @throws MlaError unsupported-model */
  refuse(name: string, summary: string, expected: string, got: unknown = this.raw(name)): never {
    throw new MlaError('unsupported-model', summary, { argument: this.path(name), expected, got: describe(got) });
  }

  /** Null counts as absent, as it does in Hugging Face's configurations. */
  #value<T>(name: string, fallback: T | undefined, expected: string, is: (value: unknown) => value is T): T {
    const value = this.raw(name);
    if (value === undefined && fallback !== undefined) return fallback;
    if (is(value)) return value;
    throw new MlaError('invalid-file', value === undefined ? 'is missing' : 'has a bad value', {
      argument: this.path(name), expected, got: value === undefined ? 'nothing' : describe(value),
    });
  }
}
