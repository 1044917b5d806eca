/** The safetensors reader and writer: what is written reads back, and no malformed header gets through. */
import fc from 'fast-check';
import { describe, expect, it } from 'vitest';
import { MlaError } from '../src/errors.ts';
import {
  SAFETENSORS_DTYPE_BYTES, SAFETENSORS_MAX_HEADER, layoutSafetensors, parseSafetensorsHeader, readSafetensors,
  safetensorsHeaderBytes, writeSafetensors, type SafetensorsDType, type SafetensorsTensor,
} from '../src/safetensors.ts';

/** A file with this header and `dataBytes` bytes of data. */
function fileOf(header: string | Uint8Array, dataBytes = 0): Uint8Array {
  const json = typeof header === 'string' ? new TextEncoder().encode(header) : header;
  const file = new Uint8Array(8 + json.length + dataBytes);
  new DataView(file.buffer).setBigUint64(0, BigInt(json.length), true);
  file.set(json, 8);
  return file;
}

function tensor(dtype: string, shape: unknown, begin: unknown, end: unknown): object {
  return { dtype, shape, data_offsets: [begin, end] };
}

function errorOf(run: () => unknown): MlaError {
  try {
    run();
  } catch (error) {
    expect(error).toBeInstanceOf(MlaError);
    return error as MlaError;
  }
  throw new Error('nothing was thrown');
}

describe('reading and writing', () => {
  it('reads a file made by the reference implementation', () => {
    // safetensors.numpy.save({'a': arange(3, dtype=int32), 'b': float16(1.5)}, metadata={'k': 'v'})
    const header = '{"__metadata__":{"k":"v"},"a":{"dtype":"I32","shape":[3],"data_offsets":[0,12]},"b":{"dtype":"F16","shape":[],"data_offsets":[12,14]}}  ';
    const file = fileOf(header, 14);
    const start = 8 + header.length;
    file.set([0, 0, 0, 0, 1, 0, 0, 0, 2, 0, 0, 0, 0x00, 0x3e], start);
    const { tensors, metadata } = readSafetensors(file);
    expect([...metadata]).toEqual([['k', 'v']]);
    expect([...tensors.keys()]).toEqual(['a', 'b']);
    expect(tensors.get('a')).toMatchObject({ dtype: 'I32', shape: [3] });
    expect([...new Int32Array(tensors.get('a')!.data.slice().buffer)]).toEqual([0, 1, 2]);
    expect(tensors.get('b')).toMatchObject({ dtype: 'F16', shape: [], data: Uint8Array.of(0x00, 0x3e) });
  });

  it('writes headers padded to 8 bytes with spaces, and tensors aligned to their elements', () => {
    const { header, entries, fileSize } = layoutSafetensors([
      ['bytes', { dtype: 'U8', shape: [3] }], ['wide', { dtype: 'F64', shape: [1] }], ['half', { dtype: 'BF16', shape: [1, 1] }],
    ]);
    expect(header.length % 8).toBe(0);
    expect(new TextDecoder().decode(header.subarray(8))).toMatch(/^\{.*\} *$/);
    expect(entries.map(({ name }) => name)).toEqual(['wide', 'half', 'bytes']);
    for (const { offset, dtype } of entries) expect(offset % SAFETENSORS_DTYPE_BYTES[dtype]).toBe(0);
    expect(fileSize).toBe(header.length + 8 + 2 + 3);
  });

  const dtypes = Object.keys(SAFETENSORS_DTYPE_BYTES) as SafetensorsDType[];
  const anyTensor: fc.Arbitrary<SafetensorsTensor> = fc
    .record({ dtype: fc.constantFrom(...dtypes), shape: fc.array(fc.nat({ max: 4 }), { maxLength: 4 }), fill: fc.nat({ max: 255 }) })
    .map(({ dtype, shape, fill }) => {
      const bytes = shape.reduce((n, d) => n * d, 1) * SAFETENSORS_DTYPE_BYTES[dtype];
      return { dtype, shape, data: Uint8Array.from({ length: bytes }, (_, i) => (fill + 31 * i) & 255) };
    });
  const anyName = fc.oneof(fc.string({ unit: 'grapheme' }), fc.constantFrom('__proto__', 'constructor', 'toString', '', '0', '"', 'a:{}[]\\"'))
    .filter((name) => name !== '__metadata__');

  it('round trips any tensors and metadata', () => {
    fc.assert(fc.property(
      fc.uniqueArray(fc.tuple(anyName, anyTensor), { selector: ([name]) => name, maxLength: 8 }),
      fc.uniqueArray(fc.tuple(fc.string({ unit: 'grapheme' }), fc.string({ unit: 'grapheme' })), { selector: ([key]) => key, maxLength: 3 }),
      (tensors, metadata) => {
        const read = readSafetensors(writeSafetensors(new Map(tensors), metadata));
        expect(new Map(read.metadata)).toEqual(new Map(metadata));
        expect(read.tensors).toEqual(new Map(tensors));
      },
    ));
  });

  it('parses a header from the first bytes of a file larger than any buffer', () => {
    const bytes = 2 ** 43;
    const { header, entries, fileSize } = layoutSafetensors([['big', { dtype: 'BF16', shape: [2 ** 20, 2 ** 22] }], ['after', { dtype: 'BOOL', shape: [5] }]]);
    expect(fileSize).toBe(header.length + bytes + 5);
    expect(safetensorsHeaderBytes(header.subarray(0, 8), fileSize)).toBe(header.length);
    const parsed = parseSafetensorsHeader(header, fileSize);
    expect([...parsed.tensors.values()].sort((x, y) => x.offset - y.offset)).toEqual(entries);
    expect(parsed.tensors.get('after')!.offset).toBe(header.length + bytes);
  });

  it('keeps names that objects already have', () => {
    const file = writeSafetensors(new Map([['__proto__', { dtype: 'U8', shape: [1], data: Uint8Array.of(7) }]]), [['__proto__', 'x']]);
    const { tensors, metadata } = readSafetensors(file);
    expect(tensors.get('__proto__')!.data).toEqual(Uint8Array.of(7));
    expect(metadata.get('__proto__')).toBe('x');
    expect(({} as { dtype?: unknown }).dtype).toBeUndefined();
    expect(tensors.get('toString')).toBeUndefined();
  });

  it('takes an empty file of tensors and tensors without elements', () => {
    expect(readSafetensors(fileOf('{}')).tensors.size).toBe(0);
    const header = JSON.stringify({ none: tensor('F32', [0, 3], 4, 4), one: tensor('F32', [1], 0, 4), first: tensor('U8', [0], 0, 0) });
    expect([...readSafetensors(fileOf(header, 4)).tensors.keys()]).toEqual(['none', 'one', 'first']);
  });

  it('refuses to write what the format cannot hold', () => {
    const one = { dtype: 'U8', shape: [1], data: new Uint8Array(1) } as const;
    expect(errorOf(() => writeSafetensors(new Map([['__metadata__', one]]))).code).toBe('invalid-argument');
    expect(errorOf(() => writeSafetensors(new Map([['a', { ...one, data: new Uint8Array(2) }]]))).message).toContain('expected 1 bytes, got 2');
    expect(errorOf(() => writeSafetensors(new Map([['a', { ...one, shape: [-1] }]]))).code).toBe('invalid-shape');
    expect(errorOf(() => writeSafetensors(new Map([['a', { ...one, dtype: 'toString' as 'U8' }]]))).code).toBe('invalid-dtype');
    expect(errorOf(() => layoutSafetensors([['a', one], ['a', one]])).message).toContain('"a"');
  });
});

describe('malformed files', () => {
  const f32 = tensor('F32', [2], 0, 8);
  const two = (x: object, y: object): string => JSON.stringify({ x, y });
  const length = (bytes: bigint): Uint8Array => {
    const file = fileOf('{}');
    new DataView(file.buffer).setBigUint64(0, bytes, true);
    return file;
  };
  // What is wrong, the file, and what the message must say.
  const cases: readonly (readonly [string, Uint8Array, string])[] = [
    ['an empty file', new Uint8Array(0), 'too short'],
    ['seven bytes', new Uint8Array(7), 'too short'],
    ['a header longer than the file', length(3n), 'truncated'],
    ['a header longer than the cap', length(BigInt(SAFETENSORS_MAX_HEADER) + 1n), 'beyond the limit'],
    ['a header length of 2^64 - 1', length(2n ** 64n - 1n), 'beyond the limit'],
    ['a header length that wraps in 32 bits', length(2n ** 32n + 2n), 'beyond the limit'],
    ['no header', fileOf(''), 'does not start with {'],
    ['a header that is not UTF-8', fileOf(Uint8Array.of(0x7b, 0xff, 0x7d)), 'not UTF-8'],
    ['a byte order mark', fileOf('\ufeff{}'), 'does not start with {'],
    ['spaces before the header', fileOf(' {}'), 'does not start with {'],
    ['a header that is not JSON', fileOf('{"x":'), 'not JSON'],
    ['an array', fileOf('[]'), 'does not start with {'],
    ['a number', fileOf('1'), 'does not start with {'],
    ['text after the header', fileOf('{}x'), 'not JSON'],
    ['a tensor twice', fileOf(`{"x":${JSON.stringify(f32)},"x":${JSON.stringify(f32)}}`, 8), 'key twice'],
    ['a tensor twice, once escaped', fileOf(`{"x":${JSON.stringify(f32)},"\\u0078":${JSON.stringify(f32)}}`, 8), 'key twice'],
    ['a field twice', fileOf('{"x":{"dtype":"U8","dtype":"I8","shape":[0],"data_offsets":[0,0]}}'), 'key twice; expected unique names, got "dtype"'],
    ['metadata that is no object', fileOf('{"__metadata__":[]}'), '__metadata__'],
    ['metadata that is null', fileOf('{"__metadata__":null}'), '__metadata__'],
    ['metadata that is no string', fileOf('{"__metadata__":{"k":1}}'), '"k"'],
    ['a tensor that is a string', fileOf('{"x":"F32"}'), 'tensor "x"'],
    ['a tensor that is an array', fileOf('{"x":[]}'), 'tensor "x"'],
    ['a tensor that is null', fileOf('{"x":null}'), 'tensor "x"'],
    ['no dtype', fileOf('{"x":{"shape":[2],"data_offsets":[0,8]}}', 8), 'unknown dtype'],
    ['an unknown dtype', fileOf(JSON.stringify({ x: tensor('F31', [2], 0, 8) }), 8), '"F31"'],
    ['a dtype of another case', fileOf(JSON.stringify({ x: tensor('f32', [2], 0, 8) }), 8), '"f32"'],
    ['a dtype that objects have', fileOf(JSON.stringify({ x: tensor('constructor', [2], 0, 8) }), 8), 'unknown dtype'],
    ['no shape', fileOf('{"x":{"dtype":"F32","data_offsets":[0,8]}}', 8), 'bad shape'],
    ['a negative dimension', fileOf(JSON.stringify({ x: tensor('F32', [-2], 0, 8) }), 8), '[-2]'],
    ['a minus zero', fileOf('{"x":{"dtype":"F32","shape":[-0],"data_offsets":[0,0]}}'), 'bad shape'],
    ['a fractional dimension', fileOf(JSON.stringify({ x: tensor('F32', [0.5, 4], 0, 8) }), 8), '[0.5, 4]'],
    ['a dimension that is text', fileOf(JSON.stringify({ x: tensor('F32', ['2'], 0, 8) }), 8), '["2"]'],
    ['a dimension past 2^53', fileOf('{"x":{"dtype":"F32","shape":[9007199254740993],"data_offsets":[0,8]}}', 8), 'bad shape'],
    ['a shape whose product overflows', fileOf(JSON.stringify({ x: tensor('F32', [2 ** 40, 2 ** 40], 0, 8) }), 8), 'too large'],
    ['no offsets', fileOf('{"x":{"dtype":"F32","shape":[2]}}', 8), 'bad data_offsets'],
    ['one offset', fileOf('{"x":{"dtype":"F32","shape":[2],"data_offsets":[0]}}', 8), 'bad data_offsets'],
    ['three offsets', fileOf('{"x":{"dtype":"F32","shape":[2],"data_offsets":[0,8,8]}}', 8), 'bad data_offsets'],
    ['a negative offset', fileOf(JSON.stringify({ x: tensor('F32', [2], -8, 0) }), 8), 'bad data_offsets'],
    ['a fractional offset', fileOf(JSON.stringify({ x: tensor('F32', [2], 0.5, 8.5) }), 16), 'bad data_offsets'],
    ['offsets that run backwards', fileOf(JSON.stringify({ x: tensor('F32', [2], 8, 0) }), 8), 'backwards'],
    ['a truncated tensor', fileOf(JSON.stringify({ x: f32 }), 7), 'past the end of the file'],
    ['an offset far outside', fileOf(JSON.stringify({ x: tensor('F32', [2], 2 ** 52, 2 ** 52 + 8) }), 8), 'past the end of the file'],
    ['a range too short for the shape', fileOf(JSON.stringify({ x: tensor('F32', [3], 0, 8) }), 8), 'expected 12 bytes, got 8'],
    ['a range too long for the shape', fileOf(JSON.stringify({ x: tensor('F32', [1], 0, 8) }), 8), 'expected 4 bytes, got 8'],
    ['two tensors in one place', fileOf(two(f32, f32), 8), 'tensor "y" overlaps tensor "x"'],
    ['two tensors that overlap', fileOf(two(f32, tensor('F32', [2], 4, 12)), 12), 'tensor "y" overlaps tensor "x"'],
    ['a tensor inside another', fileOf(two(tensor('U8', [8], 0, 8), tensor('U8', [1], 3, 4)), 8), 'tensor "y" overlaps tensor "x"'],
    ['an empty tensor inside another', fileOf(two(tensor('U8', [8], 0, 8), tensor('U8', [0], 3, 3)), 8), 'tensor "y" overlaps tensor "x"'],
    ['a hole before the first tensor', fileOf(JSON.stringify({ x: tensor('F32', [2], 4, 12) }), 12), 'hole after the header'],
    ['a hole between tensors', fileOf(two(f32, tensor('F32', [1], 12, 16)), 16), 'tensor "y" leaves a hole after tensor "x"'],
    ['bytes after the last tensor', fileOf(JSON.stringify({ x: f32 }), 9), 'no tensor owns'],
    ['bytes and no tensor', fileOf('{}', 1), 'no tensor owns'],
  ];

  it.each(cases)('%s', (_, file, message) => {
    const error = errorOf(() => readSafetensors(file, 'model.safetensors'));
    expect(error.code).toBe('invalid-file');
    expect(error.argument).toBe('model.safetensors');
    expect(error.message).toContain(message);
    expect(error.message.length).toBeLessThan(500);
  });

  it('a header that was not read in full', () => {
    const file = fileOf(JSON.stringify({ x: f32 }), 8);
    expect(errorOf(() => parseSafetensorsHeader(file.subarray(0, 20), file.length)).message).toContain('incomplete');
    expect(errorOf(() => safetensorsHeaderBytes(file.subarray(0, 4), file.length)).message).toContain('too short');
  });

  it('headers too long, deep or wide for careless code', () => {
    const deep = '['.repeat(100_000) + ']'.repeat(100_000);
    expect(errorOf(() => readSafetensors(fileOf(`{"x":{"dtype":"U8","shape":${deep},"data_offsets":[0,1]}}`, 1))).code).toBe('invalid-file');
    const name = JSON.stringify('n'.repeat(1_000_000));
    expect(errorOf(() => readSafetensors(fileOf(`{${name}:{}}`))).message.length).toBeLessThan(500);
    const wide = JSON.stringify({ x: tensor('U8', Array.from({ length: 100_000 }, () => -1), 0, 1) });
    expect(errorOf(() => readSafetensors(fileOf(wide, 1))).message).toContain('an array of 100000');
  });

  it('every truncation and every flipped byte of a header: read, or refused with a typed error', () => {
    const file = writeSafetensors(new Map<string, SafetensorsTensor>([
      ['q', { dtype: 'BF16', shape: [2, 3], data: new Uint8Array(12) }], ['seqlens', { dtype: 'I32', shape: [2], data: new Uint8Array(8) }],
    ]), [['made', 'here']]);
    for (let length = 0; length < file.length; length++) {
      expect(errorOf(() => readSafetensors(file.slice(0, length))).code).toBe('invalid-file');
    }
    fc.assert(fc.property(fc.nat({ max: file.length - 21 }), fc.nat({ max: 255 }), (at, byte) => {
      const bad = file.slice();
      bad[at] = byte;
      try {
        const { tensors } = readSafetensors(bad);
        for (const { data } of tensors.values()) expect(data.byteLength).toBeLessThanOrEqual(20);
      } catch (error) {
        expect(error).toMatchObject({ name: 'MlaError', code: 'invalid-file' });
      }
    }), { numRuns: 500 });
  });
});
