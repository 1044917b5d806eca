/** The matrix tier on this machine's GPU with the kernels that are chosen where shaders have no bounds checks. */
import { gridOn, suiteOn } from './tier.ts';

await suiteOn('matrix', 'unchecked');
await gridOn('matrix', 'small batches', ({ b }) => b < 64, 'unchecked');
