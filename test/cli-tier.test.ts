/** The built program's `--tier` on the webgpu backend, as a user runs it: what is asked for is what is taken, or an error. */
import { mkdtemp, readFile, rm, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { dirname, join } from 'node:path';
import { afterAll, beforeAll, describe, expect, test } from 'vitest';
import { decode16 } from '../src/bf16.ts';
import { readSafetensors, writeSafetensors } from '../src/safetensors.ts';
import { checkBuilt, runCli, tensorsOf, type Ended } from './built-cli.ts';
import { makeCase } from './cases.ts';
import { compareDecode } from './compare.ts';
import { oracle } from './check.ts';
import { adapterChoice, useSwiftShader } from './software-adapter.ts';

describe('--tier on webgpu', () => {
  let directory: string;
  let env = process.env;
  beforeAll(async () => {
    checkBuilt();
    directory = await mkdtemp(join(tmpdir(), 'flashmla-tier-'));
    if (adapterChoice() !== 'swiftshader') return;
    await useSwiftShader();
    // Beside the adapter is a Vulkan loader, for machines that have none.
    env = { ...process.env, LD_LIBRARY_PATH: dirname(process.env['VK_ICD_FILENAMES']!) };
  });
  afterAll(() => rm(directory, { recursive: true, force: true }));

  const c = makeCase({ b: 2, sQ: 1, sK: 100, hQ: 3, dV: 32, rope: 16, ragged: true });
  const decode = async (...args: string[]): Promise<Ended> => {
    await writeFile(join(directory, 'in.safetensors'), writeSafetensors(tensorsOf(c)));
    return runCli(['decode', join(directory, 'in.safetensors'), '-o', join(directory, 'out.safetensors'), '--head-dim-v', '32', ...args], env);
  };

  test.each(['base', 'subgroup'])('%s', async (tier) => {
    const { status, stdout, stderr } = await decode('--tier', tier, '--json');
    expect({ status, stderr }).toEqual({ status: 0, stderr: '' });
    expect(JSON.parse(stdout)).toMatchObject({ backend: 'webgpu', tier, notes: [] });
    const { tensors } = readSafetensors(await readFile(join(directory, 'out.safetensors')));
    const got = { out: decode16('bf16', new Uint16Array(tensors.get('out')!.data.slice().buffer)), lse: new Float32Array(tensors.get('lse')!.data.slice().buffer) };
    expect(compareDecode(c, oracle(c), got)).toBeUndefined();
  });

  // On another adapter it may work.
  test.runIf(adapterChoice() === 'swiftshader')('one that does not work here is an error with the reason', async () => {
    const { status, stdout, stderr } = await decode('--tier', 'matrix');
    expect({ status, stdout }).toEqual({ status: 1, stdout: '' });
    expect(stderr).toMatch(/^flashmla-web decode: .*tier.* matrix: no feature chromium-experimental-subgroup-matrix/);
  });
});
