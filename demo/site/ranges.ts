/** Ranges of a response that is there as a whole. */

/** What a server answers to `Range: bytes=from-to`; other kinds of ranges get the whole, as HTTP allows. */
export async function sliceOf(whole: Response, range: string): Promise<Response> {
  const [, from, to] = /^bytes=(\d+)-(\d*)$/.exec(range) ?? [];
  if (from === undefined) return whole;
  const blob = await whole.blob();
  const first = Number(from);
  const last = Math.min(to ? Number(to) : Infinity, blob.size - 1);
  if (first > last) return new Response(null, { status: 416, headers: { 'content-range': `bytes */${blob.size}` } });
  return new Response(blob.slice(first, last + 1), {
    status: 206,
    headers: {
      'content-type': whole.headers.get('content-type') ?? 'application/octet-stream',
      'content-length': String(last - first + 1),
      'content-range': `bytes ${first}-${last}/${blob.size}`,
    },
  });
}
