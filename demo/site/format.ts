/** Numbers as people read them. */
export function count(n: number): string {
  return n.toLocaleString('en-US');
}

export function plural(n: number, one: string, many = `${one}s`): string {
  return `${count(n)} ${n === 1 ? one : many}`;
}

/** Three digits that count, never in powers of ten above 1e-5. */
export function digits(value: number): string {
  if (value === 0) return '0';
  if (!Number.isFinite(value)) return String(value);
  const size = Math.abs(value);
  if (size < 1e-5) return value.toExponential(1);
  if (size >= 1000) return count(Math.round(value));
  return String(Number(value.toPrecision(size < 1 ? 2 : 3)));
}

export function scientific(value: number): string {
  if (value === 0) return '0';
  return Number.isFinite(value) ? value.toExponential(1).replace('e-', 'e−').replace('e+', 'e') : '∞';
}

export function bytes(n: number): string {
  if (n < 1000) return `${n} B`;
  const [unit, size] = n < 1e6 ? (['kB', 1e3] as const) : n < 1e9 ? (['MB', 1e6] as const) : (['GB', 1e9] as const);
  return `${digits(n / size)} ${unit}`;
}

export function flops(n: number): string {
  return n < 1e9 ? `${digits(n / 1e6)} MFLOP` : `${digits(n / 1e9)} GFLOP`;
}

export function milliseconds(ms: number): string {
  return ms >= 1000 ? `${digits(ms / 1000)} s` : `${digits(ms)} ms`;
}
