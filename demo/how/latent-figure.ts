/** The figure of what a token takes: a column a head, as high as its numbers, beside the one column of the latent. */
import { byId, el, svg } from '../site/dom.ts';
import { bytes, count, digits } from '../site/format.ts';
import { MODEL, tokenCost } from './token-cost.ts';

const CONTEXT = 131_072;
/** Of the drawing, in its own units: a number is a unit high; columns are this wide, the first beginning after the latent's. */
const COLUMN = { width: 22, step: 28, gap: 70 } as const;
const HEIGHT = MODEL.latent + MODEL.rope;

export function mountLatentFigure(): void {
  const heads = byId<HTMLInputElement>('latent-heads');
  const show = (): void => {
    const value = Number(heads.value);
    byId('latent-heads-value').textContent = String(value);
    byId('latent-picture').replaceChildren(picture(value));
    byId('latent-table').replaceChildren(table(value));
    byId('latent-context').textContent = context(value);
  };
  heads.addEventListener('input', show);
  show();
}

function picture(heads: number): SVGSVGElement {
  const { ratio } = tokenCost(heads);
  const width = COLUMN.width + COLUMN.gap + MODEL.heads * COLUMN.step;
  const label = `One column of ${MODEL.latent} + ${MODEL.rope} numbers for the latent, beside ${heads} columns of ${MODEL.nope} + ${MODEL.rope} + ${MODEL.value} for keys and values: ${digits(ratio)} times the area.`;
  return svg('svg', { class: 'columns', viewBox: `0 0 ${width} ${HEIGHT}`, role: 'img', 'aria-label': label, preserveAspectRatio: 'none' },
    ...column(0, [['latent', MODEL.latent], ['rope', MODEL.rope]]),
    ...Array.from({ length: heads }, (_, h) => column(COLUMN.width + COLUMN.gap + h * COLUMN.step, [['k', MODEL.nope], ['rope', MODEL.rope], ['v', MODEL.value]])).flat());
}

/** A column of stretches from the ground up. */
function column(x: number, stretches: readonly (readonly [kind: string, numbers: number])[]): SVGRectElement[] {
  let y = HEIGHT;
  return stretches.map(([kind, numbers]) => svg('rect', { class: `fill-${kind}`, x, y: (y -= numbers), width: COLUMN.width, height: numbers }));
}

function table(heads: number): HTMLTableElement {
  const { numbers, bytes: all, latentNumbers, latentBytes, ratio } = tokenCost(heads);
  const { nope, rope, value, latent } = MODEL;
  const row = (name: string, sum: string, total: number, size: number, id: string): HTMLElement =>
    el('tr', {}, el('th', { scope: 'row' }, name), el('td', {}, `${sum} = ${count(total)}`), el('td', { id }, `${count(size)} B`));
  return el('table', {},
    el('thead', {}, el('tr', {}, el('th', { scope: 'col' }, 'A token, one layer'), el('th', { scope: 'col' }, 'Numbers'), el('th', { scope: 'col' }, 'In bf16'))),
    el('tbody', {},
      row('Keys and values of each head', `${heads} × (${nope} + ${rope} + ${value})`, numbers, all, 'latent-all'),
      row('Latent and RoPE key', `${latent} + ${rope}`, latentNumbers, latentBytes, 'latent-one'),
      el('tr', {}, el('th', { scope: 'row' }, ratio >= 1 ? 'Smaller by' : 'Larger by'), el('td', {}), el('td', {}, el('strong', { id: 'latent-ratio' }, `${digits(Math.max(ratio, 1 / ratio))} times`)))));
}

function context(heads: number): string {
  const { bytes: all, latentBytes } = tokenCost(heads);
  const whole = (size: number): string => bytes(size * MODEL.layers * CONTEXT);
  return `All ${MODEL.layers} layers at ${count(CONTEXT)} tokens: ${whole(latentBytes)} instead of ${whole(all)} with ${heads === 1 ? 'one head' : `${heads} heads`}.`;
}
