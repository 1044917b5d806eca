/** A colour a sequence: neighbours in number are far apart in hue, and every second round of hues is darker. */
const HUES: readonly number[] = [250, 60, 155, 345, 105, 300, 200, 25];
const DIM = 0.1;

export function hueOf(sequence: number): number {
  const round = Math.floor(sequence / HUES.length);
  return (HUES[sequence % HUES.length]! + 22 * round) % 360;
}

function dimOf(sequence: number): number {
  return Math.floor(sequence / HUES.length) % 2 === 0 ? 0 : DIM;
}

/** The colour as custom properties that pictures.css reads. */
export function colorStyle(sequence: number): string {
  return `--hue: ${hueOf(sequence)}; --dim: ${dimOf(sequence)}`;
}

/** What a canvas draws with: the page's colours as they are now, light or dark. */
export interface Palette {
  readonly free: string;
  readonly quiet: string;
  readonly ink: string;
  readonly onColor: string;
  /** `shade` lightens (above zero) or darkens. */
  sequence(sequence: number, shade?: number): string;
}

export function paletteOf(element: Element): Palette {
  const style = getComputedStyle(element);
  const value = (name: string): string => style.getPropertyValue(name).trim();
  const [lightness, chroma] = [Number(value('--seq-l')), value('--seq-c')];
  return {
    free: value('--free'), quiet: value('--quiet'), ink: value('--ink'), onColor: value('--seq-ink'),
    sequence: (sequence, shade = 0) => `oklch(${lightness - dimOf(sequence) + shade} ${chroma} ${hueOf(sequence)})`,
  };
}
