/** The subgroup tier on this machine's GPU: the grid's small batches. */
import { gridOn } from './tier.ts';

await gridOn('subgroup', 'small batches', ({ b }) => b < 64);
