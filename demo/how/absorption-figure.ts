/** The figure of absorbed attention: outputs of both ways, head by head, and how far they are apart. */
import { byId, el } from '../site/dom.ts';
import { digits, scientific } from '../site/format.ts';
import { SMALL, absorbed, largestDifference, perHead, randomProblem } from './absorption.ts';

export function mountAbsorptionFigure(): void {
  const { heads, tokens, latent, nope, rope, value } = SMALL;
  byId('absorption-words').textContent = `${heads} heads attend to ${tokens} tokens with latents of ${latent} numbers, all random, in float64. Per head the matrices make keys of ${nope} + ${rope} and values of ${value}, `
    + `${heads * (nope + rope + value)} numbers a token; absorbed, only the ${latent + rope} that are cached are read.`;
  let seed = 1;
  const show = (): void => {
    const problem = randomProblem(seed++);
    const [made, never] = [perHead(problem), absorbed(problem)];
    const largest = Math.max(...made.map(Math.abs));
    byId('absorption-picture').replaceChildren(...Array.from({ length: heads }, (_, h) =>
      el('div', { class: 'head-outputs' },
        el('span', { class: 'quiet small' }, `Head ${h}`),
        strip('Per head', made.subarray(h * value, (h + 1) * value), largest),
        strip('Absorbed', never.subarray(h * value, (h + 1) * value), largest))));
    byId('absorption-verdict').textContent = `Largest difference: ${scientific(largestDifference(made, never))}, of outputs up to ${digits(largest)}.`;
  };
  byId('absorption-again').addEventListener('click', show);
  show();
}

/** Numbers as cells: one colour above zero, another below, stronger the further. */
function strip(name: string, numbers: Float64Array, largest: number): HTMLElement {
  return el('div', { class: 'strip', role: 'img', 'aria-label': `${name}: ${[...numbers].map((n) => digits(n)).join(', ')}` },
    el('span', { class: 'strip-name', 'aria-hidden': 'true' }, name),
    ...[...numbers].map((n) => el('i', { class: n < 0 ? 'below' : 'above', style: `--share: ${Math.round((100 * Math.abs(n)) / largest)}%`, title: digits(n) })));
}
