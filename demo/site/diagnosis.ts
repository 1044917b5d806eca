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

/** A notice about the instance that opened, or undefined when it runs on a GPU or on what was asked for. */
export function diagnose(info: MlaInfo, asked: string, surroundings: Surroundings): Diagnosis | undefined {
  if (info.backend === 'cpu') {
    if (asked === 'cpu') return undefined;
    const why = whyNoWebGpu(surroundings) ?? NO_ADAPTER;
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

/** A notice about an instance that did not open. */
export function diagnoseFailure(asked: string, surroundings: Surroundings): Diagnosis {
  if (asked === 'webgpu') return whyNoWebGpu(surroundings) ?? NO_ADAPTER;
  return { title: 'The backend did not start', text: 'Nothing can run until it does.' };
}
