/**
 * Whether a result is as near attention in double precision as it must be: FlashMLA's own bounds, for q and KV about as large as a model's. A number
 * passes by its absolute or its relative error; one that is no number is near nothing.
 */
export function isNearOut(got: number, right: number): boolean {
  return isNear(got, right, 8e-4, 2.01 / 128);
}

export function isNearLse(got: number, right: number): boolean {
  // Of a row that sees nothing it is infinite.
  return got === right || isNear(got, right, 1e-6, 8.01 / 65_536);
}

function isNear(got: number, right: number, absolute: number, relative: number): boolean {
  const error = Math.abs(got - right);
  return error <= absolute || error <= relative * Math.abs(right);
}
