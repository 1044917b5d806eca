/** The software adapter that most suites run on. */
import { readFileSync } from 'node:fs';
import { setTimeout } from 'node:timers/promises';
import { setFlagsFromString } from 'node:v8';
import { runInNewContext } from 'node:vm';
import { expect, test } from 'vitest';
import { adapterChoice, softwareGpu, useSwiftShader } from './software-adapter.ts';

test.runIf(adapterChoice() === 'swiftshader')('a garbage collection before Dawn begins leaves the Vulkan loader in the process', async () => {
  await useSwiftShader();
  setFlagsFromString('--expose-gc');
  const collect = runInNewContext('gc') as () => void;
  // A library is unloaded by a finalizer, which has its turn after a collection.
  for (let i = 0; i < 5; i++) {
    await setTimeout(5);
    collect();
  }
  await setTimeout(5);
  expect(readFileSync('/proc/self/maps', 'utf8')).toContain('libvulkan.so.1');
  expect(await (await softwareGpu()).requestAdapter()).not.toBeNull();
});
