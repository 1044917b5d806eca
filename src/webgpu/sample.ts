/** Launcher of shaders/sample.wgsl. */
import type { SampleOp } from '../ops.ts';
import source from '../../shaders/sample.wgsl?raw';
import sumSource from '../../shaders/workgroup_sum.wgsl?raw';
import { constants, expand } from './kernel.ts';
import { ARGS, PARAMS, f32Bits, tokenGrid, writes } from './launch.ts';
import type { Dispatch, Launching } from './step.ts';

export function sample({ rows, vocab, logits, seen, seenStart, out }: SampleOp, { kernels, traits, buffer }: Launching): Dispatch {
  const threads = traits.kind === 'software' ? 16 : 256;
  const kernel = kernels.get(
    'sample',
    () => [PARAMS, ARGS, writes('logits', 'f32'), writes('out', 'u32')],
    () => [constants({ THREADS: threads }), sumSource, expand(source, {})].join('\n'),
  );
  const words = Int32Array.from(rows.flatMap(({ temperature, topK, topP, repetitionPenalty, random }) => [f32Bits(temperature), topK, f32Bits(topP), f32Bits(repetitionPenalty), f32Bits(random)]));
  return {
    label: 'sample', kernel, params: [rows.length, vocab], args: [words, seenStart, seen],
    buffers: [buffer(logits), buffer(out)], grid: tokenGrid(rows.length, traits.limits),
  };
}
