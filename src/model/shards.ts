/** Which tensors a checkpoint has and where: one safetensors file, or shards with an index. Reads headers only. */
import { MlaError, describe } from '../errors.ts';
import { parseSafetensorsHeader, safetensorsHeaderBytes, type SafetensorsEntry, type SafetensorsHeader } from '../safetensors.ts';
import { Fields } from './fields.ts';
import { readJson, type ModelSource } from './source.ts';

export const SINGLE_FILE = 'model.safetensors';
export const INDEX_FILE = 'model.safetensors.index.json';

/** Bytes of a first read, which most headers fit into. */
const FIRST_READ = 256 << 10;
/** Headers read at a time: each is a round trip to a server. */
const AT_ONCE = 6;

export interface CheckpointEntry extends SafetensorsEntry {
  readonly file: string;
}

/** @throws MlaError invalid-file, naming the file and the tensor at fault; aborted */
export async function readEntries(source: ModelSource, signal?: AbortSignal): Promise<Map<string, CheckpointEntry>> {
  const index = await readJson(source, INDEX_FILE, signal);
  if (index !== undefined) return readSharded(source, parseIndex(index), signal);
  const header = await readHeader(source, SINGLE_FILE, signal);
  if (header === undefined) {
    throw new MlaError('invalid-file', `${source.name} holds no checkpoint`, { argument: SINGLE_FILE, expected: `${SINGLE_FILE}, or shards and ${INDEX_FILE}`, got: 'neither' });
  }
  return new Map([...header.tensors].map(([name, entry]) => [name, { ...entry, file: SINGLE_FILE }]));
}

async function readSharded(source: ModelSource, shardOf: ReadonlyMap<string, string>, signal?: AbortSignal): Promise<Map<string, CheckpointEntry>> {
  const files = [...new Set(shardOf.values())];
  const headers = new Map<string, SafetensorsHeader>();
  const queue = files.values();
  await Promise.all(Array.from({ length: AT_ONCE }, async () => {
    for (const file of queue) {
      const header = await readHeader(source, file, signal);
      if (header === undefined) throw new MlaError('invalid-file', `is missing: ${INDEX_FILE} names it`, { argument: file, expected: `${files.length} shards` });
      headers.set(file, header);
    }
  }));
  return new Map([...shardOf].map(([name, file]) => {
    const entry = headers.get(file)!.tensors.get(name);
    if (entry === undefined) throw new MlaError('invalid-file', `has no tensor ${JSON.stringify(name)}, which ${INDEX_FILE} puts there`, { argument: file });
    return [name, { ...entry, file }];
  }));
}

/** Tensor -> shard. */
function parseIndex(json: unknown): Map<string, string> {
  const map = new Fields(json, INDEX_FILE).object('weight_map');
  if (map === undefined) throw new MlaError('invalid-file', 'has no weight_map', { argument: INDEX_FILE });
  const entries = map.entries();
  for (const [name, file] of entries) {
    // Names come from a download: none may lead out of the model's folder.
    if (typeof file !== 'string' || !/^[\w.-]+(\/[\w.-]+)*$/.test(file) || file.split('/').includes('..')) {
      throw new MlaError('invalid-file', `weight_map has a bad file for ${JSON.stringify(name)}`, { argument: INDEX_FILE, expected: 'the name of a shard', got: describe(file) });
    }
  }
  return new Map(entries as [string, string][]);
}

async function readHeader(source: ModelSource, file: string, signal?: AbortSignal): Promise<SafetensorsHeader | undefined> {
  const size = await source.size(file, signal);
  if (size === undefined) return undefined;
  let bytes = await source.read(file, { offset: 0, length: Math.min(size, FIRST_READ), signal });
  const length = safetensorsHeaderBytes(bytes, size, file);
  if (length > bytes.length) bytes = await source.read(file, { offset: 0, length, signal });
  return parseSafetensorsHeader(bytes, size, file);
}
