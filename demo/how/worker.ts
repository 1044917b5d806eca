/** The other thread of a figure: serves one backend. */
import { serve } from '../../src/worker/index.ts';

serve();
