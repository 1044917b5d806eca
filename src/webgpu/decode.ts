/** Launcher of shaders/decode.wgsl: the split-KV kernel. */
import bf16Source from '../../shaders/bf16.wgsl?raw';
import decodeSource from '../../shaders/decode.wgsl?raw';
import type { DecodeProblem, ScalarConfig, Segmentation } from './config.ts';
import { constants, kvBindings, loadKv, unroll, type Kernels } from './kernel.ts';
import { PLAN_LAYOUT } from '../plan.ts';

/** Bindings: q, plan, partials, out, lse, then the cache's segments. */
export function decodeKernel<Result>(kernels: Kernels<Result>, op: DecodeProblem, config: ScalarConfig, { segments, blocksPerSegment }: Segmentation): Result {
  const { dtype, dQk, dV } = op;
  const { rows, tokens, threads, rowTile, slices, threadQuads, wordUnroll, outRows, outWords, outLanes } = config;
  const key = `decode ${dtype} d${dQk}/${dV} ${config.key} kv${segments}`;
  return kernels.get(
    key,
    () => [
      { name: 'q', access: 'read', element: 'u32' },
      { name: 'plan', access: 'read', element: 'u32' },
      { name: 'partials', access: 'read_write', element: 'vec2<f32>' },
      { name: 'out', access: 'read_write', element: 'u32' },
      { name: 'lse', access: 'read_write', element: 'u32' },
      ...kvBindings(segments, 'read', 'u32'),
    ],
    () => {
      const values = {
        ...PLAN_LAYOUT, IS_BF16: dtype === 'bf16', WORDS: dQk / 2, V_WORDS: dV / 2, BLOCKS_PER_SEGMENT: blocksPerSegment,
        ROWS: rows, TOKENS: tokens, QUADS: tokens / 4, THREADS: threads, ROW_TILE: rowTile, SLICES: slices, THREAD_QUADS: threadQuads, WORD_UNROLL: wordUnroll, OUT_ROWS: outRows, OUT_WORDS: outWords, OUT_LANES: outLanes,
      };
      return [constants(values), loadKv(segments), bf16Source, unroll(decodeSource, values)].join('\n');
    },
  );
}
