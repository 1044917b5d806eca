/** Dispatch of the command line: a command's name to the command, its errors to one line and an exit status. */
import { bench, BENCH_USAGE } from './bench.ts';
import type { Context } from './context.ts';
import { decode, DECODE_USAGE } from './decode.ts';
import { doctor, DOCTOR_USAGE } from './doctor.ts';
import { EXIT_BAD_INPUT, exitStatus, oneLine } from './failure.ts';
import { generate, GENERATE_USAGE } from './generate.ts';
import { tune, TUNE_USAGE } from './tune.ts';
import { VERSION } from '../version.ts';

type Command = (args: readonly string[], context: Context) => Promise<number>;

const COMMANDS: ReadonlyMap<string, Command> = new Map([['doctor', doctor], ['decode', decode], ['bench', bench], ['tune', tune], ['generate', generate]]);

const USAGE = `flashmla-web: paged, split-KV MLA decode attention

${[DOCTOR_USAGE, DECODE_USAGE, BENCH_USAGE, TUNE_USAGE, GENERATE_USAGE].join('\n')}
Usage: flashmla-web --version | --help
`;

/** Runs one command line. Resolves to the exit status; errors become a line on stderr. */
export async function run(args: readonly string[], context: Context): Promise<number> {
  const [name, ...rest] = args;
  if (name === '--help' || name === '-h' || name === 'help') {
    context.stdout.write(USAGE);
    return 0;
  }
  if (name === '--version' || name === '-v') {
    context.stdout.write(`${VERSION}\n`);
    return 0;
  }
  const command = name === undefined ? undefined : COMMANDS.get(name);
  if (!command) {
    const what = name === undefined ? 'no command' : `unknown command ${JSON.stringify(name)}`;
    context.stderr.write(`flashmla-web: ${what}; expected ${[...COMMANDS.keys()].join(', ')} or --help\n`);
    return EXIT_BAD_INPUT;
  }
  try {
    return await command(rest, context);
  } catch (error) {
    context.stderr.write(`flashmla-web ${name}: ${oneLine(error)}\n`);
    return exitStatus(error);
  }
}
