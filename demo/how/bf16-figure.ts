/** The figure of bf16: two typed numbers as bits, packed into a word, and unpacked by the kernels' WGSL. */
import { byId, el } from '../site/dom.ts';
import { scientific } from '../site/format.ts';
import { binary, hex, packed, parseNumber, rounded, valueOfBits, type RoundedNumber } from './bits.ts';
import { GpuBits, shaderFunction, type GpuNumbers } from './gpu-bits.ts';
import { latest } from './latest.ts';

const NO_GPU = 'There is no WebGPU here, so these lines do not run; the numbers above come from the same steps in TypeScript.';

export async function mountBf16Figure(): Promise<void> {
  byId('bf16-code').textContent = ['unpack_low', 'unpack_high'].map(shaderFunction).join('\n\n');
  const [low, high] = [byId<HTMLInputElement>('bf16-low'), byId<HTMLInputElement>('bf16-high')];
  let gpu: GpuBits | undefined;
  let numbers: readonly [RoundedNumber, RoundedNumber] | undefined;

  const ask = latest(async (pair: readonly [RoundedNumber, RoundedNumber]) => {
    if (!gpu) return;
    const words = await gpu.unpack(wordOf(pair)).then((got) => verdict(pair, got), (error: Error) => `The GPU refused: ${error.message}`);
    byId('bf16-gpu').textContent = words;
  });
  const show = (): void => {
    const problems = [low, high].map((input) => {
      const problem = problemOf(input.value);
      input.setAttribute('aria-invalid', String(problem !== ''));
      return problem;
    });
    byId('bf16-problem').textContent = problems.find((problem) => problem !== '') ?? '';
    // A half that is no number stays what it was.
    const half = (i: 0 | 1, input: HTMLInputElement): RoundedNumber | undefined => (problems[i] === '' ? rounded(parseNumber(input.value)) : numbers?.[i]);
    const [one, other] = [half(0, low), half(1, high)];
    if (!one || !other) return;
    numbers = [one, other];
    byId('bf16-numbers').replaceChildren(describe('Low half', numbers[0], 'low'), describe('High half', numbers[1], 'high'));
    byId('bf16-word').textContent = hex(wordOf(numbers));
    ask(numbers);
  };
  low.addEventListener('input', show);
  high.addEventListener('input', show);
  show();

  gpu = await GpuBits.open().catch(() => undefined);
  if (!gpu) byId('bf16-gpu').textContent = NO_GPU;
  else if (numbers) ask(numbers);
}

function problemOf(text: string): string {
  try {
    parseNumber(text);
    return '';
  } catch (error) {
    return (error as Error).message;
  }
}

function wordOf([low, high]: readonly [RoundedNumber, RoundedNumber]): number {
  return packed(low.bits, high.bits);
}

function verdict([low, high]: readonly [RoundedNumber, RoundedNumber], got: GpuNumbers): string {
  const same = got.low === (low.bits << 16) >>> 0 && got.high === (high.bits << 16) >>> 0 && got.word === wordOf([low, high]);
  return `On this page’s GPU: low ${hex(got.low)} = ${valueOfBits(got.low)}, high ${hex(got.high)} = ${valueOfBits(got.high)}; packed again ${hex(got.word)}. ${same ? 'The same bits as above.' : 'These are other bits than above. Please report this.'}`;
}

function describe(name: string, { value, f32Bits, bits, rounded: back, error }: RoundedNumber, id: string): HTMLElement {
  return el('div', { class: 'number' },
    el('h4', {}, name),
    squares(f32Bits, bits),
    el('dl', { class: 'facts', id: `bf16-${id}-facts` },
      ...fact('As f32', `${value}, ${hex(f32Bits)}`),
      ...fact('bf16 bits', `${hex(bits, 4)}`),
      ...fact('Its value', String(back)),
      ...fact('Error', Number.isNaN(error) ? 'none: not a number' : error === 0 ? '0' : relativeError(error, value))));
}

const fact = (name: string, value: string): HTMLElement[] => [el('dt', {}, name), el('dd', {}, value)];

function relativeError(error: number, value: number): string {
  return Number.isFinite(error) && value !== 0 ? `${error < 0 ? '−' : ''}${scientific(Math.abs(error))}, ${scientific(Math.abs(error / value))} of the value` : 'infinite';
}

/** 32 squares: the f32's lower half dimmed, its upper half as it is after rounding. */
function squares(f32Bits: number, bits: number): HTMLElement {
  const all = binary(bits, 16) + binary(f32Bits & 0xffff, 16);
  const kind = (i: number): string => (i === 0 ? 'sign' : i < 9 ? 'exponent' : i < 16 ? 'fraction' : 'dropped');
  const label = `Sign ${all[0]}, exponent ${all.slice(1, 9)}, fraction ${all.slice(9, 16)}; rounded away: ${all.slice(16)}`;
  return el('div', { class: 'bits', role: 'img', 'aria-label': label }, ...[...all].map((bit, i) => el('i', { class: kind(i) }, bit)));
}
