/** The way from tensors to a backend's `run`: what models are made of. Inside this package only. */
import type { Backend, DecodeShape, TensorId } from './backend.ts';
import { MlaError } from './errors.ts';
import type { Mla, MlaMetadata, MlaTensor } from './mla.ts';
import type { StepOp } from './ops.ts';

/** What operations name things by. */
export interface StepNames {
  /** @throws MlaError destroyed, invalid-argument (no device's tensor, or another instance's) */
  id(tensor: MlaTensor, argument: string): TensorId;
  metadataId(metadata: MlaMetadata): number;
}

export type BuildStep = (names: StepNames) => readonly StepOp[];

/** A backend's `run`. @throws MlaError backend-unavailable */
export function runnerOf(backend: Backend): NonNullable<Backend['run']> {
  if (!backend.run) {
    throw new MlaError('backend-unavailable', `backend ${backend.info.backend} runs no models`, { argument: 'backend', expected: 'webgpu or cpu', got: backend.info.backend, fix: "Pass backend: 'webgpu' to createMla" });
  }
  return (ops) => backend.run!(ops);
}

/** An instance made by this package: it has what the public interface does not show. */
interface Runs {
  run(build: BuildStep): Promise<void>;
  checkRuns(shape: DecodeShape): Promise<void>;
}

/**
 * Enqueues the operations that `build` makes, in call order. They have been thought through by whoever wrote them: tensors are
 * checked to be alive and of this instance, shapes are not checked.
 * @throws MlaError backend-unavailable, destroyed, invalid-argument, limit-exceeded
 */
export async function runOps(mla: Mla, build: BuildStep): Promise<void> {
  return (mla as Mla & Runs).run(build);
}

/**
 * Whether an instance runs a model's operations, with attention of this shape: asked before a model is read.
 * @throws MlaError backend-unavailable, limit-exceeded, destroyed
 */
export async function checkRuns(mla: Mla, shape: DecodeShape): Promise<void> {
  return (mla as Mla & Runs).checkRuns(shape);
}
