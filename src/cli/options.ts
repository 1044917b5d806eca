/** Command line options: node:util's parseArgs, with values checked and every complaint an MlaError. */
import { parseArgs } from 'node:util';
import { describe } from '../errors.ts';
import type { BackendName } from '../mla.ts';
import { TIERS } from '../webgpu/tier.ts';
import type { MlaChoice } from './context.ts';
import { usageError } from './failure.ts';

const BACKENDS: readonly (BackendName | 'auto')[] = ['auto', 'cuda', 'webgpu', 'cpu'];

export interface OptionSpec {
  readonly type: 'string' | 'boolean';
  readonly short?: string;
}

/** `--backend`, `--tier` and `--dawn`. */
export const MLA_OPTIONS: Readonly<Record<'backend' | 'tier' | 'dawn', OptionSpec>> = {
  backend: { type: 'string' },
  tier: { type: 'string' },
  dawn: { type: 'string' },
};

/** Options and arguments of one command. Accessors throw MlaError invalid-argument when a value is not what they return. */
export class Options {
  readonly #values: Readonly<Record<string, unknown>>;
  /** Arguments that are not options. */
  readonly positionals: readonly string[];

  /** @throws MlaError invalid-argument: an unknown option, a missing value */
  constructor(args: readonly string[], spec: Readonly<Record<string, OptionSpec>>) {
    try {
      const options: Record<string, OptionSpec> = { ...spec, help: { type: 'boolean', short: 'h' } };
      const { values, positionals } = parseArgs({ args: [...args], options, allowPositionals: true });
      this.#values = values;
      this.positionals = positionals;
    } catch (error) {
      throw usageError((error as Error).message);
    }
  }

  flag(name: string): boolean {
    return this.#values[name] === true;
  }

  text(name: string): string | undefined {
    const value = this.#values[name];
    if (typeof value !== 'string') return undefined;
    if (value === '') throw usageError('is empty', `--${name}`, 'a value');
    return value;
  }

  number(name: string): number | undefined {
    const value = this.text(name);
    if (value === undefined) return undefined;
    const number = Number(value);
    if (value.trim() === '' || !Number.isFinite(number)) throw usageError('is not a number', `--${name}`, 'a finite number', describe(value));
    return number;
  }

  /** An integer of at least `least`. */
  integer(name: string, least: number): number | undefined {
    const number = this.number(name);
    if (number !== undefined && !(Number.isSafeInteger(number) && number >= least)) {
      throw usageError('is out of range', `--${name}`, `an integer >= ${least}`, `${number}`);
    }
    return number;
  }

  pattern(name: string): RegExp | undefined {
    const value = this.text(name);
    if (value === undefined) return undefined;
    try {
      return new RegExp(value);
    } catch {
      throw usageError('is not a regular expression', `--${name}`, undefined, describe(value));
    }
  }

  /** What `--backend`, `--tier` and `--dawn` ask for. */
  mla(): MlaChoice {
    const backend = this.text('backend') ?? 'auto';
    const tier = this.text('tier');
    const dawn = this.text('dawn')?.trim().split(/\s+/);
    if (!(BACKENDS as readonly string[]).includes(backend)) {
      throw usageError('is not a backend', '--backend', BACKENDS.join(', '), describe(backend));
    }
    if (tier !== undefined && !(TIERS as readonly string[]).includes(tier)) throw usageError('is not a kernel tier', '--tier', [...TIERS].reverse().join(', '), describe(tier));
    return { backend: backend as BackendName | 'auto', ...(tier !== undefined && { tier }), ...(dawn !== undefined && { dawn }) };
  }
}
