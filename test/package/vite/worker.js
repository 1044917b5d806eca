import { createBackend } from 'flashmla-web';
import { serve } from 'flashmla-web/worker';

serve((options) => createBackend(options));
