/** What kind of machine this is, in plain words. Pure. */
import type { MlaInfo } from '../../src/mla.ts';

export interface Surroundings {
  /** `isSecureContext` of the page. */
  readonly secure: boolean;
  /** The page has `navigator.gpu`. */
  readonly webgpu: boolean;
}

export interface Diagnosis {
  readonly title: string;
  readonly text: string;
}

const BROWSERS = 'Chrome and Edge have it since version 113 (on Linux later), Safari since 26, Firefox since 141 on Windows and 145 on Apple silicon.';

/** Why there is no WebGPU here, or undefined when the page sees none of the reasons. */
export function whyNoWebGpu({ secure, webgpu }: Surroundings): Diagnosis | undefined {
  if (!secure) {
    return {
      title: 'This page was not loaded securely',
      text: 'Browsers offer WebGPU to pages from https:// addresses and from localhost only. Open this page by such an address.',
    };
  }
  if (!webgpu) return { title: 'This browser has no WebGPU', text: `${BROWSERS} It may also be switched off in the settings.` };
  return undefined;
}

const NO_ADAPTER: Diagnosis = {
  title: 'No GPU for this page',
  text: 'The browser has WebGPU but found no graphics device that it may use: the driver may be missing, too old or on the browser’s block list, or hardware acceleration may be off in the settings.',
};

const NOT_IN_WORKERS: Diagnosis = {
  title: 'No WebGPU in workers',
  text: 'The browser has WebGPU for pages, but not for workers, where this page computes so that it can answer meanwhile. A newer version of the browser may have it.',
};

const NO_DEVICE: Diagnosis = {
  title: 'The GPU gave no device',
  text: 'The browser found a graphics device, but could not open it: its driver may have just failed, or other pages may hold all it has. Closing them or starting the browser anew can help.',
};

/** A lost device, and how that comes about; each page says what became of its own. */
export const DEVICE_LOST: Diagnosis = {
  title: 'The GPU device was lost',
  text: 'A driver reset, a sleeping laptop or a busy system can do this.',
};

/** Of the reasons that the page cannot see, the one that the instance's own words name. */
function whyByWords(words: string): Diagnosis {
  if (words.includes('no WebGPU here')) return NOT_IN_WORKERS;
  return words.includes('the adapter gave no device') ? NO_DEVICE : NO_ADAPTER;
}

/** A notice about the instance that opened, or undefined when it runs on a GPU or on what was asked for. */
export function diagnose(info: MlaInfo, asked: string, surroundings: Surroundings): Diagnosis | undefined {
  if (info.backend === 'cpu') {
    if (asked === 'cpu') return undefined;
    const why = whyNoWebGpu(surroundings) ?? whyByWords(info.reason);
    return { title: why.title, text: `${why.text} Until then the cpu backend computes the same numbers in JavaScript, slowly.` };
  }
  if (info.software) {
    return {
      title: 'A software adapter',
      text: 'WebGPU works here, but the kernels run on the processor. Results are right; times say nothing about a GPU.',
    };
  }
  return undefined;
}

/** A notice about an instance that did not open. @param words the error's */
export function diagnoseFailure(asked: string, surroundings: Surroundings, words = ''): Diagnosis {
  if (asked === 'webgpu') return whyNoWebGpu(surroundings) ?? whyByWords(words);
  return { title: 'The backend did not start', text: 'Nothing can run until it does.' };
}

/** A notice that a kernel tier gave way. @param why in the package's words */
export function diagnoseTier(asked: string, used: string, why: string): Diagnosis {
  return { title: `The ${asked} tier does not work on this device`, text: `The ${used} tier runs in its place, with the same results. Why: ${why}.` };
}

/** A binding below this makes the package cut a cache of this page's sizes into segments. */
const AMPLE_BINDING = 128 << 20;
/** What the larger tiles of the kernels take. */
const AMPLE_WORKGROUP = 32 << 10;

/** Features and limits that a WebGPU device lacks, and what follows. */
export function lacksOf({ backend, features, limits }: Pick<MlaInfo, 'backend' | 'features' | 'limits'>): Diagnosis[] {
  if (backend !== 'webgpu') return [];
  const lacks: Diagnosis[] = [];
  const lack = (title: string, text: string): void => void lacks.push({ title, text });
  if (!features.includes('timestamp-query')) lack('Timestamp queries.', 'Times are wall times, which include what it takes to submit the work.');
  if (!features.includes('subgroups')) lack('Subgroups.', 'Kernels of the base tier run, which sum through workgroup memory.');
  if (!features.includes('shader-f16')) lack('Half-precision arithmetic (shader-f16).', 'The matrix tier needs it.');
  if (!features.includes('chromium-experimental-subgroup-matrix')) {
    lack('Subgroup matrices.', 'The matrix tier needs them. Chromium has them behind its flag for unsafe WebGPU, on some GPUs.');
  }
  const { maxStorageBufferBindingSize: binding = Infinity, maxComputeWorkgroupStorageSize: workgroup = Infinity } = limits;
  if (binding < AMPLE_BINDING) lack('Large buffers.', `A kernel sees ${binding >> 20} MiB of a buffer at most, so large caches are cut into segments.`);
  if (workgroup < AMPLE_WORKGROUP) lack('Workgroup memory.', `There are ${workgroup >> 10} KiB of it, so kernels take smaller tiles.`);
  return lacks;
}
