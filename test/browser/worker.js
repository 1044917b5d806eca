// What a user's worker looks like: the whole of it.
import { serve } from '/dist/worker.js';

serve();
