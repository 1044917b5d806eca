/**
 * The tokenizer against the original library's results: test/model/tokenizer.json is a byte-level BPE with DeepSeek-V3's splitting,
 * made and run with Python's tokenizers 0.23; tokenizer-cases.json holds texts, their ids there and what those decode to.
 */
import fc from 'fast-check';
import { describe, expect, test } from 'vitest';
import { filesSource } from '../src/model/files-source.ts';
import { TextStream, Tokenizer } from '../src/model/tokenizer.ts';
import { expectRefusal } from './check.ts';
import cases from './model/tokenizer-cases.json' with { type: 'json' };
import json from './model/tokenizer.json' with { type: 'json' };

const plain = new Tokenizer(json);
const BEGIN = 296;
const END = 297;
const config = { add_bos_token: true, bos_token: { __type: 'AddedToken', content: '<|begin|>' }, clean_up_tokenization_spaces: true };

function streamed(tokenizer: Tokenizer, ids: readonly number[], special = false): string {
  const stream = tokenizer.stream(special);
  return ids.map((id) => stream.push(id)).join('') + stream.end();
}

describe('encoding and decoding', () => {
  test.each(cases)('$text', ({ text, ids, decoded }) => {
    expect(plain.encode(text)).toEqual(ids);
    expect(plain.decode(ids)).toBe(decoded);
    expect(plain.decode(ids, true)).toBe(text);
    expect(streamed(plain, ids)).toBe(decoded);
  });

  test('any text comes back', () => {
    fc.assert(fc.property(fc.string({ unit: 'grapheme', maxLength: 40 }), (text) => {
      const ids = plain.encode(text);
      expect(plain.decode(ids, true)).toBe(text);
      expect(streamed(plain, ids, true)).toBe(text);
    }));
  });

  test('texts begin with the token that the configuration adds, once', () => {
    const tokenizer = new Tokenizer(json, config);
    expect(tokenizer.encode('the')).toEqual([BEGIN, ...plain.encode('the')]);
    expect(tokenizer.encode('<|begin|>the')).toEqual([BEGIN, ...plain.encode('the')]);
    expect(tokenizer.encode('')).toEqual([BEGIN]);
    expect(tokenizer.encode('the', false)).toEqual(plain.encode('the'));
    expect(new Tokenizer(json, { ...config, bos_token: '<|begin|>' }).encode('')).toEqual([BEGIN]);
  });

  test('spaces are not tidied', () => {
    const text = 'a , b . do n\'t';
    expect(new Tokenizer(json, config).decode(plain.encode(text))).toBe(text);
  });

  test('ids that stand for no token are left out', () => {
    expect(plain.decode([...plain.encode('the'), 5000, END])).toBe('the');
    expect(plain.decode([5000])).toBe('');
    expect(plain.decode([])).toBe('');
    expect(plain.tokenOf(5000)).toBeUndefined();
    expect([plain.idOf('<|end|>'), plain.idOf('nothing')]).toEqual([END, undefined]);
  });
});

describe('text token by token', () => {
  test('a character comes with its last byte', () => {
    const stream = plain.stream();
    const ids = plain.encode('力');
    expect(ids).toHaveLength(3);
    expect(ids.map((id) => stream.push(id))).toEqual(['', '', '力']);
    expect(stream.end()).toBe('');
  });

  test('what is cut off comes at the end, and the stream starts anew', () => {
    const stream = plain.stream();
    const [first] = plain.encode('力') as [number];
    expect([stream.push(first), stream.end(), stream.end()]).toEqual(['', '\ufffd', '']);
    expect(stream.push(plain.encode('a')[0]!)).toBe('a');
  });

  test('any ids give what they decode to', () => {
    fc.assert(fc.property(fc.array(fc.nat({ max: 310 }), { maxLength: 30 }), fc.boolean(), (ids, special) => {
      expect(streamed(plain, ids, special)).toBe(plain.decode(ids, special));
    }), { numRuns: 500 });
  });

  test('no more than the last character waits, however much is broken', () => {
    const stream = plain.stream();
    const broken = plain.idOf('ÿ')!;
    let given = '';
    for (let i = 1; i <= 20; i++) {
      given += stream.push(broken);
      expect(given).toBe('\ufffd'.repeat(i - 1));
    }
  });

  test('a decoder that treats the first token of a text differently', () => {
    const words = ['', '▁a', '▁b'];
    const stream = new TextStream((ids) => ids.map((id) => words[id]).join('').replaceAll('▁', ' ').replace(/^ /, ''));
    expect([1, 2, 1].map((id) => stream.push(id))).toEqual(['a', ' b', ' a']);
    // After tokens that say nothing it is still the middle of a text.
    expect([0, 2, 0, 0, 1].map((id) => stream.push(id))).toEqual(['', ' b', '', '', ' a']);
    stream.end();
    expect([0, 1, 0, 2].map((id) => stream.push(id))).toEqual(['', 'a', '', ' b']);
  });
});

describe('loading', () => {
  const file = (name: string, value: unknown): File => new File([typeof value === 'string' ? value : JSON.stringify(value)], name);

  test('with and without tokenizer_config.json', async () => {
    const bare = await Tokenizer.load(filesSource([file('tokenizer.json', json)]), 299);
    expect(bare.encode('')).toEqual([]);
    expect(bare.vocabSize).toBe(299);
    const tokenizer = await Tokenizer.load(filesSource([file('tokenizer.json', json), file('tokenizer_config.json', config)]), 320);
    expect(tokenizer.encode('')).toEqual([BEGIN]);
  });

  test('refuses what does not belong to the model, is missing or malformed', async () => {
    const mismatch = await expectRefusal(() => Tokenizer.load(filesSource([file('tokenizer.json', json)]), 298), 'invalid-file', 'tokenizer.json');
    expect(mismatch).toMatchObject({ got: '299' });
    await expectRefusal(() => Tokenizer.load(filesSource([]), 320), 'invalid-file', 'tokenizer.json');
    for (const bad of ['{', 'null', '[]', '{}', '{"model":{"type":"BPE"},"added_tokens":[]}', { ...json, model: { type: 'Unheard' } }]) {
      await expectRefusal(() => Tokenizer.load(filesSource([file('tokenizer.json', bad)]), 320), 'invalid-file', 'tokenizer.json');
    }
    await expectRefusal(() => Tokenizer.load(filesSource([file('tokenizer.json', json), file('tokenizer_config.json', [])]), 320), 'invalid-file', 'tokenizer_config.json');
  });
});
