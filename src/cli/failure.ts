/** What becomes of an error on the command line: an exit status and one line. */
import { MlaError, type MlaErrorCode } from '../errors.ts';

/** Something the caller gave is wrong. */
export const EXIT_BAD_INPUT = 2;
/** The input may be fine; this machine could not do it. */
export const EXIT_FAILED = 1;

const BAD_INPUT: ReadonlySet<MlaErrorCode> = new Set<MlaErrorCode>([
  'invalid-argument', 'invalid-dtype', 'invalid-shape', 'out-of-range', 'metadata-mismatch', 'invalid-file', 'unsupported-model',
]);

export function exitStatus(error: unknown): number {
  return error instanceof MlaError && BAD_INPUT.has(error.code) ? EXIT_BAD_INPUT : EXIT_FAILED;
}

/** The message without line breaks or other control characters, whatever file names and headers put into it. */
export function oneLine(error: unknown): string {
  const message = error instanceof Error ? error.message || error.name : String(error);
  return message.replace(/[\s\p{Cc}]+/gu, ' ').trim();
}

/** An error as a report has it, where one thing of several failed. */
export function asFailure(error: unknown): { code: MlaErrorCode; message: string } {
  return { code: error instanceof MlaError ? error.code : 'internal', message: oneLine(error) };
}

/** An argument of the command line is wrong. */
export function usageError(summary: string, argument?: string, expected?: string, got?: string): MlaError {
  return new MlaError('invalid-argument', summary, {
    ...(argument !== undefined && { argument }),
    ...(expected !== undefined && { expected }),
    ...(got !== undefined && { got }),
  });
}

const WHY: Readonly<Record<string, string>> = {
  ENOENT: 'there is no such file or directory',
  EACCES: 'permission denied',
  EISDIR: 'it is a directory',
  ENOTDIR: 'a part of the path is not a directory',
  ENOSPC: 'the disk is full',
  EROFS: 'the file system is read-only',
};

/** An input file could not be read. */
export function readError(file: string, cause: unknown): MlaError {
  return new MlaError('invalid-file', `cannot be read: ${why(cause)}`, { argument: file, cause });
}

/** An output file could not be written: nothing that is wrong with the input. */
export function writeError(file: string, cause: unknown): Error {
  return new Error(`${file}: cannot be written: ${why(cause)}`, { cause });
}

function why(cause: unknown): string {
  const { code = '', message } = cause as NodeJS.ErrnoException;
  return WHY[code] ?? message;
}
