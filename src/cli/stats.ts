/** Figures out of samples. */

/** Middle of the samples; mean of the middle two of an even number; NaN of none. */
export function median(samples: readonly number[]): number {
  const sorted = [...samples].sort((x, y) => x - y);
  const half = sorted.length >> 1;
  if (sorted.length === 0) return NaN;
  return sorted.length % 2 === 1 ? sorted[half]! : (sorted[half - 1]! + sorted[half]!) / 2;
}

/** A figure in `digits` significant digits, in plain decimals. */
export function figure(value: number, digits = 3): string {
  if (!Number.isFinite(value) || value === 0) return String(value);
  const magnitude = Math.floor(Math.log10(Math.abs(value)));
  return value.toFixed(Math.max(0, digits - 1 - magnitude));
}
