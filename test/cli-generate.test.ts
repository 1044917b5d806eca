/** `flashmla-web generate` on the cpu: text, figures, and what it refuses. */
import { cp, mkdtemp, rm } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterAll, beforeAll, describe, expect, it } from 'vitest';
import type { MlaChoice } from '../src/cli/context.ts';
import { run } from '../src/cli/run.ts';
import { MlaError } from '../src/errors.ts';
import { fakeContext } from './fake-context.ts';

let model: string;
beforeAll(async () => {
  model = await mkdtemp(join(tmpdir(), 'flashmla-generate-'));
  await cp(join(import.meta.dirname, 'fixtures/models/tiny-v2'), model, { recursive: true });
  await cp(join(import.meta.dirname, 'model/tokenizer.json'), join(model, 'tokenizer.json'));
});
afterAll(() => rm(model, { recursive: true, force: true }));

async function generate(...args: string[]): Promise<{ status: number; out: string; err: string }> {
  const context = fakeContext();
  const status = await run(['generate', ...args], context);
  return { status, out: context.out, err: context.err };
}

describe('generate', () => {
  it('writes the text as it comes, then figures', async () => {
    const { status, out, err } = await generate(model, '--prompt', 'Once upon', '--max-tokens', '12');
    expect(err).toMatch(/^\d+ tokens; the first after [\d.]+ ms, then [\d.]+ tokens a second \(.*, cpu: auto took webgpu, .*\)\ncache: 480 B a token \(160 B a layer\); keys and values of every head would take 1,920 B, 4.00 times that\n$/);
    expect(status).toBe(0);
    expect(out.endsWith('\n')).toBe(true);
  });

  it('--json says the same, and a seed repeats', async () => {
    const args = [model, '--prompt', 'a', '--max-tokens', '8', '--temperature', '1', '--top-k', '20', '--top-p', '0.9', '--repetition-penalty', '1.2', '--seed', '5', '--json'];
    const [a, b] = [await generate(...args), await generate(...args)];
    const [first, second] = [JSON.parse(a.out), JSON.parse(b.out)] as { text: string; tokens: number; backend: string }[];
    expect(first).toMatchObject({ model, backend: 'cpu', prompt: 'a', reason: expect.stringContaining('auto took webgpu'), cacheBytesPerToken: 480, perHeadCacheBytesPerToken: 1920, cacheRatio: 4 });
    expect(first!.tokens).toBeLessThanOrEqual(8);
    expect(second!.text).toBe(first!.text);
  });

  it('auto asks for webgpu, not for cuda, and takes cpu where there is none; nothing else is replaced', async () => {
    const args = [model, '--prompt', 'a', '--max-tokens', '2', '--json'];
    const plain = fakeContext();
    expect(await run(['generate', ...args], plain)).toBe(0);
    expect(plain.choices.map(({ backend }) => backend)).toEqual(['webgpu']);

    const context = fakeContext();
    const without = {
      ...context,
      createMla: (choice: MlaChoice) => {
        if (choice.backend === 'cpu') return context.createMla(choice);
        throw new MlaError('backend-unavailable', 'no adapter here', { argument: 'backend' });
      },
    };
    expect(await run(['generate', ...args], without)).toBe(0);
    expect(JSON.parse(context.out)).toMatchObject({ backend: 'cpu', reason: 'auto took cpu; no webgpu: backend: no adapter here' });
    expect(await run(['generate', ...args, '--backend', 'webgpu'], without)).toBe(1);
    expect(context.err).toContain('no adapter here');
  });

  it('runs int8 weights', async () => {
    expect((await generate(model, '--prompt', 'a', '--max-tokens', '3', '--weights', 'int8')).status).toBe(0);
  });

  it.each([
    [[], 'takes one model'], [['x', 'y', '--prompt', 'a'], 'takes one model'], [['MODEL'], '--prompt'], [['MODEL', '--prompt', 'a', '--max-tokens', '0'], '--max-tokens'],
    [['MODEL', '--prompt', 'a', '--weights', 'int4'], '--weights'], [['MODEL', '--prompt', 'a', '--temperature', '-1'], '--temperature'], [['MODEL', '--prompt', 'a', '--top-p', '0'], '--top-p'],
    // Before anything is loaded.
    [['/no/such/folder', '--prompt', 'a', '--repetition-penalty', '0'], '--repetition-penalty'], [['MODEL', '--prompt', 'a', '--tier', 'fast'], '--tier'],
    [['/no/such/folder', '--prompt', 'a'], 'config.json'],
  ])('%j: status 2, one line', async (args, named) => {
    const { status, out, err } = await generate(...args.map((a) => (a === 'MODEL' ? model : a)));
    expect(status).toBe(2);
    expect(out).toBe('');
    expect(err).toMatch(/^flashmla-web generate: [^\n]*\n$/);
    expect(err).toContain(named);
  });

  it('a prompt longer than the cache: status 1, and says what there is room for', async () => {
    const { status, err } = await generate(model, '--prompt', 'x y '.repeat(200), '--context', '64');
    expect(status).toBe(1);
    expect(err).toContain('at most 64 tokens');
  });
});
