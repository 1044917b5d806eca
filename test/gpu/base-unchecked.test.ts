/** The base tier on this machine's GPU without bounds checks in shaders, as Node has it where nothing is said. */
import { suiteOn } from './tier.ts';

await suiteOn('base', 'unchecked');
