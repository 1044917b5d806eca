// A worker that serves once it has got something ready, as with a top-level await.
import { serve } from '/dist/worker.js';

await new Promise((resolve) => setTimeout(resolve, 500));
serve();
