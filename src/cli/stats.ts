/** Figures as people read them. */

/** A figure in `digits` significant digits, in plain decimals. */
export function figure(value: number, digits = 3): string {
  if (!Number.isFinite(value) || value === 0) return String(value);
  const magnitude = Math.floor(Math.log10(Math.abs(value)));
  return value.toFixed(Math.max(0, digits - 1 - magnitude));
}
