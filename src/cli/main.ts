#!/usr/bin/env node
/** The program `flashmla-web`. */
import { createMla, listBackends, type NodeCreateOptions } from '../node.ts';
import { fileStore } from '../tune-file.ts';
import { run } from './run.ts';

const { stdout, stderr } = process;
// A reader that has seen enough (`| head`) is no error.
stdout.on('error', (error: NodeJS.ErrnoException) => process.exit(error.code === 'EPIPE' ? 0 : 1));

const status = await run(process.argv.slice(2), {
  stdout, stderr, createMla: (choice) => createMla(choice as NodeCreateOptions), listBackends: () => listBackends(), tuneStore: fileStore(),
});
// A driver's threads may outlive its device: leave once everything is written.
await Promise.all([stdout, stderr].map((stream) => new Promise((resolve) => stream.write('', resolve))));
process.exit(status);
