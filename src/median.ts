/** Middle of the samples; mean of the middle two of an even number; NaN of none. */
export function median(samples: readonly number[]): number {
  const sorted = [...samples].sort((x, y) => x - y);
  const half = sorted.length >> 1;
  if (sorted.length === 0) return NaN;
  return sorted.length % 2 === 1 ? sorted[half]! : (sorted[half - 1]! + sorted[half]!) / 2;
}
