#!/usr/bin/env node
/** The program `flashmla-web`. */
import { createMla, listBackends, type NodeCreateOptions } from '../node.ts';
import { fileStore } from '../tune-file.ts';
import { EXIT_FAILED, writeError } from './failure.ts';
import { run } from './run.ts';

const { stdout, stderr } = process;
let refused: NodeJS.ErrnoException | undefined;
stdout.on('error', (error: NodeJS.ErrnoException) => (refused ??= error));
stderr.on('error', () => undefined); // There is nowhere to say it.

let status = await run(process.argv.slice(2), {
  stdout: {
    write: (text) => stdout.write(text),
    get refused() {
      return refused !== undefined;
    },
  },
  stderr, createMla: (choice) => createMla(choice as NodeCreateOptions), listBackends: () => listBackends(), tuneStore: fileStore(),
});
// A driver's threads may outlive its device: leave once everything is written.
await Promise.all([stdout, stderr].map((stream) => new Promise((resolve) => stream.write('', resolve))));
// A reader that has seen enough (`| head`) is no error.
if (refused && refused.code !== 'EPIPE') {
  status ||= EXIT_FAILED;
  stderr.write(`flashmla-web: ${writeError('standard output', refused).message}\n`);
}
process.exit(status);
