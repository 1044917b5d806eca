/** Choosing a backend: tries the candidates in order and says why each was passed over. */
import type { Backend } from './backend.ts';
import { MlaError, describe } from './errors.ts';
import { MlaHost } from './host.ts';
import type { BackendName, Mla } from './mla.ts';

/** One way to get a backend in this environment. */
export interface Candidate {
  readonly backend: BackendName;
  /** `reason` goes into the backend's info. @throws MlaError backend-unavailable, missing-dependency */
  open(reason: string): Promise<Backend>;
}

/** The first candidate that opens (`auto`), or the one asked for; a bad argument is not passed over. @throws MlaError backend-unavailable, missing-dependency, invalid-argument */
export async function openBackend(candidates: readonly Candidate[], wanted: BackendName | 'auto' = 'auto'): Promise<Backend> {
  if (wanted !== 'auto') {
    const candidate = candidates.find((c) => c.backend === wanted);
    if (candidate) return candidate.open('asked for');
    if (wanted !== 'cuda' && wanted !== 'webgpu' && wanted !== 'cpu') {
      throw new MlaError('invalid-argument', 'no such backend', { argument: 'backend', expected: "'auto', 'cuda', 'webgpu' or 'cpu'", got: describe(wanted) });
    }
    throw new MlaError('backend-unavailable', `backend ${wanted} does not exist here`, {
      argument: 'backend', expected: candidates.map((c) => c.backend).join(', '), got: wanted,
      fix: wanted === 'cuda' ? 'It needs Node (flashmla-web/node), an NVIDIA driver and a Hopper GPU' : 'Use another backend',
    });
  }
  const passed: string[] = [];
  let last: unknown;
  for (const { backend, open } of candidates) {
    try {
      return await open([`auto took ${backend}`, ...passed].join('; '));
    } catch (error) {
      if (error instanceof MlaError && error.code === 'invalid-argument') throw error;
      passed.push(`no ${backend}: ${(error as Error).message}`);
      last = error;
    }
  }
  throw new MlaError('backend-unavailable', passed.join('; '), { argument: 'backend', cause: last });
}

export async function createFrom(candidates: readonly Candidate[], wanted: BackendName | 'auto' | undefined): Promise<Mla> {
  return new MlaHost(await openBackend(candidates, wanted));
}

/** The backend that options ask for: who asks for a kernel tier, or for toggles of Dawn, asks for webgpu, which alone has them. */
export function wantedBackend({ backend = 'auto', tier, dawn }: { readonly backend?: BackendName | 'auto'; readonly tier?: unknown; readonly dawn?: unknown }): BackendName | 'auto' {
  return backend === 'auto' && (tier !== undefined || dawn !== undefined) ? 'webgpu' : backend;
}
