// Decodes a case that came as JSON, with whatever instance it is given. In Node and in browsers.
export async function decodeCase(mla, c) {
  const result = await mla.flashMlaWithKvCache({
    q: { data: Uint16Array.from(c.q), shape: c.qShape, dtype: c.dtype },
    kvCache: { data: Uint16Array.from(c.kvCache), shape: c.kvShape, dtype: c.dtype },
    blockTable: Int32Array.from(c.blockTable),
    cacheSeqlens: Int32Array.from(c.cacheSeqlens),
    headDimV: c.headDimV,
  });
  const [out, lse] = [[...(await result.out.read())], [...(await result.lse.read())]];
  const { backend, reason } = mla.info;
  await mla.destroy();
  return { backend, reason, out, lse };
}
