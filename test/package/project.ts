/** A user's project in a temporary directory, as bare as `npm init` leaves it, and programs run there. */
import { execFile } from 'node:child_process';
import { cp, mkdir, mkdtemp, rm, symlink, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { dirname, join } from 'node:path';
import { fileURLToPath } from 'node:url';

const here = dirname(fileURLToPath(import.meta.url));
export const root = join(here, '..', '..');

export interface Ended {
  readonly status: number | null;
  readonly stdout: string;
  readonly stderr: string;
}

/** What npm, vitest and this suite's own adapter put into the environment is not there for a user's program. */
const ours = /^(npm_(?!config_)|npm_config_local_prefix$|INIT_CWD$|VITEST|NODE_ENV$|NODE_OPTIONS$|NODE_PATH$|VK_(ICD|DRIVER)_)/i;
const environment = Object.fromEntries(Object.entries(process.env).filter(([name]) => !ours.test(name)));

/** A program that has not ended by then does not end. An install may wait for its registry. */
const LONGEST_MS = 250_000;

function execute(file: string, args: readonly string[], cwd: string, env: Readonly<Record<string, string>> = {}): Promise<Ended> {
  return new Promise((resolve) => {
    const child = execFile(file, args, { cwd, env: { ...environment, ...env }, timeout: LONGEST_MS, killSignal: 'SIGKILL', maxBuffer: 2 ** 26 }, (error, stdout, stderr) => {
      resolve({ status: child.exitCode, stdout, stderr: child.exitCode === null ? `${stderr}${error?.message}` : stderr });
    });
  });
}

/** npm, in `cwd`. @returns its stdout @throws Error with its output when it fails */
export async function npm(cwd: string, ...args: string[]): Promise<string> {
  // npm says where it is; on Windows only so does it run without a shell.
  const own = process.env['npm_execpath'];
  const [file, ...first] = own?.endsWith('npm-cli.js') ? [process.execPath, own] : ['npm'];
  const { status, stdout, stderr } = await execute(file!, [...first, ...args], cwd);
  if (status !== 0) throw new Error(`npm ${args.join(' ')}: exit status ${status}\n${stdout}${stderr}`);
  return stdout;
}

export class Project {
  readonly dir: string;

  private constructor(dir: string) {
    this.dir = dir;
  }

  /** An empty project with `tarball` installed, and the contents of directory `files` beside this file. */
  static async create(tarball: string, files: string): Promise<Project> {
    const project = new Project(await mkdtemp(join(tmpdir(), 'flashmla-project-')));
    try {
      await project.write('package.json', JSON.stringify({ name: 'project', version: '1.0.0', private: true, type: 'module' }));
      await npm(project.dir, 'install', '--no-audit', '--no-fund', '--prefer-offline', tarball);
      await cp(join(here, files), project.dir, { recursive: true });
      await cp(join(here, 'decode-case.js'), join(project.dir, 'decode-case.js'));
      return project;
    } catch (error) {
      await project.remove();
      throw error;
    }
  }

  write(name: string, text: string): Promise<void> {
    return writeFile(join(this.dir, name), text);
  }

  /** Makes a package of this repository available there, as installed: its own dependencies come with it. */
  async link(name: string): Promise<void> {
    const path = join(this.dir, 'node_modules', name);
    await mkdir(dirname(path), { recursive: true });
    await symlink(join(root, 'node_modules', name), path, 'junction');
  }

  node(args: readonly string[], env?: Readonly<Record<string, string>>): Promise<Ended> {
    return execute(process.execPath, args, this.dir, env);
  }

  remove(): Promise<void> {
    return rm(this.dir, { recursive: true, force: true });
  }
}
