/**
 * A model's operations in one submission.
 *
 * All that a step brings from the host, which is parameters and small arrays, is laid end to end in one buffer that is written once;
 * kernels find their part of it by an offset, so that bind groups stay the same from step to step.
 */
import type { DecodeOp, TensorId } from '../backend.ts';
import type { StepOp } from '../ops.ts';
import { roomToGrow } from '../pool.ts';
import { encodeAppend } from './append.ts';
import { appendLatent } from './append-latent.ts';
import { experts } from './experts.ts';
import { PARAM_BYTES, type Kernel, type KernelCache } from './kernel.ts';
import type { DeviceTraits } from './config.ts';
import { embed } from './embed.ts';
import { matmul } from './matmul.ts';
import { rmsNorm } from './rms-norm.ts';
import { rope } from './rope.ts';
import { router } from './router.ts';
import { sample } from './sample.ts';
import { wholeBuffer, type Storage } from './storage.ts';
import type { Machine, Submission } from './submission.ts';
import { swiglu } from './swiglu.ts';
import { takeRows } from './take-rows.ts';

/** What launchers make dispatches with. */
export interface Launching {
  readonly kernels: KernelCache;
  readonly traits: DeviceTraits;
  tensor(id: TensorId): Storage;
  /** The buffer of a tensor that has one. */
  buffer(id: TensorId): GPUBuffer;
}

export interface Dispatch {
  readonly label: string;
  readonly kernel: Kernel;
  /** Words of the kernel's Params but the first, which is where `args` begin. */
  readonly params: readonly number[];
  /** What the kernel's second binding, `args`, holds from there on; a kernel without that binding has none. */
  readonly args?: readonly (Int32Array | Float32Array)[];
  /** Its other bindings. */
  readonly buffers: readonly GPUBuffer[];
  readonly grid: readonly [number, number, number];
}

/** The strictest alignment that a device may ask of an offset, in words. */
const ALIGN = 64;
const PARAM_WORDS = PARAM_BYTES / 4;

export class StepEncoder {
  readonly #machine: Machine;
  readonly #tensor: (id: TensorId) => Storage;
  readonly #launching: Launching;
  #words = new Uint32Array(4096);

  constructor(machine: Machine, tensor: (id: TensorId) => Storage) {
    this.#machine = machine;
    this.#tensor = tensor;
    const { kernels, traits } = machine;
    this.#launching = { kernels, traits, tensor, buffer: (id) => wholeBuffer(tensor(id), `tensor ${id}`) };
  }

  /** @throws MlaError limit-exceeded, invalid-argument, destroyed */
  encode(ops: readonly StepOp[], submission: Submission, decode: (op: DecodeOp) => void): void {
    const work = ops.map((op) => {
      if (op.op === 'decode') return (): void => decode(op);
      if (op.op === 'append') return (): void => encodeAppend(op, this.#machine, this.#tensor, submission);
      return this.#dispatch(op);
    });
    const step = this.#write(work.filter((item) => typeof item !== 'function'), submission);
    let at = 0;
    for (const item of work) {
      if (typeof item === 'function') {
        item();
      } else {
        const { kernel, buffers, args, label, grid } = item;
        submission.pass.setPipeline(kernel.pipeline);
        submission.pass.setBindGroup(0, this.#machine.bindGroups.get(kernel, [step, ...(args ? [step] : []), ...buffers], label), [at * 4]);
        submission.pass.dispatchWorkgroups(...grid);
        at += blockWords(item);
      }
    }
  }

  #dispatch(op: Exclude<StepOp, { op: 'decode' | 'append' }>): Dispatch {
    switch (op.op) {
      case 'embed': return embed(op, this.#launching);
      case 'rmsNorm': return rmsNorm(op, this.#launching);
      case 'matmul': return matmul(op, this.#launching);
      case 'rope': return rope(op, this.#launching);
      case 'appendLatent': return appendLatent(op, this.#launching);
      case 'swiglu': return swiglu(op, this.#launching);
      case 'router': return router(op, this.#launching);
      case 'experts': return experts(op, this.#launching);
      case 'takeRows': return takeRows(op, this.#launching);
      case 'sample': return sample(op, this.#launching);
    }
  }

  /** Parameters and arguments of all dispatches, one block each, in a buffer of the device. */
  #write(dispatches: readonly Dispatch[], submission: Submission): GPUBuffer {
    const { gpu, memory } = this.#machine;
    const total = dispatches.reduce((words, dispatch) => words + blockWords(dispatch), 0);
    if (this.#words.length < total) this.#words = new Uint32Array(2 * total);
    const words = this.#words;
    const floats = new Float32Array(words.buffer);
    let at = 0;
    for (const dispatch of dispatches) {
      let next = at + PARAM_WORDS;
      words[at] = next;
      words.set(dispatch.params, at + 1);
      for (const array of dispatch.args ?? []) {
        (array instanceof Float32Array ? floats : words).set(array, next);
        next += array.length;
      }
      at += blockWords(dispatch);
    }
    const allocation = memory.parameters(roomToGrow(total * 4));
    submission.use([allocation]);
    submission.release(allocation);
    if (total > 0) gpu.device.queue.writeBuffer(allocation.buffer, 0, words, 0, total);
    return allocation.buffer;
  }
}

function blockWords({ args = [] }: Dispatch): number {
  const words = args.reduce((sum, array) => sum + array.length, PARAM_WORDS);
  return Math.ceil(words / ALIGN) * ALIGN;
}
