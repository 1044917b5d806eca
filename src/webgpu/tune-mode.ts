/** How the choice of kernel configurations is made. */
import { MlaError, describe } from '../errors.ts';

/**
 * 'auto': use what is remembered, and measure in the background what is not. 'stored': use what is remembered. 'off': neither;
 * and what `tune` finds is not remembered.
 */
export type TuneMode = 'auto' | 'stored' | 'off';
const MODES: readonly TuneMode[] = ['auto', 'stored', 'off'];

/** @throws MlaError invalid-argument */
export function checkTuneMode(mode: unknown): asserts mode is TuneMode | undefined {
  if (mode !== undefined && !MODES.includes(mode as TuneMode)) {
    throw new MlaError('invalid-argument', 'no such way to tune', { argument: 'tune', expected: MODES.join(', '), got: describe(mode) });
  }
}
