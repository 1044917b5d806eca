/** `flashmla-web decode`: attention over tensors of a safetensors file, into a safetensors file. */
import { describe, MlaError, shapeText } from '../errors.ts';
import type { DecodeArgs, DecodeResult, HostTensor, Mla } from '../mla.ts';
import { layoutSafetensors, type SafetensorsDType, type SafetensorsEntry } from '../safetensors.ts';
import { checkDecode } from '../validate.ts';
import { openMla, type Context, type MlaChoice } from './context.ts';
import { usageError } from './failure.ts';
import { MLA_OPTIONS, Options } from './options.ts';
import { checkOutputs, writeOutput } from './output-file.ts';
import { SafetensorsFile } from './safetensors-file.ts';
import { figure } from './stats.ts';

export const DECODE_USAGE = `Usage: flashmla-web decode in.safetensors -o out.safetensors [options]

Reads tensors named exactly q [b, s_q, h_q, d_qk], kv_cache [num_blocks, block_size, h_kv, d_qk] (BF16, F16 or
F32, which is rounded to bf16), block_table [b, max_blocks_per_seq] and cache_seqlens [b] (I32). Writes
out [b, s_q, h_q, d_v] in the type of q (BF16 when that was F32) and lse [b, h_q, s_q] (F32).

  -o, --output FILE       where to write
      --backend NAME      auto (default), cuda, webgpu or cpu
      --tier NAME         webgpu: kernel tier
      --dawn TOGGLES      webgpu: toggles for Dawn in place of the usual ones, as one argument
      --causal            query i of s_q sees keys 0 .. seqlen - s_q + i
      --softmax-scale S   d_qk^-0.5 when absent
      --head-dim-v N      512 when absent
      --json              say what was done as JSON

Exit status: 0 done, 2 bad input, 1 any other failure. A failure leaves one line on stderr and no output file.
`;

const FLOATS: readonly SafetensorsDType[] = ['BF16', 'F16', 'F32'];
/** The API's names of what the file calls otherwise. */
const FILE_NAMES: Readonly<Record<string, string>> = { kvCache: 'kv_cache', blockTable: 'block_table', cacheSeqlens: 'cache_seqlens' };

interface Inputs {
  readonly q: HostTensor;
  readonly kvCache: HostTensor;
  readonly blockTable: HostTensor;
  readonly cacheSeqlens: HostTensor;
}

/** @throws MlaError */
export async function decode(args: readonly string[], context: Context): Promise<number> {
  const options = new Options(args, {
    ...MLA_OPTIONS,
    output: { type: 'string', short: 'o' },
    causal: { type: 'boolean' },
    'softmax-scale': { type: 'string' },
    'head-dim-v': { type: 'string' },
    json: { type: 'boolean' },
  });
  if (options.flag('help')) {
    context.stdout.write(DECODE_USAGE);
    return 0;
  }
  const [input, ...rest] = options.positionals;
  if (input === undefined || rest.length > 0) {
    throw usageError('takes one input file', 'decode', 'in.safetensors -o out.safetensors', describe(options.positionals));
  }
  const output = options.text('output');
  if (output === undefined) throw usageError('is missing', '--output', 'a file name after -o');
  const headDimV = options.integer('head-dim-v', 1) ?? 512;
  const softmaxScale = options.number('softmax-scale');
  const choice: MlaChoice = { ...options.mla(), tune: 'stored' };
  await checkOutputs({ '--output': output }, { 'the input': input });
  const decodeArgs: DecodeArgs = {
    ...(await readInputs(input)), headDimV, causal: options.flag('causal'), ...(softmaxScale !== undefined && { softmaxScale }),
  };
  // Here too, so that bad input is known before a driver is loaded that may have things of its own to say.
  inFileNames(() => checkDecode(decodeArgs));

  const mla = await openMla(context, choice);
  try {
    let result: DecodeResult | undefined;
    const { ms, source } = await mla.time(async () => {
      result = await mla.flashMlaWithKvCache(decodeArgs);
    });
    await writeResult(output, result!);
    context.stdout.write(options.flag('json') ? jsonReport(mla, result!, ms, source, output) : textReport(mla, result!, ms, source, output));
    return 0;
  } finally {
    await mla.destroy();
  }
}

async function readInputs(path: string): Promise<Inputs> {
  const file = await SafetensorsFile.open(path);
  try {
    const entries = {
      q: find(file, 'q', FLOATS, 4),
      kvCache: find(file, 'kv_cache', FLOATS, 4),
      blockTable: find(file, 'block_table', ['I32'], 2),
      cacheSeqlens: find(file, 'cache_seqlens', ['I32'], 1),
    };
    return {
      q: await load(file, entries.q),
      kvCache: await load(file, entries.kvCache),
      blockTable: await load(file, entries.blockTable),
      cacheSeqlens: await load(file, entries.cacheSeqlens),
    };
  } finally {
    await file.close();
  }
}

function find(file: SafetensorsFile, name: string, dtypes: readonly SafetensorsDType[], rank: number): SafetensorsEntry {
  const found = file.header.tensors.get(name);
  if (found === undefined) {
    const names = [...file.header.tensors.keys()];
    throw new MlaError('invalid-file', `has no tensor ${name}`, { argument: file.path, expected: 'q, kv_cache, block_table and cache_seqlens', got: describe(names) });
  }
  if (!dtypes.includes(found.dtype)) {
    throw new MlaError('invalid-file', `tensor ${name} has the wrong dtype`, { argument: file.path, expected: dtypes.join(' or '), got: found.dtype });
  }
  if (found.shape.length !== rank) {
    throw new MlaError('invalid-file', `tensor ${name} has the wrong rank`, { argument: file.path, expected: `${rank} dimensions`, got: shapeText(found.shape) });
  }
  return found;
}

async function load(file: SafetensorsFile, entry: SafetensorsEntry): Promise<HostTensor> {
  const { dtype, shape } = entry;
  const { buffer } = await file.read(entry);
  switch (dtype) {
    case 'I32': return { data: new Int32Array(buffer), shape, dtype: 'i32' };
    case 'F32': return { data: new Float32Array(buffer), shape, dtype: 'bf16' };
    case 'BF16': return { data: new Uint16Array(buffer), shape, dtype: 'bf16' };
    case 'F16': return { data: new Uint16Array(buffer), shape, dtype: 'f16' };
    default: throw new MlaError('internal', `cannot load ${dtype}`, { argument: entry.name });
  }
}

async function writeResult(path: string, { out, lse }: DecodeResult): Promise<void> {
  const bits: Record<string, ArrayBufferView> = { out: await out.readBits(), lse: await lse.readBits() };
  const { header, entries } = layoutSafetensors([
    ['out', { dtype: out.dtype === 'f16' ? 'F16' : 'BF16', shape: out.shape }],
    ['lse', { dtype: 'F32', shape: lse.shape }],
  ]);
  const bytes = entries.map(({ name }) => {
    const { buffer, byteOffset, byteLength } = bits[name]!;
    return new Uint8Array(buffer, byteOffset, byteLength);
  });
  await writeOutput(path, [header, ...bytes]);
}

function jsonReport({ info }: Mla, { out, lse }: DecodeResult, ms: number, source: string, output: string): string {
  const tensor = ({ dtype, shape }: DecodeResult['out']) => ({ dtype, shape });
  const { backend, device, tier = null, reason, kernelNotes: notes = [] } = info;
  return `${JSON.stringify({ output, backend, device, tier, reason, notes, ms, source, out: tensor(out), lse: tensor(lse) })}\n`;
}

function textReport({ info }: Mla, { out, lse }: DecodeResult, ms: number, source: string, output: string): string {
  const tier = info.tier === undefined ? '' : `, ${info.tier} tier`;
  return `${output}: out ${out.dtype} ${shapeText(out.shape)}, lse f32 ${shapeText(lse.shape)}\n`
    + `${info.backend}${tier} on ${info.device}: ${figure(ms)} ms (${source} time)\n`
    + (info.kernelNotes ?? []).map((note) => `${note}\n`).join('');
}

/** Runs `check`; what it throws has the file's names of tensors in its message. */
function inFileNames(check: () => unknown): void {
  try {
    check();
  } catch (error) {
    if (!(error instanceof MlaError)) throw error;
    const message = error.message.replace(/\b(kvCache|blockTable|cacheSeqlens)\b/g, (name) => FILE_NAMES[name]!);
    throw Object.assign(MlaError.fromJSON({ ...error.toJSON(), message }), { cause: error });
  }
}
