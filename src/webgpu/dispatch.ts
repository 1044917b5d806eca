/** The two dispatches of a decode call: the parts, then the merge of what they leave of split sequences. */
import type { DecodeShape } from '../backend.ts';
import type { Plan } from '../plan.ts';
import type { BindGroups } from './bind-groups.ts';
import { combineConfig, combineGrid } from './combine-grid.ts';
import { combineKernel } from './combine.ts';
import type { DecodeConfig, DeviceTraits, KernelProblem, Segmentation } from './config.ts';
import { decodeMatrixKernel } from './decode-matrix.ts';
import { decodeKernel } from './decode.ts';
import type { Kernel, KernelCache, Kernels } from './kernel.ts';

export interface DecodeKernels<Result> {
  readonly decode: Result;
  readonly combine: Result;
}

/** The kernel of the first dispatch, which the configuration is of. */
export function partsKernel<Result>(kernels: Kernels<Result>, problem: KernelProblem, config: DecodeConfig, kv: Segmentation): Result {
  return config.tier === 'matrix' ? decodeMatrixKernel(kernels, problem, config, kv) : decodeKernel(kernels, problem, config, kv);
}

/** Both, though nothing may be split yet: a sequence that grows must not wait for a compiler. */
export function decodeKernels<Result>(kernels: Kernels<Result>, problem: KernelProblem, config: DecodeConfig, { kind, limits }: DeviceTraits, kv: Segmentation): DecodeKernels<Result> {
  const decode = partsKernel(kernels, problem, config, kv);
  return { decode, combine: combineKernel(kernels, problem, combineConfig(problem.dV, kind, limits)) };
}

/** The same, compiled while the device works on. @throws MlaError internal when it refuses them */
export async function compileDecode(kernels: KernelCache, problem: KernelProblem, config: DecodeConfig, traits: DeviceTraits, kv: Segmentation): Promise<DecodeKernels<Kernel>> {
  const compiling = decodeKernels(kernels.background, problem, config, traits, kv);
  const [decode, combine] = await Promise.all([compiling.decode, compiling.combine]);
  return { decode, combine };
}

export interface DecodeBuffers {
  readonly q: GPUBuffer;
  readonly plan: GPUBuffer;
  readonly partials: GPUBuffer;
  readonly out: GPUBuffer;
  readonly lse: GPUBuffer;
  readonly kv: readonly GPUBuffer[];
}

/** Workgroups of the first dispatch. */
export function decodeGrid({ sQ, hQ, hKv }: Pick<DecodeShape, 'sQ' | 'hQ' | 'hKv'>, { rows }: DecodeConfig, parts: number): [number, number, number] {
  return [parts, Math.ceil((sQ * hQ) / hKv / rows), hKv];
}

export function encodeDecode(
  pass: GPUComputePassEncoder, groups: BindGroups, { decode, combine }: DecodeKernels<Kernel>, shape: Pick<DecodeShape, 'sQ' | 'hQ' | 'hKv' | 'dV'>,
  config: DecodeConfig, { kind, limits }: DeviceTraits, { parts, splitSequences, mostSplits }: Plan, { q, plan, partials, out, lse, kv }: DecodeBuffers,
): void {
  pass.setPipeline(decode.pipeline);
  pass.setBindGroup(0, groups.get(decode, [q, plan, partials, out, lse, ...kv], 'decode'));
  pass.dispatchWorkgroups(...decodeGrid(shape, config, parts));
  if (splitSequences === 0) return;
  const { dV, sQ, hQ } = shape;
  pass.setPipeline(combine.pipeline);
  pass.setBindGroup(0, groups.get(combine, [plan, partials, out, lse], 'combine'));
  const { x, chunks } = combineGrid(dV, sQ * hQ, mostSplits, combineConfig(dV, kind, limits));
  pass.dispatchWorkgroups(x, splitSequences, chunks);
}
