/** Kernels that pass the tier's self-test and then are refused, kernels of another tier, and tiers that cost the device: what serves instead, and that it is said. */
import { afterEach, describe, expect, test, vi } from 'vitest';
import { MlaError } from '../src/errors.ts';
import type { Mla } from '../src/mla.ts';
import { createMla } from '../src/node.ts';
import type { GpuContext } from '../src/webgpu/device.ts';
import type { MatrixTraits } from '../src/webgpu/matrix-test.ts';
import type { SubgroupSize } from '../src/webgpu/subgroup-test.ts';
import { altered } from './altered.ts';
import { makeCase, type CaseOptions } from './cases.ts';
import { expectRefusal, expectRight, run } from './check.ts';
import { softwareDevice, softwareGpu } from './software-adapter.ts';

/** What the self-test of subgroup matrices, which no adapter here has, is to find. */
const matrices = vi.hoisted(() => ({ test: undefined as ((gpu: GpuContext) => Promise<MatrixTraits | string>) | undefined }));
vi.mock('../src/webgpu/matrix-test.ts', async (importOriginal) => {
  const original = await importOriginal<typeof import('../src/webgpu/matrix-test.ts')>();
  return { ...original, testMatrices: (gpu: GpuContext) => (matrices.test ?? original.testMatrices)(gpu) };
});

/** Likewise that of subgroups. */
const subgroups = vi.hoisted(() => ({ test: undefined as ((gpu: GpuContext) => Promise<SubgroupSize | string>) | undefined }));
vi.mock('../src/webgpu/subgroup-test.ts', async (importOriginal) => {
  const original = await importOriginal<typeof import('../src/webgpu/subgroup-test.ts')>();
  return { ...original, testSubgroups: (gpu: GpuContext) => (subgroups.test ?? original.testSubgroups)(gpu) };
});

async function lose(gpu: GpuContext): Promise<string> {
  gpu.device.destroy();
  await gpu.device.lost;
  gpu.check();
  return 'not lost';
}

const SMALL: CaseOptions = { b: 2, sQ: 1, sK: 0, hQ: 4, dV: 32, rope: 16, seqlens: [70, 30] };

/** WebGPU whose compiler refuses the kernels that `refused` says, by their labels; `asked` are those it was given. */
async function picky(refused: (label: string) => boolean): Promise<{ gpu: GPU; asked: string[] }> {
  const real = await softwareGpu();
  const asked: string[] = [];
  const withCompiler = (device: GPUDevice): GPUDevice => altered(device, {
    createShaderModule: (descriptor: GPUShaderModuleDescriptor) => {
      const label = descriptor.label ?? '';
      if (label.startsWith('decode ')) asked.push(label);
      return device.createShaderModule(refused(label) ? { ...descriptor, code: 'fn main(' } : descriptor);
    },
  });
  const gpu = altered(real, {
    requestAdapter: async (options?: GPURequestAdapterOptions) => {
      const adapter = await real.requestAdapter(options);
      return adapter && altered(adapter, { requestDevice: async (descriptor?: GPUDeviceDescriptor) => withCompiler(await adapter.requestDevice(descriptor)) });
    },
  });
  return { gpu, asked };
}

describe('a kernel that the device refuses', () => {
  let mla: Mla | undefined;
  const open = async (refused: (label: string) => boolean, tier: 'base' | 'subgroup'): Promise<{ mla: Mla; asked: string[] }> => {
    const { gpu, asked } = await picky(refused);
    mla = await createMla({ backend: 'webgpu', gpu, tier, tune: 'off' });
    return { mla, asked };
  };
  afterEach(() => mla?.destroy());

  test('fails the call that brought it, and gives way to the next', async () => {
    let first: string | undefined;
    const { mla, asked } = await open((label) => label.startsWith('decode ') && label === (first ??= label), 'base');
    const c = makeCase(SMALL);
    const error = await expectRefusal(() => run(mla, c), 'internal');
    expect(error.message).toContain(first);
    for (let i = 0; i < 3; i++) expectRight(c, await run(mla, c));
    // It is asked for once.
    expect(asked.filter((label) => label === first).length).toBe(1);
    const notes = mla.info.kernelNotes!;
    expect(notes.length).toBe(1);
    expect(notes[0]).toMatch(/^base 4x\d+\/\d+ .*: the device refuses it: compiling decode bf16 d48\/32 base /);
    // Other widths are other kernels, but the configuration is the one that was refused.
    const other = makeCase({ ...SMALL, dV: 64 });
    expectRight(other, await run(mla, other));
  });

  test('and all others of its tier: the next tier serves', async () => {
    const { mla } = await open((label) => / subgroup \d+x/.test(label), 'subgroup');
    const c = makeCase(SMALL);
    let refusals = 0;
    for (let done = false; !done; ) {
      try {
        expectRight(c, await run(mla, c));
        done = true;
      } catch (error) {
        if (!(error instanceof MlaError) || error.code !== 'internal') throw error;
        refusals++;
      }
    }
    expect(refusals).toBe(mla.info.kernelNotes!.filter((note) => note.startsWith('subgroup ')).length);
    expect(mla.info.kernelNotes!.at(-1)).toMatch(/^d_qk = 48, d_v = 32, blocks of 64: kernels of the base tier, for subgroup .*the device refuses it/);
    expect(mla.info.tier).toBe('subgroup');
    expectRight(c, await run(mla, c));
  });

  test('the merge is of all configurations: none is blamed for it', async () => {
    const { mla } = await open((label) => label.startsWith('combine'), 'base');
    const c = makeCase(SMALL);
    for (let i = 0; i < 3; i++) await expectRefusal(() => run(mla, c), 'internal');
    expect(mla.info.kernelNotes).toBeUndefined();
  });

  test('nothing is noted where nothing is', async () => {
    const { mla } = await open(() => false, 'base');
    const c = makeCase(SMALL);
    expectRight(c, await run(mla, c));
    expect(mla.info.kernelNotes).toBeUndefined();
  });
});

describe('the matrix tier', () => {
  afterEach(() => {
    matrices.test = undefined;
    subgroups.test = undefined;
  });

  test('leaves widths that matrices do not divide to the next one, and says so', async () => {
    matrices.test = async () => ({ syntax: 'new', subgroupSize: 4 });
    const mla = await createMla({ backend: 'webgpu', gpu: await softwareGpu(), tier: 'matrix', tune: 'off' });
    const c = makeCase(SMALL);
    for (let i = 0; i < 2; i++) expectRight(c, await run(mla, c));
    expect(mla.info).toMatchObject({ tier: 'matrix', tierNotes: [] });
    expect(mla.info.kernelNotes!.length).toBe(1);
    expect(mla.info.kernelNotes![0]).toMatch(/^d_qk = 48, d_v = 32, blocks of 64: kernels of the subgroup tier, for matrix 64x16 .*: d_qk = 48 is not a multiple of 32/);
    await mla.destroy();
  });

  test('costs the device: another one is opened for the other tiers', async () => {
    const lost: GPUDevice[] = [];
    matrices.test = async (gpu) => {
      lost.push(gpu.device);
      return lose(gpu);
    };
    const mla = await createMla({ backend: 'webgpu', gpu: await softwareGpu(), tune: 'off' });
    expect(lost.length).toBe(1);
    expect(mla.info.tier).toBe('subgroup');
    expect(mla.info.tierNotes!.join()).toMatch(/^matrix: the GPU device was lost/);
    const c = makeCase(SMALL);
    expectRight(c, await run(mla, c));
    await mla.destroy();
    // Asked for by name, or on a caller's device or adapter, which gives no other, that is an error.
    const adapter = (await (await softwareGpu()).requestAdapter())!;
    await expectRefusal(() => createMla({ backend: 'webgpu', adapter, tune: 'off' }), 'device-lost');
    await expectRefusal(async () => createMla({ backend: 'webgpu', gpu: await softwareGpu(), tier: 'matrix', tune: 'off' }), 'device-lost');
    await expectRefusal(async () => createMla({ backend: 'webgpu', device: await softwareDevice(), tune: 'off' }), 'device-lost');
  });

  test('is not blamed for a device that another tier loses', async () => {
    subgroups.test = lose;
    const mla = await createMla({ backend: 'webgpu', gpu: await softwareGpu(), tune: 'off' });
    expect(mla.info.tier).toBe('base');
    const [first, second, ...others] = mla.info.tierNotes!;
    expect(first).toMatch(/^subgroup: the GPU device was lost/);
    expect(second).toMatch(/^matrix: no feature /);
    expect(others).toEqual([]);
    await mla.destroy();
  });
});
