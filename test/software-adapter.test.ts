/** The software adapter that most suites run on. */
import { readFileSync } from 'node:fs';
import { expect, test } from 'vitest';
import { collectGarbage } from './garbage.ts';
import { adapterChoice, softwareGpu, useSwiftShader } from './software-adapter.ts';

test.runIf(adapterChoice() === 'swiftshader')('a garbage collection before Dawn begins leaves the Vulkan loader in the process', async () => {
  await useSwiftShader();
  await collectGarbage();
  expect(readFileSync('/proc/self/maps', 'utf8')).toContain('libvulkan.so.1');
  expect(await (await softwareGpu()).requestAdapter()).not.toBeNull();
});
