/** Makes a screenshot smaller: a PNG of 8 bits a channel becomes one of at most 256 colours. */
import { crc32, deflateSync, inflateSync } from 'node:zlib';

const SIGNATURE = Buffer.from([0x89, 0x50, 0x4e, 0x47, 0x0d, 0x0a, 0x1a, 0x0a]);
const MOST_COLORS = 256;

interface Pixels {
  readonly width: number;
  readonly height: number;
  /** 0xrrggbb. */
  readonly colors: Uint32Array;
}

/** Keeps the commonest colours; the rest take the nearest of these. @throws Error for kinds of PNG that browsers do not write */
export function toPalette(png: Buffer): Buffer {
  const { width, height, colors } = decode(png);
  const counts = new Map<number, number>();
  for (const color of colors) counts.set(color, (counts.get(color) ?? 0) + 1);
  const palette = [...counts].sort((a, b) => b[1] - a[1]).slice(0, MOST_COLORS).map(([color]) => color);
  const index = new Map(palette.map((color, i) => [color, i]));
  for (const color of counts.keys()) if (!index.has(color)) index.set(color, nearest(palette, color));

  const rows = Buffer.alloc(height * (width + 1));
  for (let y = 0; y < height; y++) for (let x = 0; x < width; x++) rows[y * (width + 1) + 1 + x] = index.get(colors[y * width + x]!)!;
  const header = Buffer.alloc(13);
  header.writeUInt32BE(width, 0);
  header.writeUInt32BE(height, 4);
  header.set([8, 3], 8);
  return Buffer.concat([
    SIGNATURE, chunk('IHDR', header), chunk('PLTE', Buffer.from(palette.flatMap(channels))),
    chunk('IDAT', deflateSync(rows, { level: 9 })), chunk('IEND', Buffer.alloc(0)),
  ]);
}

function decode(png: Buffer): Pixels {
  const parts: Buffer[] = [];
  for (let at = SIGNATURE.length; at < png.length; at += 12 + png.readUInt32BE(at)) {
    if (png.toString('latin1', at + 4, at + 8) === 'IDAT') parts.push(png.subarray(at + 8, at + 8 + png.readUInt32BE(at)));
  }
  const [width, height, depth, kind, , , interlaced] = [png.readUInt32BE(16), png.readUInt32BE(20), ...png.subarray(24, 29)];
  if (depth !== 8 || (kind !== 2 && kind !== 6) || interlaced !== 0) throw new Error('not a PNG as browsers write it');
  const step = kind === 2 ? 3 : 4;
  const bytes = unfilter(inflateSync(Buffer.concat(parts)), width! * step, step);
  const colors = Uint32Array.from({ length: width! * height! }, (_, i) => (bytes[i * step]! << 16) | (bytes[i * step + 1]! << 8) | bytes[i * step + 2]!);
  return { width: width!, height: height!, colors };
}

/** Undoes PNG's filters. @param stride bytes of a row, without the filter's number before it */
function unfilter(data: Buffer, stride: number, step: number): Uint8Array {
  const height = data.length / (stride + 1);
  const out = new Uint8Array(height * stride);
  for (let y = 0; y < height; y++) {
    const filter = data[y * (stride + 1)]!;
    for (let x = 0; x < stride; x++) {
      const at = y * stride + x;
      const left = x < step ? 0 : out[at - step]!;
      const up = y === 0 ? 0 : out[at - stride]!;
      const corner = x < step || y === 0 ? 0 : out[at - stride - step]!;
      out[at] = data[y * (stride + 1) + 1 + x]! + [0, left, up, (left + up) >> 1, paeth(left, up, corner)][filter]!;
    }
  }
  return out;
}

function paeth(left: number, up: number, corner: number): number {
  const [a, b, c] = [Math.abs(up - corner), Math.abs(left - corner), Math.abs(left + up - 2 * corner)];
  return a <= b && a <= c ? left : b <= c ? up : corner;
}

function nearest(palette: readonly number[], color: number): number {
  const [r, g, b] = channels(color);
  let [best, least] = [0, Infinity];
  palette.forEach((candidate, i) => {
    const [x, y, z] = channels(candidate);
    const distance = (r - x) ** 2 + (g - y) ** 2 + (b - z) ** 2;
    if (distance < least) [best, least] = [i, distance];
  });
  return best;
}

function channels(color: number): [number, number, number] {
  return [color >> 16, (color >> 8) & 255, color & 255];
}

function chunk(name: string, data: Buffer): Buffer {
  const body = Buffer.concat([Buffer.from(name, 'latin1'), data]);
  const made = Buffer.alloc(body.length + 8);
  made.writeUInt32BE(data.length, 0);
  made.set(body, 4);
  made.writeUInt32BE(crc32(body), made.length - 4);
  return made;
}
