/** A progress bar on a terminal; nothing at all in a pipe. */
import type { Output } from './context.ts';

export interface Progress {
  /** Names what is being done now. */
  label(text: string): void;
  /** One step, or several, done. */
  advance(steps?: number): void;
  /** Takes the bar away. */
  stop(): void;
}

const WIDTH = 30;
/** Back to the start of the line, and clear it. */
const CLEAR = '\r\x1b[K';

/** A bar of `total` steps on `output` when that is a terminal. */
export function progress(output: Output, total: number): Progress {
  if (output.isTTY !== true) return { label() {}, advance() {}, stop() {} };
  const start = performance.now();
  let done = 0;
  let name = '';
  const draw = (): void => {
    const full = Math.round((WIDTH * done) / total);
    const left = done === 0 ? '' : `, ${duration(((performance.now() - start) * (total - done)) / done)} left`;
    const line = `${'█'.repeat(full)}${'░'.repeat(WIDTH - full)} ${Math.floor((100 * done) / total)}%${left}  ${name}`;
    // A line that wraps could not be cleared.
    output.write(CLEAR + line.slice(0, (output.columns || 80) - 1));
  };
  return {
    label: (text) => {
      name = text;
      draw();
    },
    advance: (steps = 1) => {
      done = Math.min(total, done + steps);
      draw();
    },
    stop: () => void output.write(CLEAR),
  };
}

function duration(ms: number): string {
  const seconds = Math.ceil(ms / 1000);
  return seconds < 60 ? `${seconds} s` : `${Math.floor(seconds / 60)} min ${seconds % 60} s`;
}
