/** The base tier on this machine's GPU: the grid's small batches. */
import { gridOn } from './tier.ts';

await gridOn('base', 'small batches', ({ b }) => b < 64);
