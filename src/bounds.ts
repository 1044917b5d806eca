/**
 * How far a result may be from attention in double precision: FlashMLA's own bounds, for q and KV about as large as a model's. A number passes by its
 * absolute or its relative error.
 */
export const OUT_ABSOLUTE: number = 8e-4;
export const OUT_RELATIVE: number = 2.01 / 128;
export const LSE_ABSOLUTE: number = 1e-6;
export const LSE_RELATIVE: number = 8.01 / 65_536;
