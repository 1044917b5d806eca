/** Launcher of shaders/rms_norm.wgsl. */
import type { RmsNormOp } from '../ops.ts';
import source from '../../shaders/rms_norm.wgsl?raw';
import sumSource from '../../shaders/workgroup_sum.wgsl?raw';
import { constants } from './kernel.ts';
import { PARAMS, f32Bits, reads, tokenGrid, writes } from './launch.ts';
import type { Dispatch, Launching } from './step.ts';

export function rmsNorm({ tokens, n, x, weight, eps, out }: RmsNormOp, { kernels, traits, buffer }: Launching): Dispatch {
  // One buffer cannot be bound to be read and to be written.
  const inPlace = x.tensor === out.tensor;
  const threads = traits.kind === 'software' ? 16 : 256;
  const kernel = kernels.get(
    `rms norm${inPlace ? ' in place' : ''}`,
    () => [PARAMS, ...(inPlace ? [] : [reads('x', 'f32')]), reads('weight', 'f32'), writes('out', 'f32')],
    () => [constants({ THREADS: threads }), `fn load_x(at: u32) -> f32 { return ${inPlace ? 'out' : 'x'}[at]; }`, sumSource, source].join('\n'),
  );
  return {
    label: 'rms norm', kernel, params: [tokens, n, f32Bits(eps), x.stride, x.offset, out.stride, out.offset],
    buffers: [...(inPlace ? [] : [buffer(x.tensor)]), buffer(weight), buffer(out.tensor)], grid: tokenGrid(tokens, traits.limits),
  };
}
