/** The subgroup tier on this machine's GPU: the grid's large batches. */
import { gridOn } from './tier.ts';

await gridOn('subgroup', 'batches of 64', ({ b }) => b === 64);
