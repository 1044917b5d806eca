/** Benchmark results as a bar chart: a row a shape; time, TFLOP/s and GB/s side by side, each on a log scale. */
import { figure } from './stats.ts';

export interface PlotRow {
  readonly name: string;
  /** One value a panel, each > 0; empty when the shape did not run. */
  readonly values: readonly number[];
  /** Written in place of bars. */
  readonly note?: string;
}

export interface PlotPanel {
  /** What is shown, with its unit. */
  readonly label: string;
  readonly better: 'lower' | 'higher';
}

export interface Plot {
  readonly title: string;
  readonly subtitle: string;
  readonly panels: readonly PlotPanel[];
  readonly rows: readonly PlotRow[];
}

const FONT = 'font-family="Helvetica, Arial, DejaVu Sans, sans-serif"';
const COLORS = ['#3567a3', '#3f8f5f', '#b8742a'];
const INK = '#1f2430';
const MUTED = '#5d6470';
const GRID = '#dfe3e8';
/** Keeps figures legible where they cross a grid line. */
const HALO = 'stroke="#ffffff" stroke-width="3" paint-order="stroke"';
const ROW = 24;
const BAR = 14;
const PANEL = 250;
/** Room right of a bar for its figure. */
const FIGURE = 54;
const GAP = 26;
const MARGIN = 24;
const HEAD = 96;
const FOOT = 54;
/** Average width of a character, in em: there is no measuring text here. */
const EM = 0.56;

interface Axis {
  readonly low: number;
  readonly high: number;
}

export function plotSvg({ title, subtitle, panels, rows }: Plot): string {
  const labels = Math.ceil(Math.max(0, ...rows.map((row) => row.name.length)) * 12 * EM) + 14;
  const width = Math.max(MARGIN + labels + panels.length * (PANEL + FIGURE + GAP) - GAP + MARGIN, Math.ceil(title.length * 17 * EM) + 2 * MARGIN);
  const bottom = HEAD + rows.length * ROW;
  const height = bottom + FOOT;
  const parts = [
    `<rect width="${width}" height="${height}" fill="#ffffff"/>`,
    text(MARGIN, 34, 17, INK, title, 'font-weight="bold"'),
    text(MARGIN, 56, 12, MUTED, subtitle),
    ...rows.map((row, i) => text(MARGIN + labels - 10, HEAD + i * ROW + ROW / 2 + 4, 12, INK, row.name, 'text-anchor="end"')),
    ...panels.map((shown, i) => panel(MARGIN + labels + i * (PANEL + FIGURE + GAP), bottom, shown, COLORS[i % COLORS.length]!, rows.map((row) => row.values[i]))),
    ...rows.flatMap((row, i) => (row.note === undefined ? [] : [text(MARGIN + labels + 8, HEAD + i * ROW + ROW / 2 + 4, 11, '#a02c2c', row.note)])),
  ];
  return `<svg xmlns="http://www.w3.org/2000/svg" width="${width}" height="${height}" viewBox="0 0 ${width} ${height}" ${FONT}>\n`
    + `<title>${escape(title)}</title>\n${parts.join('\n')}\n</svg>\n`;
}

function panel(x: number, bottom: number, { label, better }: PlotPanel, color: string, values: readonly (number | undefined)[]): string {
  const axis = axisOf(values.filter((value) => value !== undefined));
  // Nothing, which has no logarithm, is at the axis.
  const at = (value: number): number => x + (PANEL * Math.log10(Math.max(value, axis.low) / axis.low)) / Math.log10(axis.high / axis.low);
  const parts = [text(x, HEAD - 12, 13, INK, label, 'font-weight="bold"')];
  for (const { value, labelled } of ticks(axis)) {
    parts.push(line(at(value), HEAD - 4, bottom + 4, GRID));
    if (labelled) parts.push(text(at(value), bottom + 20, 11, MUTED, tickLabel(value), 'text-anchor="middle"'));
  }
  parts.push(line(x, HEAD - 4, bottom + 4, MUTED));
  parts.push(text(x + PANEL / 2, bottom + 40, 11, MUTED, `${label}, log scale, ${better} is better`, 'text-anchor="middle"'));
  values.forEach((value, i) => {
    if (value === undefined) return;
    const y = HEAD + i * ROW + (ROW - BAR) / 2;
    const end = at(value);
    parts.push(`<rect x="${round(x)}" y="${y}" width="${round(Math.max(1, end - x))}" height="${BAR}" rx="1.5" fill="${color}"/>`);
    parts.push(text(end + 6, y + BAR - 3, 11, INK, figure(value), HALO));
  });
  return parts.join('\n');
}

/** Whole decades around the values, with some bar for the least of them. */
function axisOf(values: readonly number[]): Axis {
  const usable = values.filter((value) => Number.isFinite(value) && value > 0);
  if (usable.length === 0) return { low: 1, high: 10 };
  const least = Math.min(...usable);
  const low = 10 ** Math.floor(Math.log10(least / 1.5));
  const high = 10 ** Math.ceil(Math.log10(Math.max(...usable)));
  return { low, high: Math.max(high, low * 10) };
}

/** Grid lines: decades, with 2 and 5 in between where there is room. No more than about six have labels, or they touch. */
function ticks({ low, high }: Axis): { value: number; labelled: boolean }[] {
  const decades = Math.round(Math.log10(high / low));
  const every = Math.ceil(decades / 6);
  const list = [];
  for (let i = 0; i <= decades; i++) {
    list.push({ value: low * 10 ** i, labelled: i % every === 0 });
    if (decades <= 2 && i < decades) for (const step of [2, 5]) list.push({ value: low * 10 ** i * step, labelled: true });
  }
  return list;
}

function tickLabel(value: number): string {
  const exponent = Math.floor(Math.log10(value) + 1e-9);
  const lead = Math.round(value / 10 ** exponent);
  return exponent >= 6 || exponent <= -5 ? `${lead}e${exponent}` : (lead * 10 ** exponent).toFixed(Math.max(0, -exponent));
}

function line(x: number, top: number, bottom: number, color: string): string {
  return `<line x1="${round(x)}" y1="${top}" x2="${round(x)}" y2="${bottom}" stroke="${color}"/>`;
}

function text(x: number, y: number, size: number, fill: string, content: string, rest = ''): string {
  return `<text x="${round(x)}" y="${round(y)}" font-size="${size}" fill="${fill}"${rest && ` ${rest}`}>${escape(content)}</text>`;
}

function round(n: number): number {
  return Math.round(n * 100) / 100;
}

/** Safe inside XML, control characters (which XML has no way to write) left out. */
function escape(content: string): string {
  const entities: Readonly<Record<string, string>> = { '&': '&amp;', '<': '&lt;', '>': '&gt;', '"': '&quot;' };
  return content.replace(/[\p{Cc}\p{Cs}\uFFFE\uFFFF]/gu, ' ').replace(/[&<>"]/g, (c) => entities[c]!);
}
