/** What `createMla` is asked for: refused by name before any backend is opened, in Node and elsewhere. */
import { describe, expect, test } from 'vitest';
import { openBackend } from '../src/create.ts';
import { createCpuBackend } from '../src/cpu/backend.ts';
import { MlaError } from '../src/errors.ts';
import * as anywhere from '../src/index.ts';
import * as node from '../src/node.ts';
import { expectRefusal } from './check.ts';
import { adapterChoice, softwareGpu, useSwiftShader } from './software-adapter.ts';

const wrong: readonly [argument: string, options: unknown][] = [
  ['options', null], ['options', 5], ['tier', { tier: 'fast' }], ['tune', { tune: 'sometimes' }], ['limits', { limits: 5 }], ['powerPreference', { powerPreference: 'most' }],
  ['device', { device: {} }], ['adapter', { adapter: 5 }], ['gpu', { gpu: 'x' }], ['backend', { backend: 'vulkan' }],
];

describe.each([['flashmla-web', anywhere], ['flashmla-web/node', node]] as const)('%s', (_, entry) => {
  test.each(wrong)('%s: %j', async (argument, options) => {
    await expectRefusal(() => entry.createMla(options as anywhere.CreateOptions), 'invalid-argument', argument);
    await expectRefusal(() => entry.createBackend(options as anywhere.CreateOptions), 'invalid-argument', argument);
  });
});

test.each(['x', [5]])('dawn: %j', async (dawn) => {
  await expectRefusal(() => node.createMla({ dawn: dawn as never }), 'invalid-argument', 'dawn');
  await expectRefusal(() => node.nodeGpu(dawn as never), 'invalid-argument', 'dawn');
});

test.runIf(adapterChoice() === 'swiftshader')('two at once share one Dawn: a second would be nobody’s to keep', async () => {
  await useSwiftShader();
  const [first, second] = await Promise.all([node.nodeGpu(), node.nodeGpu()]);
  expect(second).toBe(first);
  expect(await node.nodeGpu()).toBe(first);
});

test('auto does not go past an argument that is wrong', async () => {
  const open = async (): Promise<never> => {
    throw new MlaError('invalid-argument', 'no such device', { argument: 'cudaDevice' });
  };
  await expectRefusal(() => openBackend([{ backend: 'cuda', open }, { backend: 'cpu', open: async (reason) => createCpuBackend(reason) }]), 'invalid-argument', 'cudaDevice');
  expect((await openBackend([{ backend: 'cpu', open: async (reason) => createCpuBackend(reason) }])).info.backend).toBe('cpu');
});

describe('a tier, or toggles of Dawn, with auto', () => {
  test('is webgpu or an error, not another backend', async () => {
    expect((await anywhere.createMla()).info.backend).toBe('cpu');
    await expectRefusal(() => anywhere.createMla({ tier: 'base' }), 'backend-unavailable', 'backend');
    await expectRefusal(() => anywhere.createBackend({ tier: 'base' }), 'backend-unavailable', 'backend');
    await expectRefusal(() => node.createMla({ dawn: ['backend=null'], limits: 'default', tier: 'matrix' }), 'backend-unavailable');
    const base = await node.createMla({ gpu: await softwareGpu(), tier: 'base' });
    expect(base.info).toMatchObject({ backend: 'webgpu', tier: 'base', reason: 'asked for' });
    await base.destroy();
  });

  // On another adapter it may work.
  test.runIf(adapterChoice() === 'swiftshader')('a tier that does not work is the reason', async () => {
    const refused = await expectRefusal(async () => node.createMla({ gpu: await softwareGpu(), tier: 'matrix' }), 'backend-unavailable', 'tier');
    expect(refused.got).toContain('matrix: ');
  });

  test('a backend that is named is that one', async () => {
    const mla = await node.createMla({ backend: 'cpu', tier: 'base', dawn: ['backend=null'] });
    expect(mla.info.backend).toBe('cpu');
    await mla.destroy();
  });
});
