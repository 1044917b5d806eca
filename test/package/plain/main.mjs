// A user's program. `node main.mjs ENTRY BACKEND` decodes case.json and prints the result, or the error, as JSON.
import { readFile } from 'node:fs/promises';
import { Worker } from 'node:worker_threads';
import { MlaError, createMla as createAnywhere } from 'flashmla-web';
import { createMla } from 'flashmla-web/node';
import { connect } from 'flashmla-web/worker';
import { decodeCase } from './decode-case.js';

const [entry, backend] = process.argv.slice(2);
const worker = entry === 'flashmla-web/worker' ? new Worker(new URL('worker.mjs', import.meta.url)) : undefined;
const create = {
  'flashmla-web': createAnywhere,
  'flashmla-web/node': createMla,
  'flashmla-web/worker': (options) => connect(worker, options),
}[entry];
let printed;
try {
  printed = await decodeCase(await create({ backend }), JSON.parse(await readFile('case.json', 'utf8')));
} catch (error) {
  if (!(error instanceof MlaError)) throw error;
  printed = { code: error.code, message: error.message };
}
console.log(JSON.stringify(printed));
await worker?.terminate();
