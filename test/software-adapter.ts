/**
 * A WebGPU adapter on any x64 Linux, with no GPU and no system package: SwiftShader from @sparticuz/chromium, for
 * Dawn in this process and for the same package's Chromium.
 *
 *   FLASHMLA_ADAPTER=system    Dawn takes what this machine has (Vulkan, Metal, D3D)
 *   FLASHMLA_CHROMIUM=/path    a Chromium of this machine; with FLASHMLA_ADAPTER=system on its GPU too
 *
 * What is asked for and missing throws: a suite that quietly skips its device proves nothing.
 */
import { execFileSync } from 'node:child_process';
import { existsSync } from 'node:fs';
import { join } from 'node:path';
import { isMainThread } from 'node:worker_threads';
import { unpack } from './unpack.ts';

export type AdapterChoice = 'system' | 'swiftshader';

/** What FLASHMLA_ADAPTER asks for; where the package has no binaries, the machine's own adapter. */
export function adapterChoice(): AdapterChoice {
  const asked = process.env['FLASHMLA_ADAPTER'];
  if (asked === 'system' || asked === 'swiftshader') return asked;
  if (asked !== undefined && asked !== '') throw new Error(`FLASHMLA_ADAPTER: expected system or swiftshader, got ${asked}`);
  return process.platform === 'linux' && process.arch === 'x64' ? 'swiftshader' : 'system';
}

// Dawn's instance must outlive every adapter and device made from it.
let gpu: Promise<GPU> | undefined;

/** Dawn in this process, with an adapter that has been seen to exist. The same instance at each call. */
export function softwareGpu(): Promise<GPU> {
  gpu ??= createGpu();
  return gpu;
}

async function createGpu(): Promise<GPU> {
  const choice = adapterChoice();
  const options = choice === 'swiftshader' ? await useSwiftShader() : ['enable-dawn-features=allow_unsafe_apis,vulkan_enable_f16_on_nvidia'];
  const { create } = await import('webgpu');
  const created = create(options);
  const adapter = await created.requestAdapter();
  if (adapter === null) throw new Error(`Dawn found no adapter (FLASHMLA_ADAPTER=${choice}): the webgpu suite cannot run`);
  if (choice === 'swiftshader' && adapter.info.architecture !== 'swiftshader') {
    throw new Error(`Dawn took ${adapter.info.vendor} ${adapter.info.architecture} where SwiftShader was asked for`);
  }
  return created;
}

// koffi unloads a library that nothing refers to, at any garbage collection.
const loaded: unknown[] = [];

/** Points the Vulkan loader at SwiftShader. Must run before Dawn makes its instance. */
export async function useSwiftShader(): Promise<string[]> {
  if (!isMainThread) throw new Error('a worker thread has its own copy of process.env, which the Vulkan loader never sees: run vitest with pool "forks"');
  const dir = await unpack('swiftshader', ['swiftshader.tar.br']);
  process.env['VK_ICD_FILENAMES'] = join(dir, 'vk_swiftshader_icd.json');
  process.env['VK_DRIVER_FILES'] = process.env['VK_ICD_FILENAMES'];
  // A machine without Vulkan has no libvulkan.so.1 either. Once loaded, Dawn's dlopen finds it by its soname.
  const { default: koffi } = await import('koffi');
  loaded.push(koffi.load(join(dir, 'libvulkan.so.1'), { global: true, lazy: false }));
  return [];
}

/** A device of its own for a test that destroys it or shares it. */
export async function softwareDevice(): Promise<GPUDevice> {
  const adapter = await (await softwareGpu()).requestAdapter();
  if (adapter === null) throw new Error('the adapter that was there is gone');
  return adapter.requestDevice();
}

export interface ChromiumLaunch {
  readonly executablePath: string;
  readonly args: string[];
  readonly env: Record<string, string>;
  readonly headless: true;
}

/** Options for playwright-core's `chromium.launch` that give pages and workers on http://127.0.0.1 a WebGPU adapter. */
export async function chromiumLaunchOptions(): Promise<ChromiumLaunch> {
  const env: Record<string, string> = {};
  for (const [name, value] of Object.entries(process.env)) if (value !== undefined) env[name] = value;
  // Set for Dawn in this process; Chromium brings its own.
  delete env['VK_ICD_FILENAMES'];
  delete env['VK_DRIVER_FILES'];

  const system = process.env['FLASHMLA_ADAPTER'] === 'system';
  const args = [
    '--no-sandbox',
    '--enable-unsafe-webgpu',
    '--enable-features=Vulkan',
    // A software adapter on a busy machine may take longer over one dispatch than the watchdog allows a GPU.
    '--disable-gpu-watchdog',
    ...(system ? ['--ignore-gpu-blocklist'] : ['--use-webgpu-adapter=swiftshader']),
  ];
  const own = process.env['FLASHMLA_CHROMIUM'];
  if (own !== undefined && own !== '') return { executablePath: own, args, env, headless: true };
  if (process.platform !== 'linux' || process.arch !== 'x64') {
    throw new Error('@sparticuz/chromium has binaries for x64 Linux only: set FLASHMLA_CHROMIUM to the path of a Chromium or Chrome');
  }
  // SwiftShader and the Vulkan loader are looked for beside the binary; lib/ and fonts/ serve machines that lack NSS and fonts.
  const dir = await unpack('chromium', ['chromium.br', 'swiftshader.tar.br', 'fonts.tar.br', 'al2023.tar.br'], { 'fonts.conf': fontsConf });
  const executablePath = join(dir, 'chromium');
  if (!existsSync('/etc/fonts/fonts.conf')) env['FONTCONFIG_FILE'] ??= join(dir, 'fonts.conf');
  if (lacksLibraries(executablePath)) env['LD_LIBRARY_PATH'] = [join(dir, 'lib'), env['LD_LIBRARY_PATH']].filter(Boolean).join(':');
  return { executablePath, args, env, headless: true };
}

const fontsConf = `<?xml version="1.0"?>
<!DOCTYPE fontconfig SYSTEM "fonts.dtd">
<fontconfig><dir prefix="relative">fonts</dir></fontconfig>
`;

function lacksLibraries(path: string): boolean {
  try {
    return execFileSync('ldd', [path], { encoding: 'utf8' }).includes('not found');
  } catch {
    return true;
  }
}
