/** Launcher of shaders/append.wgsl: new tokens into their pages. */
import type { AppendOp, TensorId } from '../backend.ts';
import { roomToGrow } from '../pool.ts';
import appendSource from '../../shaders/append.wgsl?raw';
import type { Segmentation } from './config.ts';
import { constants, kvBindings, storeKv, type Kernel, type KernelCache } from './kernel.ts';
import { wholeBuffer, type Storage } from './storage.ts';
import type { Machine, Submission } from './submission.ts';

const APPEND_THREADS = 64;
/** A word of `slots` before the first slot: how many rows there are (tokens * h_kv). */
const SLOTS_HEADER = 1;

export function encodeAppend(op: AppendOp, { gpu, memory, kernels, bindGroups, traits }: Machine, tensor: (id: TensorId) => Storage, submission: Submission): void {
  const kv = tensor(op.kvCache);
  const rowsOf = { latent: tensor(op.latent), ...(op.rope !== undefined && { rope: tensor(op.rope) }) };
  for (const { allocations } of [kv, ...Object.values(rowsOf)]) submission.use(allocations);
  const kernel = appendKernel(kernels, op, kv);
  const rows = op.tokens * op.hKv;
  const words = new Int32Array(SLOTS_HEADER + op.slots.length);
  words[0] = rows;
  words.set(op.slots, SLOTS_HEADER);
  const slots = memory.storage(roomToGrow(words.byteLength), 'slots');
  submission.use([slots]);
  submission.release(slots);
  gpu.device.queue.writeBuffer(slots.buffer, 0, words);
  const sources = Object.entries(rowsOf).map(([name, storage]) => wholeBuffer(storage, name));
  const { pass } = submission;
  pass.setPipeline(kernel.pipeline);
  pass.setBindGroup(0, bindGroups.get(kernel, [slots.buffer, ...sources, ...kv.buffers], 'append'));
  pass.dispatchWorkgroups(Math.ceil(op.dQk / 2 / APPEND_THREADS), Math.min(rows, traits.limits.maxComputeWorkgroupsPerDimension));
}

/** Bindings: slots, latent, rope (when separate), then the cache's segments. */
function appendKernel(kernels: KernelCache, op: AppendOp, { segments, blocksPerSegment }: Segmentation): Kernel {
  const { hKv, dQk, dV, blockSize } = op;
  const separate = op.rope !== undefined;
  const rowWords = dQk / 2;
  const latentWords = separate ? dV / 2 : rowWords;
  return kernels.get(
    `append h${hKv} d${dQk}/${dV} block${blockSize}${separate ? '' : ' whole'} kv${segments}`,
    () => [
      { name: 'slots', access: 'read', element: 'u32' },
      { name: 'latent', access: 'read', element: 'u32' },
      ...(separate ? [{ name: 'rope', access: 'read', element: 'u32' } as const] : []),
      ...kvBindings(segments, 'read_write'),
    ],
    () =>
      [
        constants({
          THREADS: APPEND_THREADS, H_KV: hKv, BLOCK: blockSize, BLOCKS_PER_SEGMENT: blocksPerSegment, ROW_WORDS: rowWords, LATENT_WORDS: latentWords,
        }),
        'fn load_row(row: u32, word: u32) -> u32 {',
        ...(separate ? ['  if (word >= LATENT_WORDS) { return rope[row * (ROW_WORDS - LATENT_WORDS) + word - LATENT_WORDS]; }'] : []),
        '  return latent[row * LATENT_WORDS + word];\n}',
        storeKv(segments), appendSource,
      ].join('\n'),
  );
}
