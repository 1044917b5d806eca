/** The matrix tier on this machine's GPU: the grid's large batches. */
import { gridOn } from './tier.ts';

await gridOn('matrix', 'batches of 64', ({ b }) => b === 64);
