/** The subgroup tier on this machine's GPU. */
import { suiteOn } from './tier.ts';

await suiteOn('subgroup');
