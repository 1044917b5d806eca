import { parentPort } from 'node:worker_threads';
import { createBackend } from 'flashmla-web/node';
import { serve } from 'flashmla-web/worker';

serve(createBackend, parentPort);
