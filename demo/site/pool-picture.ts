/**
 * The pool of blocks on a canvas: a cell a block, in the colour of its holder, striped with that of a second one.
 *
 * A canvas, since pools have thousands of blocks and change with every token. One stop for Tab; arrows move a cursor
 * over the blocks, and what is pointed at is told in words.
 */
import { paletteOf, type Palette } from './colors.ts';

export interface PoolCell {
  /** Sequences that hold the block: none, one, or more that share it. */
  readonly holders: readonly number[];
  readonly label: string;
}

export interface PoolOptions {
  /** Told of the block that is pointed at, or of none. */
  readonly onPoint: (block: number | undefined) => void;
}

/** CSS pixels. Cells carry their number while there are few enough. */
const LARGE = { size: 28, gap: 4, round: 5, stripe: 8, most: 240 };
const SMALL = { size: 13, gap: 3, round: 3, stripe: 5 };
const MARGIN = 2; // for the outline of what is lit

export class PoolPicture {
  readonly #canvas: HTMLCanvasElement;
  readonly #box: HTMLElement;
  readonly #onPoint: PoolOptions['onPoint'];
  #cells: readonly PoolCell[] = [];
  #columns = 1;
  #cursor = 0;
  #lit: number | undefined;

  constructor(canvas: HTMLCanvasElement, { onPoint }: PoolOptions) {
    this.#canvas = canvas;
    this.#box = canvas.parentElement!;
    this.#onPoint = onPoint;
    canvas.addEventListener('pointermove', (event) => onPoint(this.#blockAt(event.offsetX, event.offsetY)));
    canvas.addEventListener('pointerdown', (event) => {
      const block = this.#blockAt(event.offsetX, event.offsetY);
      if (block !== undefined) this.#cursor = block;
      onPoint(block);
    });
    canvas.addEventListener('pointerleave', () => this.#pointAtCursor());
    canvas.addEventListener('focus', () => this.#pointAtCursor());
    canvas.addEventListener('blur', () => onPoint(undefined));
    canvas.addEventListener('keydown', (event) => this.#move(event));
    new ResizeObserver(() => this.#draw()).observe(this.#box);
    matchMedia('(prefers-color-scheme: dark)').addEventListener('change', () => this.#draw());
  }

  /** By block id. */
  show(cells: readonly PoolCell[]): void {
    this.#cells = cells;
    this.#cursor = Math.max(0, Math.min(this.#cursor, cells.length - 1));
    this.#lit = undefined;
    this.#draw();
  }

  light(block: number | undefined): void {
    if (block === this.#lit) return;
    this.#lit = block;
    this.#draw();
  }

  #pointAtCursor(): void {
    this.#onPoint(document.activeElement === this.#canvas && this.#cells.length > 0 ? this.#cursor : undefined);
  }

  #move(event: KeyboardEvent): void {
    const at = this.#cursor;
    const last = this.#cells.length - 1;
    const to = { ArrowRight: at + 1, ArrowLeft: at - 1, ArrowDown: at + this.#columns, ArrowUp: at - this.#columns, Home: 0, End: last }[event.key];
    if (to === undefined) return;
    event.preventDefault();
    this.#cursor = Math.max(0, Math.min(last, to));
    this.#pointAtCursor();
  }

  get #metrics(): typeof SMALL {
    return this.#cells.length <= LARGE.most ? LARGE : SMALL;
  }

  #blockAt(x: number, y: number): number | undefined {
    const step = this.#metrics.size + this.#metrics.gap;
    const column = Math.floor((x - MARGIN) / step);
    const block = Math.floor((y - MARGIN) / step) * this.#columns + column;
    return column >= 0 && column < this.#columns && block >= 0 && block < this.#cells.length ? block : undefined;
  }

  #draw(): void {
    const { size, gap } = this.#metrics;
    const step = size + gap;
    this.#columns = Math.max(1, Math.floor((this.#box.clientWidth + gap - 2 * MARGIN) / step));
    const width = this.#columns * step - gap + 2 * MARGIN;
    const height = Math.max(0, Math.ceil(this.#cells.length / this.#columns) * step - gap) + 2 * MARGIN;
    const scale = devicePixelRatio;
    this.#canvas.width = Math.round(width * scale);
    this.#canvas.height = Math.round(height * scale);
    this.#canvas.style.width = `${width}px`;
    this.#canvas.style.height = `${height}px`;
    const context = this.#canvas.getContext('2d');
    if (!context) return;
    context.scale(scale, scale);
    const palette = paletteOf(this.#canvas);
    this.#cells.forEach((cell, block) => {
      context.save();
      context.translate(MARGIN + (block % this.#columns) * step, MARGIN + Math.floor(block / this.#columns) * step);
      this.#drawCell(context, palette, cell, block);
      context.restore();
    });
  }

  #drawCell(context: CanvasRenderingContext2D, palette: Palette, { holders }: PoolCell, block: number): void {
    const { size, round, stripe } = this.#metrics;
    const [owner, other] = holders;
    context.beginPath();
    context.roundRect(0, 0, size, size, round);
    context.fillStyle = owner === undefined ? palette.free : palette.sequence(owner);
    context.fill();
    if (this.#lit === block) {
      context.strokeStyle = palette.ink;
      context.lineWidth = 2;
      context.stroke();
    }
    if (other !== undefined) {
      context.save();
      context.clip();
      context.beginPath();
      for (let x = 0; x < 2 * size; x += stripe) {
        context.moveTo(x, -1);
        context.lineTo(x - size - 2, size + 1);
      }
      // Darker than any sequence's own colour: stripes show between like hues too.
      context.strokeStyle = palette.sequence(other, -0.16);
      context.lineWidth = stripe * 0.35;
      context.stroke();
      context.restore();
    }
    if (size !== LARGE.size) return;
    context.font = '11px system-ui, sans-serif';
    context.textAlign = 'center';
    context.textBaseline = 'middle';
    if (other !== undefined) {
      context.strokeStyle = palette.sequence(owner!, 0.08);
      context.lineWidth = 3;
      context.lineJoin = 'round';
      context.strokeText(String(block), size / 2, size / 2 + 0.5);
    }
    context.fillStyle = owner === undefined ? palette.quiet : palette.onColor;
    context.fillText(String(block), size / 2, size / 2 + 0.5);
  }
}
