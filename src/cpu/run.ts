/** Operations in plain TypeScript, one after the other. */
import type { StepOp } from '../ops.ts';
import { append } from './append.ts';
import { decode } from './decode.ts';
import { experts, matmul } from './matmul.ts';
import { appendLatent, rope } from './rope.ts';
import { router } from './router.ts';
import { embed, rmsNorm, swiglu, takeRows } from './rows.ts';
import { sample } from './sample.ts';
import type { Tensors } from './tensors.ts';

/** Pauses where an operation takes long. */
export function* run(op: StepOp, tensors: Tensors): Generator<void, void, void> {
  switch (op.op) {
    case 'embed': return embed(op, tensors);
    case 'rmsNorm': return rmsNorm(op, tensors);
    case 'matmul': return yield* matmul(op, tensors);
    case 'rope': return rope(op, tensors);
    case 'appendLatent': return appendLatent(op, tensors);
    case 'swiglu': return swiglu(op, tensors);
    case 'router': return router(op, tensors);
    case 'experts': return yield* experts(op, tensors);
    case 'takeRows': return takeRows(op, tensors);
    case 'sample': return sample(op, tensors);
    case 'append': return append(op, tensors);
    case 'decode': return yield* decode(op, tensors);
  }
}

/** The operation with arrays of its own: the caller's may change before its turn comes. */
export function kept<Op extends object>(op: Op): Op {
  return Object.fromEntries(Object.entries(op).map(([name, value]) => [name, value instanceof Int32Array || value instanceof Float32Array ? value.slice() : value])) as Op;
}
