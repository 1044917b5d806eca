/**
 * `npm run bench:growth -- SHAPES`: writes shapes of 1k to 1M tokens at fixed heads for `flashmla-web bench --shapes SHAPES`.
 * With reports of that command behind it (`bench:growth -- SHAPES cuda.json matrix.json`): draws time over tokens of each into
 * growth.svg, and says how far the points past start-up are off the straight line through them.
 */
import { readFileSync, writeFileSync } from 'node:fs';

interface Report {
  readonly device: string;
  readonly backend: string;
  readonly tier: string | null;
  readonly results: readonly { readonly name: string; readonly ms: number }[];
}

interface Line {
  readonly name: string;
  /** Tokens and milliseconds. */
  readonly points: readonly (readonly [number, number])[];
}

const SEQUENCES = 8;
const TOKENS = Array.from({ length: 11 }, (_, i) => 1024 << i);
/** From here on time is more than start-up. */
const PAST_START_UP = 65_536;
const COLORS = ['#3567a3', '#3f8f5f', '#b8742a', '#8a4f9e'];
const [WIDTH, HEIGHT, LEFT, BOTTOM, TOP] = [760, 420, 60, 46, 66];

function writeShapes(file: string): void {
  const shapes = TOKENS.map((tokens) => ({
    name: `tokens-${tokens}`, regime: 'growth', b: SEQUENCES, s_q: 1, h_q: 128, h_kv: 1, d_qk: 576, d_v: 512, block_size: 64, causal: false,
    seqlens: Array<number>(SEQUENCES).fill(tokens / SEQUENCES),
  }));
  writeFileSync(file, JSON.stringify(shapes));
}

function readLine(file: string): Line & { readonly device: string } {
  const { device, backend, tier, results } = JSON.parse(readFileSync(file, 'utf8')) as Report;
  const points = results.map(({ name, ms }) => [Number(name.slice('tokens-'.length)), ms] as const);
  return { device, name: tier === null ? backend : `${backend}, ${tier} tier`, points };
}

/** Least squares over relative errors: start-up in milliseconds, milliseconds a token, the largest relative error. */
function fit(points: Line['points']): { start: number; slope: number; off: number } {
  const past = points.filter(([tokens]) => tokens >= PAST_START_UP);
  let [w, wx, wy, wxx, wxy] = [0, 0, 0, 0, 0];
  for (const [x, y] of past) {
    const weight = 1 / (y * y);
    w += weight;
    wx += weight * x;
    wy += weight * y;
    wxx += weight * x * x;
    wxy += weight * x * y;
  }
  const slope = (w * wxy - wx * wy) / (w * wxx - wx * wx);
  const start = (wy - slope * wx) / w;
  return { start, slope, off: Math.max(...past.map(([x, y]) => Math.abs(start + slope * x - y) / y)) };
}

function draw(lines: readonly Line[], device: string): string {
  const mostX = TOKENS.at(-1)!;
  const mostY = Math.max(...lines.flatMap(({ points }) => points.map(([, ms]) => ms))) * 1.05;
  const x = (tokens: number): number => LEFT + (tokens / mostX) * (WIDTH - LEFT - 20);
  const y = (ms: number): number => HEIGHT - BOTTOM - (ms / mostY) * (HEIGHT - BOTTOM - TOP);
  const text = (at: number, down: number, words: string, more = ''): string => `<text x="${at.toFixed(1)}" y="${down.toFixed(1)}" font-size="12" fill="#1f2430" ${more}>${words}</text>`;
  const step = 10 ** Math.floor(Math.log10(mostY / 3));
  const every = mostY / step > 10 ? 2 * step : step;
  const grid = Array.from({ length: Math.floor(mostY / every) + 1 }, (_, i) => i * every).map((ms) =>
    `<path d="M${LEFT} ${y(ms).toFixed(1)}H${WIDTH - 20}" stroke="#dfe3e8"/>${text(LEFT - 8, y(ms) + 4, String(Number(ms.toPrecision(2))), 'text-anchor="end"')}`);
  const ticks = [0, 0.25, 0.5, 0.75, 1].map((part) => text(x(part * mostX), HEIGHT - BOTTOM + 18, part === 1 ? '1M' : `${part * 1024}k`, 'text-anchor="middle"'));
  const curves = lines.map(({ name, points }, i) => {
    const color = COLORS[i % COLORS.length]!;
    const dots = points.map(([tokens, ms]) => `<circle cx="${x(tokens).toFixed(1)}" cy="${y(ms).toFixed(1)}" r="3" fill="${color}"/>`).join('');
    const path = points.map(([tokens, ms]) => `${x(tokens).toFixed(1)} ${y(ms).toFixed(1)}`).join('L');
    return `<path d="M${path}" fill="none" stroke="${color}" stroke-width="1.5"/>${dots}${text(LEFT + 16 + 160 * i, 50, name, `style="fill:${color}" font-weight="bold"`)}`;
  });
  return `<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 ${WIDTH} ${HEIGHT}" font-family="Helvetica, Arial, DejaVu Sans, sans-serif"><rect width="${WIDTH}" height="${HEIGHT}" fill="#fff"/>`
    + text(LEFT, 28, `Milliseconds a call over tokens in the cache: ${SEQUENCES} sequences, 128 heads`, 'font-weight="bold"')
    + text(WIDTH - 20, HEIGHT - 6, device, 'text-anchor="end"')
    + `${grid.join('')}${ticks.join('')}${curves.join('')}</svg>\n`;
}

const [shapes, ...reports] = process.argv.slice(2);
if (shapes === undefined) {
  console.error('bench:growth: no file to write shapes to');
  process.exit(2);
}
writeShapes(shapes);
if (reports.length > 0) {
  const lines = reports.map(readLine);
  for (const { name, points } of lines) {
    const { start, slope, off } = fit(points);
    console.log(`${name}: ${(start * 1e3).toFixed(1)} us and ${(slope * 1e9).toFixed(0)} ms a billion tokens; from ${PAST_START_UP} tokens on no point is off by more than ${(100 * off).toFixed(1)} %`);
  }
  writeFileSync('growth.svg', draw(lines, lines[0]!.device));
}
