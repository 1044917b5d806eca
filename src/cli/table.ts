/** Plain text tables. */

export interface Column {
  readonly title: string;
  readonly align: 'left' | 'right';
}

/** Rows under aligned titles, two spaces between columns, a line break after every row. Cells past the last column are not shown. */
export function table(columns: readonly Column[], rows: readonly (readonly string[])[]): string {
  const lines = [columns.map((column) => column.title), ...rows];
  const widths = columns.map((_, i) => Math.max(...lines.map((line) => (line[i] ?? '').length)));
  return lines
    .map((line) => columns.map(({ align }, i) => (align === 'left' ? (line[i] ?? '').padEnd(widths[i]!) : (line[i] ?? '').padStart(widths[i]!))).join('  ').trimEnd() + '\n')
    .join('');
}
