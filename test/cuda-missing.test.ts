/** What the cuda backend says where it cannot run: no driver, an old one, another card, koffi or cubins missing. */
import { cp, mkdtemp, rm, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterAll, beforeAll, describe, expect, test } from 'vitest';
import { BIN } from '../native-cuda/sources.ts';
import { createCudaBackend } from '../src/cuda/backend.ts';
import { readKernels, type Kernels } from '../src/cuda/cubin.ts';
import { loadDriver, type DriverSource } from '../src/cuda/driver.ts';
import { createMla, listBackends } from '../src/node.ts';
import { expectRefusal } from './check.ts';
import { FakeDriver, HOPPER } from './fake-driver.ts';

const library = { func: () => () => 0 };
const koffi = { load: () => library, address: () => 0n, view: () => new ArrayBuffer(0), decode: { string: () => '' } };
const source = (change: Partial<Record<keyof DriverSource, unknown>> = {}): DriverSource => ({ platform: 'linux', probe: () => undefined, importKoffi: async () => koffi, ...change }) as DriverSource;
const fails = (message: string, code?: string) => () => {
  throw Object.assign(new Error(message), code === undefined ? {} : { code });
};

describe('the driver', () => {
  const cases: [string, string, RegExp, DriverSource][] = [
    ['another platform', 'backend-unavailable', /runs on Linux.*webgpu/, source({ platform: 'darwin' })],
    ['no driver', 'backend-unavailable', /no NVIDIA driver.*libcuda\.so\.1.*Install/, source({ probe: fails('libcuda.so.1: cannot open shared object file: No such file or directory') })],
    ['no koffi', 'missing-dependency', /koffi.*npm install koffi/, source({ importKoffi: async () => fails('Cannot find package', 'ERR_MODULE_NOT_FOUND')() })],
    ['a koffi that does not load', 'backend-unavailable', /koffi.*did not load: bad ELF/, source({ importKoffi: async () => fails('bad ELF')() })],
    ['a driver that does not load', 'backend-unavailable', /did not load: undefined symbol/, source({ importKoffi: async () => ({ ...koffi, load: fails('undefined symbol') }) })],
    ['a driver without a function', 'backend-unavailable', /too old.*cuInit.*Update/, source({ importKoffi: async () => ({ ...koffi, load: () => ({ func: fails('not found') }) }) })],
  ];
  for (const [what, code, message, from] of cases) {
    test(what, async () => {
      const error = await expectRefusal(() => loadDriver(from), code as 'backend-unavailable', 'backend');
      expect(error.message).toMatch(message);
    });
  }

  test('that is there is loaded: the probe’s own failure says so', async () => {
    const table = await loadDriver(source({ probe: fails('Module did not self-register') }));
    expect(table.calls.cuInit(0)).toBe(0);
  });
});

describe('the device', () => {
  const open = async (driver: FakeDriver, cudaDevice?: number, kernels?: () => Promise<Kernels>) =>
    createCudaBackend(cudaDevice === undefined ? {} : { cudaDevice }, '', { loadDriver: async () => driver, readKernels: kernels ?? readKernels });
  const failing = (call: 'cuInit' | 'cuDevicePrimaryCtxRetain' | 'cuModuleLoadData', code: number): FakeDriver => {
    const driver = new FakeDriver();
    driver.fail.set(call, code);
    return driver;
  };
  const cases: [string, RegExp, FakeDriver][] = [
    ['none', /compute capability 9\.0, got no CUDA device/, new FakeDriver([])],
    ['another architecture', /got Fake A100 \(8\.0\), Fake B200 \(10\.0\)/, new FakeDriver([{ name: 'Fake A100', capability: [8, 0] }, { name: 'Fake B200', capability: [10, 0] }])],
    ['a driver older than the kernels', /a driver for CUDA 13\.0 or newer, got one for CUDA 12\.4.*Update/, new FakeDriver([HOPPER], 12040)],
    ['a driver that finds no device', /CUDA_ERROR_NO_DEVICE \(100, no CUDA-capable device is detected\).*nvidia-smi/, failing('cuInit', 100)],
    ['a device that is taken', /making a context.*out of memory/, failing('cuDevicePrimaryCtxRetain', 2)],
    ['kernels that the driver refuses', /CUDA_ERROR_INVALID_IMAGE.*Update the NVIDIA driver/, failing('cuModuleLoadData', 200)],
  ];
  for (const [what, message, driver] of cases) {
    test(what, async () => {
      const error = await expectRefusal(() => open(driver), 'backend-unavailable', what === 'another architecture' ? 'backend' : undefined);
      expect(error.message).toMatch(message);
      expect(driver.held).toEqual([]);
    });
  }

  test('the first Hopper of several, or the one asked for', async () => {
    const driver = new FakeDriver([{ name: 'Fake A100', capability: [8, 0] }, HOPPER, { ...HOPPER, name: 'Fake H200' }]);
    for (const [wanted, name] of [[undefined, 'Fake H100'], [2, 'Fake H200']] as const) {
      const backend = await open(driver, wanted);
      expect(backend.info.device).toBe(name);
      await backend.destroy();
    }
    await expectRefusal(() => open(driver, 0), 'backend-unavailable', 'backend');
    for (const wrong of [3, -1, 0.5]) await expectRefusal(() => open(driver, wrong), 'invalid-argument', 'cudaDevice');
    expect(driver.held).toEqual([]);
  });
});

describe('the cubins', () => {
  let folder: string;
  beforeAll(async () => {
    folder = await mkdtemp(join(tmpdir(), 'flashmla-cubins-'));
  });
  afterAll(() => rm(folder, { recursive: true, force: true }));

  async function copy(name: string, change: (folder: string) => Promise<void>): Promise<string> {
    const to = join(folder, name);
    await cp(BIN, to, { recursive: true });
    await change(to);
    return to;
  }

  test('are found, the second place too', async () => {
    const { images } = await readKernels([join(folder, 'nowhere'), BIN]);
    expect(images.decode.byteLength).toBeGreaterThan(1e5);
  });

  test('nowhere, one missing, another’s, no manifest worth the name: each says which file and what to do', async () => {
    const places = [
      [join(folder, 'nowhere'), /manifest\.json in .*nowhere/],
      [await copy('missing', (to) => rm(join(to, 'combine.cubin'))), /combine\.cubin, got no such file/],
      [await copy('mixed', (to) => cp(join(to, 'append.cubin'), join(to, 'combine.cubin'))), /not the one that its manifest names.*combine\.cubin/],
      [await copy('damaged', (to) => writeFile(join(to, 'manifest.json'), '{"driver":')), /damaged/],
      [await copy('empty', (to) => writeFile(join(to, 'manifest.json'), '{}')), /damaged/],
    ] as const;
    for (const [place, message] of places) {
      const error = await expectRefusal(() => readKernels([place]), 'backend-unavailable', 'backend');
      expect(error.message).toMatch(message);
      expect(error.fix).toMatch(/Install flashmla-web again/);
    }
  });
});

test('listBackends names cuda first, and why when it does not run here', async () => {
  const [cuda] = await listBackends();
  expect(cuda).toMatchObject({ backend: 'cuda' });
  expect(cuda!.reason).not.toBe('');
  if (cuda!.available) return;
  const error = await expectRefusal(() => createMla({ backend: 'cuda' }), ['backend-unavailable', 'missing-dependency'], 'backend');
  expect(error.message).toBe(cuda!.reason);
});
