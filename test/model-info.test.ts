/** What compressing the cache saves, for the models as they are published. */
import { expect, test } from 'vitest';
import { parseConfig } from '../src/model/config.ts';
import { modelInfo } from '../src/model/info.ts';
import { V2_LITE, V3 } from './model/configs.ts';

test('DeepSeek-V3: 1,152 bytes a token and layer in place of 81,920, a 71st', () => {
  const info = modelInfo(parseConfig(V3));
  expect(info).toMatchObject({ modelType: 'deepseek_v3', layers: 61, cacheBytesPerTokenAndLayer: 1152, cacheBytesPerToken: 61 * 1152, perHeadCacheBytesPerToken: 61 * 81_920 });
  expect(info.cacheRatio).toBe(81_920 / 1152);
  expect(Math.round(info.cacheRatio)).toBe(71);
});

test('DeepSeek-V2-Lite: 16 heads, a ninth', () => {
  expect(modelInfo(parseConfig(V2_LITE))).toMatchObject({ layers: 27, cacheBytesPerToken: 27 * 1152, perHeadCacheBytesPerToken: 27 * 16 * 320 * 2, cacheRatio: 10_240 / 1152 });
});
