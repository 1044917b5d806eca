/** New tokens into their pages. */
import type { AppendOp } from '../backend.ts';
import type { Tensors } from './tensors.ts';

export function append({ kvCache, latent, rope, slots, tokens, hKv, dQk, dV }: AppendOp, tensors: Tensors): void {
  const [cache, rows] = [tensors.bits(kvCache), tensors.bits(latent)];
  const rotary = rope === undefined ? undefined : tensors.bits(rope);
  const width = rotary ? dV : dQk;
  for (let row = 0; row < tokens * hKv; row++) {
    const at = (slots[Math.floor(row / hKv)]! * hKv + (row % hKv)) * dQk;
    cache.set(rows.subarray(row * width, (row + 1) * width), at);
    if (rotary) cache.set(rotary.subarray(row * (dQk - dV), (row + 1) * (dQk - dV)), at + dV);
  }
}
