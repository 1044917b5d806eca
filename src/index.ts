/**
 * flashmla-web: FlashMLA's decode attention in any environment with WebGPU, and without.
 *
 * This entry reaches nothing that only Node has. In Node import `flashmla-web/node`; for another thread see
 * `flashmla-web/worker`.
 */
import type { Backend } from './backend.ts';
import { createFrom, openBackend, wantedBackend, type Candidate } from './create.ts';
import { createCpuBackend } from './cpu/backend.ts';
import type { BackendName, Mla, MlaMetadata, MetadataArgs, ScheduleInfo } from './mla.ts';
import { getMlaMetadata as schedule } from './schedule.ts';
import { indexedDbStore } from './tune-indexed-db.ts';
import { createWebGpuBackend } from './webgpu/backend.ts';
import { checkDeviceOptions, type DeviceOptions } from './webgpu/device.ts';

export type * from './mla.ts';
export type { DeviceOptions } from './webgpu/device.ts';
export type { TuneMode } from './webgpu/tune-mode.ts';
export { loadModel } from './model/model.ts';
export type { Model, ModelOptions } from './model/model.ts';
export type { ModelInfo } from './model/info.ts';
export type { GenerateOptions } from './model/generate.ts';
export type { ModelText } from './model/model-text.ts';
export type { LoadProgress } from './model/checkpoint.ts';
export type { ModelSource } from './model/source.ts';
export { filesSource } from './model/files-source.ts';
export { hubSource, urlSource } from './model/url-source.ts';
export { MlaError } from './errors.ts';
export type { MlaErrorCode, MlaErrorData, MlaErrorDetails } from './errors.ts';
export { decode16, encode16, fromBf16, fromF16, toBf16, toF16 } from './bf16.ts';

export interface CreateOptions extends DeviceOptions {
  /** 'auto' (default): webgpu where there is an adapter, else cpu; `info.reason` says why. With a `tier`, webgpu or an error. */
  readonly backend?: BackendName | 'auto';
}

function candidates(options: CreateOptions): Candidate[] {
  checkDeviceOptions(options);
  return [
    { backend: 'webgpu', open: (reason) => createWebGpuBackend(options, reason, { store: indexedDbStore(), processors: globalThis.navigator?.hardwareConcurrency }) },
    { backend: 'cpu', open: async (reason) => createCpuBackend(reason) },
  ];
}

/** Makes an instance on the best backend there is, or on the one asked for. @throws MlaError backend-unavailable, invalid-argument */
export async function createMla(options: CreateOptions = {}): Promise<Mla> {
  return createFrom(candidates(options), wantedBackend(options));
}

/** What `createMla` makes an instance of; for serving it to another thread. */
export async function createBackend(options: CreateOptions = {}): Promise<Backend> {
  return openBackend(candidates(options), wantedBackend(options));
}

/** The tile scheduler for a machine described by `machine` (`mla.info.schedule`). Pure. */
export function getMlaMetadata(args: MetadataArgs, machine: ScheduleInfo): MlaMetadata {
  return schedule(args, machine);
}
