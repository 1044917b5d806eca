/** Launcher of shaders/append_latent.wgsl. */
import type { AppendLatentOp } from '../ops.ts';
import source from '../../shaders/append_latent.wgsl?raw';
import bf16Source from '../../shaders/bf16.wgsl?raw';
import sumSource from '../../shaders/workgroup_sum.wgsl?raw';
import { constants, kvBindings, storeKv } from './kernel.ts';
import { ARGS, PARAMS, checkPairs, f32Bits, reads, tokenGrid } from './launch.ts';
import type { Dispatch, Launching } from './step.ts';

/** Bindings besides parameters and arguments: x, the norm's weight, then the cache's segments. @throws MlaError invalid-argument */
export function appendLatent(op: AppendLatentOp, { kernels, traits, tensor, buffer }: Launching): Dispatch {
  const { tokens, x, dV, eps, blockSize } = op;
  checkPairs({ stride: dV + op.rope, group: 0, offset: dV }, op.rope);
  const { segments, blocksPerSegment, buffers } = tensor(op.kvCache);
  const threads = traits.kind === 'software' ? 16 : 256;
  const kernel = kernels.get(
    `append latent kv${segments}/${blocksPerSegment}`,
    () => [PARAMS, ARGS, reads('x', 'f32'), reads('weight', 'f32'), ...kvBindings(segments, 'read_write')],
    () => [constants({ THREADS: threads, IS_BF16: true, BLOCKS_PER_SEGMENT: blocksPerSegment }), bf16Source, sumSource, storeKv(segments), source].join('\n'),
  );
  return {
    label: 'append latent', kernel, params: [tokens, f32Bits(eps), blockSize, x.stride, x.offset, dV, op.rope], args: [op.slots, op.angles],
    buffers: [buffer(x.tensor), buffer(op.normWeight), ...buffers], grid: tokenGrid(tokens, traits.limits),
  };
}
