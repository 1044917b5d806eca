/** Every kind of source gives the same files; and what is particular to each. */
import { mkdir, mkdtemp, rm, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { dirname, join } from 'node:path';
import { afterAll, afterEach, beforeAll, describe, expect, test } from 'vitest';
import { filesSource } from '../src/model/files-source.ts';
import { folderSource } from '../src/model/folder-source.ts';
import { readJson, readText, type ModelSource } from '../src/model/source.ts';
import { hubSource, urlSource } from '../src/model/url-source.ts';
import { expectRefusal } from './check.ts';
import { serveFiles, type FileServer } from './model/file-server.ts';

const weights = Uint8Array.from({ length: 1000 }, (_, i) => i % 251);
const text = (value: string): Uint8Array => new TextEncoder().encode(value);
const files = new Map<string, Uint8Array>([
  ['config.json', text('{"model_type":"ü"}')], ['model.safetensors', weights], ['empty', new Uint8Array(0)], ['sub dir/a#b.json', text('[1]')],
  ['broken.json', text('{')], ['latin.txt', Uint8Array.of(0xfc)],
]);

let folder: string;
let server: FileServer;
let whole: FileServer;
let hub: FileServer;

beforeAll(async () => {
  folder = await mkdtemp(join(tmpdir(), 'flashmla-source-'));
  for (const [name, bytes] of files) {
    await mkdir(dirname(join(folder, name)), { recursive: true });
    await writeFile(join(folder, name), bytes);
  }
  server = await serveFiles(files);
  whole = await serveFiles(files, { ranges: false });
  hub = await serveFiles(new Map([...files].map(([name, bytes]) => [`owner/na-me.1/resolve/refs/pr/1/${name}`, bytes])));
});
afterAll(async () => {
  await rm(folder, { recursive: true });
  await Promise.all([server.close(), whole.close(), hub.close()]);
});
afterEach(() => {
  server.intercept = undefined;
});

const blob = (bytes: Uint8Array): Blob => new Blob([Uint8Array.from(bytes)]);
const kinds: readonly [name: string, make: () => ModelSource][] = [
  ['a folder', () => folderSource(folder)],
  ['chosen files', () => filesSource([...files].map(([name, bytes]) => [`My Model/${name}`, blob(bytes)] as const))],
  ['a server', () => urlSource(server.url)],
  ['a server without ranges', () => urlSource(`${whole.url}/`)],
  ['the hub', () => hubSource('owner/na-me.1@refs/pr/1', { base: hub.url })],
];

describe.each(kinds)('%s', (_, make) => {
  test('sizes and ranges', async () => {
    const source = make();
    expect(await source.size('model.safetensors')).toBe(1000);
    expect(await source.read('model.safetensors', { offset: 0, length: 1000 })).toEqual(weights);
    const part = await source.read('model.safetensors', { offset: 501, length: 8 });
    expect(part).toEqual(weights.slice(501, 509));
    // Its own buffer: a view of wider elements must be possible.
    expect([part.byteOffset, part.buffer.byteLength]).toEqual([0, 8]);
    expect(await source.read('model.safetensors', { offset: 1000, length: 0 })).toHaveLength(0);
    expect(await source.size('empty')).toBe(0);
    expect(await source.read('empty', { offset: 0, length: 0 })).toHaveLength(0);
  });

  test('text and JSON', async () => {
    const source = make();
    expect(await readText(source, 'config.json')).toBe('{"model_type":"ü"}');
    expect(await readJson(source, 'sub dir/a#b.json')).toEqual([1]);
    await expectRefusal(() => readJson(source, 'broken.json'), 'invalid-file', 'broken.json');
    await expectRefusal(() => readText(source, 'latin.txt'), 'invalid-file', 'latin.txt');
  });

  test('what is not there', async () => {
    const source = make();
    expect(await source.size('nothing.json')).toBeUndefined();
    expect(await readJson(source, 'nothing.json')).toBeUndefined();
    await expectRefusal(() => source.read('nothing.json', { offset: 0, length: 1 }), 'invalid-file');
    const ended = await expectRefusal(() => source.read('model.safetensors', { offset: 990, length: 20 }), 'invalid-file', 'model.safetensors');
    expect(ended).toMatchObject({ expected: '1010 bytes', got: '1000' });
  });

  test('a signal that fired', async () => {
    const source = make();
    const signal = AbortSignal.abort();
    await expectRefusal(() => source.size('config.json', signal), 'aborted');
    await source.size('config.json');
    await expectRefusal(() => source.read('config.json', { offset: 0, length: 2, signal }), 'aborted');
  });
});

test('a folder is no file, and a file that cannot be read is an error, not an absence', async () => {
  expect(await folderSource(folder).size('sub dir')).toBeUndefined();
  expect(await folderSource(folder).size('config.json/x')).toBeUndefined();
  await expectRefusal(() => folderSource(folder).size('x'.repeat(300)), 'invalid-file');
});

describe('chosen files', () => {
  test('the folder is the outermost with a config.json', async () => {
    const source = filesSource([
      ['models/one/original/config.json', blob(text('2'))], ['models/one/config.json', blob(text('1'))], ['models/one/original/x', blob(text('xx'))], ['models/readme', blob(text(''))],
    ]);
    expect(source.name).toBe('models/one');
    expect(await readJson(source, 'config.json')).toBe(1);
    expect(await readJson(source, 'original/config.json')).toBe(2);
    expect(await source.size('readme')).toBeUndefined();
  });

  test('File by its path in the chosen folder, else by its name', async () => {
    const chosen = Object.assign(new File(['1'], 'config.json'), { webkitRelativePath: 'm/config.json' });
    expect(filesSource([chosen])).toMatchObject({ name: 'm' });
    expect(await filesSource([new File(['123'], 'x')]).size('x')).toBe(3);
  });

  test('a file that changed on disk', async () => {
    const changed = Object.assign(blob(weights), { slice: () => ({ arrayBuffer: () => Promise.reject(new DOMException('gone', 'NotReadableError')) }) });
    await expectRefusal(() => filesSource([['x', changed]]).read('x', { offset: 0, length: 1 }), 'invalid-file', 'x');
  });
});

describe('servers', () => {
  const quick = { retryDelays: [0, 0] };

  test('only what is asked for is fetched; a whole file once', async () => {
    server.requests.length = 0;
    const source = urlSource(server.url);
    await source.read('model.safetensors', { offset: 10, length: 5 });
    await source.read('model.safetensors', { offset: 20, length: 5 });
    expect(server.requests).toEqual(['model.safetensors bytes=0-0', 'model.safetensors bytes=10-14', 'model.safetensors bytes=20-24']);
    whole.requests.length = 0;
    const other = urlSource(whole.url);
    await other.read('model.safetensors', { offset: 10, length: 5 });
    await other.read('model.safetensors', { offset: 20, length: 5 });
    expect(whole.requests).toEqual(['model.safetensors bytes=0-0']);
  });

  test('a size that is not told: the whole file', async () => {
    server.intercept = (request, response) => {
      if (request.headers.range === undefined) return false;
      response.writeHead(206).end('x');
      return true;
    };
    expect(await urlSource(server.url).read('model.safetensors', { offset: 998, length: 2 })).toEqual(weights.slice(998));
  });

  test('a page in place of what is not there', async () => {
    server.intercept = (_, response) => {
      response.writeHead(200, { 'content-type': 'text/html; charset=utf-8' }).end('<!doctype html>');
      return true;
    };
    expect(await urlSource(server.url).size('model.safetensors.index.json')).toBeUndefined();
  });

  test('tries again after 503 and a broken connection, and gives up in the end', async () => {
    let failures = 0;
    server.intercept = (_, response) => {
      if (failures++ >= 2) return false;
      if (failures === 1) response.writeHead(503).end();
      else response.writeHead(206, { 'content-range': 'bytes 0-0/1000', 'content-length': '8' }).write('x', () => response.destroy());
      return true;
    };
    expect(await urlSource(server.url, quick).read('model.safetensors', { offset: 0, length: 1 })).toEqual(weights.slice(0, 1));
    server.intercept = (_, response) => !!response.writeHead(503, 'Busy').end();
    server.requests.length = 0;
    const error = await expectRefusal(() => urlSource(server.url, quick).size('config.json'), 'invalid-file', 'config.json');
    expect(error.message).toContain('503 Busy');
    expect(server.requests).toHaveLength(3);
    server.intercept = (_, response) => !!response.destroy();
    await expectRefusal(() => urlSource(server.url, quick).size('config.json'), 'invalid-file');
  });

  test('fewer bytes than asked for', async () => {
    const source = urlSource(server.url, quick);
    await source.size('model.safetensors');
    server.intercept = (_, response) => !!response.writeHead(206, { 'content-range': 'bytes 0-1/1000' }).end('xy');
    await expectRefusal(() => source.read('model.safetensors', { offset: 0, length: 5 }), 'invalid-file', 'model.safetensors');
  });

  test('access denied says what to do; headers are sent', async () => {
    let authorization: string | undefined;
    hub.intercept = (request, response) => {
      authorization = request.headers.authorization;
      return authorization === undefined && !!response.writeHead(401).end();
    };
    const error = await expectRefusal(() => hubSource('owner/na-me.1', { base: hub.url }).size('config.json'), 'invalid-file', 'config.json');
    expect(error.fix).toContain('authorization');
    expect(await hubSource('owner/na-me.1@refs/pr/1', { base: `${hub.url}/`, headers: { authorization: 'Bearer x' } }).size('config.json')).toBe(19);
    expect(authorization).toBe('Bearer x');
    hub.intercept = undefined;
  });

  test('a signal stops a transfer, and a wait before a new try', async () => {
    const source = urlSource(server.url);
    await source.size('model.safetensors');
    const stall = new AbortController();
    server.intercept = (_, response) => {
      response.writeHead(206, { 'content-range': 'bytes 0-99/1000', 'content-length': '100' }).write('x', () => stall.abort());
      return true;
    };
    await expectRefusal(() => source.read('model.safetensors', { offset: 0, length: 100, signal: stall.signal }), 'aborted', 'model.safetensors');
    const wait = new AbortController();
    server.intercept = (_, response) => {
      response.writeHead(503).end(() => setTimeout(() => wait.abort(), 20));
      return true;
    };
    await expectRefusal(() => urlSource(server.url, { retryDelays: [60_000] }).size('x', wait.signal), 'aborted');
  });

  test.each(['owner', 'owner/name/more', '../name', 'owner/name@', 'https://x/y'])('%s is no name of a model', async (name) => {
    await expectRefusal(() => hubSource(name).size('config.json'), 'invalid-argument', 'repository');
  });
});
