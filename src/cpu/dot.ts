/** The product that all of this backend's work comes down to. Four sums at once: one would wait for itself. */
export function dot(a: Float32Array, aAt: number, b: Float32Array, bAt: number, n: number): number {
  let s0 = 0;
  let s1 = 0;
  let s2 = 0;
  let s3 = 0;
  const whole = n - (n % 4);
  for (let d = 0; d < whole; d += 4) {
    s0 += a[aAt + d]! * b[bAt + d]!;
    s1 += a[aAt + d + 1]! * b[bAt + d + 1]!;
    s2 += a[aAt + d + 2]! * b[bAt + d + 2]!;
    s3 += a[aAt + d + 3]! * b[bAt + d + 3]!;
  }
  for (let d = whole; d < n; d++) s0 += a[aAt + d]! * b[bAt + d]!;
  return s0 + s1 + (s2 + s3);
}
