/**
 * The peer: TensorFlow.js WebGPU, installed apart from this package's own dependencies, and the ways in which its
 * user would write this attention: unfused matMul, softmax, matMul over contiguous f32 KV.
 */
import { execFileSync } from 'node:child_process';
import { existsSync, mkdirSync, readFileSync } from 'node:fs';
import { createRequire } from 'node:module';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';

export const TFJS_VERSION = '4.22.0';
const PACKAGES = ['@tensorflow/tfjs-core', '@tensorflow/tfjs-backend-webgpu'];
const FOLDER = fileURLToPath(new URL('../../node_modules/.cache/flashmla-web/peers', import.meta.url));

/** As much of tfjs-core as is used here; its own types are there only after the install. */
export interface TfTensor {
  readonly shape: number[];
  data(): Promise<Float32Array>;
  dispose(): void;
}

interface Tfjs {
  tensor(values: Float32Array, shape: number[]): TfTensor;
  matMul(a: TfTensor, b: TfTensor, transposeA?: boolean, transposeB?: boolean): TfTensor;
  softmax(logits: TfTensor): TfTensor;
  add(a: TfTensor, b: TfTensor): TfTensor;
  slice(x: TfTensor, begin: number[], size: number[]): TfTensor;
  tidy<T>(run: () => T): T;
  memory(): { numTensors: number };
  findBackendFactory(name: string): unknown;
  removeBackend(name: string): void;
  registerBackend(name: string, factory: () => unknown): boolean;
  setBackend(name: string): Promise<boolean>;
}

interface TfjsWebGpu {
  readonly WebGPUBackend: new (device: GPUDevice, info: GPUAdapterInfo) => unknown;
}

/** The exact versions, once; later runs need no network. */
export function installTfjs(): void {
  const has = (name: string): boolean => {
    const manifest = join(FOLDER, 'node_modules', name, 'package.json');
    return existsSync(manifest) && (JSON.parse(readFileSync(manifest, 'utf8')) as { version: string }).version === TFJS_VERSION;
  };
  if (PACKAGES.every(has)) return;
  console.error(`installing TensorFlow.js ${TFJS_VERSION} into ${FOLDER}`);
  mkdirSync(FOLDER, { recursive: true });
  const args = ['install', '--prefix', FOLDER, '--no-save', '--no-audit', '--no-fund', ...PACKAGES.map((name) => `${name}@${TFJS_VERSION}`)];
  // npm is a script on Windows, which only a shell starts.
  execFileSync('npm', args, { stdio: ['ignore', 'inherit', 'inherit'], shell: process.platform === 'win32' });
}

/** Limits that its own factory asks for; `timestamp-query` is left out, which spares it the bookkeeping. */
const LIMITS = [
  'maxComputeWorkgroupStorageSize', 'maxComputeWorkgroupsPerDimension', 'maxStorageBufferBindingSize',
  'maxBufferSize', 'maxComputeWorkgroupSizeX', 'maxComputeInvocationsPerWorkgroup',
] as const;

/** TensorFlow.js on a device of its own. It looks for WebGPU's globals and `navigator.gpu`, which Node lacks. */
export async function loadTfjs(gpu: GPU): Promise<{ tf: Tfjs; device: GPUDevice }> {
  installTfjs();
  const { globals } = await import('webgpu');
  Object.assign(globalThis, globals);
  const navigator = (globalThis as { navigator?: object }).navigator;
  if (navigator === undefined) Object.defineProperty(globalThis, 'navigator', { value: { gpu }, configurable: true });
  else Object.defineProperty(navigator, 'gpu', { value: gpu, configurable: true });

  const adapter = await gpu.requestAdapter({ powerPreference: 'high-performance' });
  if (adapter === null) throw new Error('no adapter for TensorFlow.js');
  const device = await adapter.requestDevice({
    label: 'tfjs',
    requiredLimits: Object.fromEntries(LIMITS.map((name) => [name, adapter.limits[name]])),
  });
  const require = createRequire(join(FOLDER, 'package.json'));
  const tf = require(PACKAGES[0]!) as Tfjs;
  const { WebGPUBackend } = require(PACKAGES[1]!) as TfjsWebGpu;
  if (tf.findBackendFactory('webgpu')) tf.removeBackend('webgpu');
  tf.registerBackend('webgpu', () => new WebGPUBackend(device, adapter.info));
  if (!(await tf.setBackend('webgpu'))) throw new Error('TensorFlow.js refused its WebGPU backend');
  return { tf, device };
}

/** One decode problem, contiguous, s_q = h_kv = 1. */
export interface Contiguous {
  readonly hQ: number;
  readonly dQk: number;
  readonly dV: number;
  readonly seqlens: readonly number[];
  /** [b, h_q, d_qk], softmax scale not applied. */
  readonly q: Float32Array;
  /** A sequence's [s, d_qk]. */
  readonly kv: readonly Float32Array[];
}

/** One way to write the attention. */
export interface Formulation {
  readonly name: string;
  /** Enqueues it. One [h_q, d_v] a sequence, or one [b, h_q, d_v] for all. Call it in a tidy. */
  readonly run: () => TfTensor[];
  dispose(): void;
}

/**
 * The candidates. All get for free what would be prepared once: Q scaled, V a contiguous tensor of its own (a user
 * who slices V out of KV pays a copy each step), K stored transposed where that is the variant, the padding, the mask.
 */
export function formulations(tf: Tfjs, problem: Contiguous): (() => Formulation)[] {
  const { hQ, dQk, dV, seqlens } = problem;
  const b = seqlens.length;
  const longest = Math.max(...seqlens);
  const q = problem.q.map((x) => x * dQk ** -0.5);

  /** `sequences` in one tensor, padded to `rows`; rank 2 when there is one. */
  const operands = (sequences: readonly number[], rows: number, transposeK: boolean) => {
    const batch = sequences.length === 1 ? [] : [sequences.length];
    const all = (a: Float32Array[]): Float32Array => {
      const result = new Float32Array(a.reduce((n, x) => n + x.length, 0));
      a.reduce((at, x) => (result.set(x, at), at + x.length), 0);
      return result;
    };
    const kv = sequences.map((s) => problem.kv[s]!);
    const k = all(kv.map((x) => (transposeK ? columns(x, dQk, rows) : take(x, dQk, dQk, rows))));
    return {
      q: tf.tensor(all(sequences.map((s) => q.slice(s * hQ * dQk, (s + 1) * hQ * dQk))), [...batch, hQ, dQk]),
      k: tf.tensor(k, [...batch, ...(transposeK ? [dQk, rows] : [rows, dQk])]),
      v: tf.tensor(all(kv.map((x) => take(x, dQk, dV, rows))), [...batch, rows, dV]),
    };
  };

  const perSequence = (transposeK: boolean) => (): Formulation => {
    const inputs = seqlens.map((length, s) => operands([s], length, transposeK));
    return {
      name: `${b > 1 ? 'per sequence, ' : ''}${transposeK ? 'K stored transposed' : 'K transposed by matMul'}`,
      run: () => inputs.map((i) => tf.matMul(tf.softmax(tf.matMul(i.q, i.k, false, !transposeK)), i.v)),
      dispose: () => inputs.forEach((i) => [i.q, i.k, i.v].forEach((t) => t.dispose())),
    };
  };

  const batched = (transposeK: boolean) => (): Formulation => {
    const i = operands(seqlens.map((_, s) => s), longest, transposeK);
    const ragged = seqlens.some((length) => length !== longest);
    const mask = ragged ? tf.tensor(Float32Array.from({ length: b * longest }, (_, n) => (n % longest < seqlens[Math.floor(n / longest)]! ? 0 : -1e9)), [b, 1, longest]) : undefined;
    return {
      name: `${ragged ? 'padded and masked' : 'batched'}, ${transposeK ? 'K stored transposed' : 'K transposed by matMul'}`,
      run: () => {
        const scores = tf.matMul(i.q, i.k, false, !transposeK);
        return [tf.matMul(tf.softmax(mask ? tf.add(scores, mask) : scores), i.v)];
      },
      dispose: () => [i.q, i.k, i.v, mask].forEach((t) => t?.dispose()),
    };
  };

  return [false, true].flatMap((transposeK) => (b > 1 ? [perSequence(transposeK), batched(transposeK)] : [perSequence(transposeK)]));
}

/** `calls` times over, then waits for the last by reading one element. Milliseconds a call. */
export async function timeTfjs(tf: Tfjs, formulation: Formulation, calls: number): Promise<number> {
  const start = performance.now();
  let outs: TfTensor[] = [];
  for (let i = 0; i < calls; i++) {
    outs.forEach((t) => t.dispose());
    outs = tf.tidy(formulation.run);
  }
  const last = outs.at(-1)!;
  const element = tf.slice(last, last.shape.map(() => 0), last.shape.map(() => 1));
  await element.data();
  const ms = (performance.now() - start) / calls;
  for (const t of [element, ...outs]) t.dispose();
  return ms;
}

/**
 * The candidates that may turn out quickest: by the best of three runs each, warm, those within half as much again of
 * the first. A few runs on a busy machine do not tell more than that. The others are given back.
 */
export async function contenders(tf: Tfjs, candidates: (() => Formulation)[], calls: number): Promise<Formulation[]> {
  const trials: { formulation: Formulation; ms: number }[] = [];
  for (const make of candidates) {
    const formulation = make();
    await timeTfjs(tf, formulation, 1);
    const runs: number[] = [];
    for (let i = 0; i < 3; i++) runs.push(await timeTfjs(tf, formulation, calls));
    trials.push({ formulation, ms: Math.min(...runs) });
    const quickest = Math.min(...trials.map((t) => t.ms));
    for (let i = trials.length - 1; i >= 0; i--) if (trials[i]!.ms > 1.5 * quickest) trials.splice(i, 1)[0]!.formulation.dispose();
  }
  return trials.map((t) => t.formulation);
}

/** [b, h_q, d_v] */
export async function resultTfjs(tf: Tfjs, formulation: Formulation, problem: Contiguous): Promise<Float32Array> {
  const outs = tf.tidy(formulation.run);
  const each = (problem.seqlens.length / outs.length) * problem.hQ * problem.dV;
  const result = new Float32Array(outs.length * each);
  for (const [i, out] of outs.entries()) {
    result.set(await out.data(), i * each);
    out.dispose();
  }
  return result;
}

/** The first `width` numbers of each row of [s, d], zero rows added up to `rows`. */
function take(x: Float32Array, d: number, width: number, rows: number): Float32Array {
  const result = new Float32Array(rows * width);
  for (let t = 0; t * d < x.length; t++) result.set(x.subarray(t * d, t * d + width), t * width);
  return result;
}

/** [s, d] as [d, rows]. */
function columns(x: Float32Array, d: number, rows: number): Float32Array {
  const result = new Float32Array(rows * d);
  for (let i = 0; i < x.length; i++) result[(i % d) * rows + Math.floor(i / d)] = x[i]!;
  return result;
}
