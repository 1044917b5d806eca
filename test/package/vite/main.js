import { createMla } from 'flashmla-web';
import { connect } from 'flashmla-web/worker';
import { decodeCase } from './decode-case.js';

const create = {
  page: createMla,
  worker: (options) => connect(new Worker(new URL('./worker.js', import.meta.url), { type: 'module' }), options),
};
globalThis.decodeOn = async (where, c) => decodeCase(await create[where]({ backend: 'webgpu' }), c);
document.body.textContent = 'ready';
