/** A small web server of files in memory, well-behaved or not. */
import { createServer, type IncomingMessage, type ServerResponse } from 'node:http';
import type { AddressInfo } from 'node:net';

export interface FileServer {
  readonly url: string;
  /** `GET /path bytes=0-9` of each request, in order. */
  readonly requests: string[];
  /** Answers in place of the files, while it returns true. */
  intercept: ((request: IncomingMessage, response: ServerResponse) => boolean) | undefined;
  close(): Promise<void>;
}

export async function serveFiles(files: ReadonlyMap<string, Uint8Array>, { ranges = true }: { readonly ranges?: boolean } = {}): Promise<FileServer> {
  const requests: string[] = [];
  const server = createServer((request, response) => {
    const path = decodeURIComponent(request.url ?? '').slice(1);
    const { range = '' } = request.headers;
    requests.push(`${path} ${range}`.trim());
    if (self.intercept?.(request, response)) return;
    const file = files.get(path);
    const [, from, to] = /^bytes=(\d+)-(\d+)$/.exec(range) ?? [];
    if (file === undefined) response.writeHead(404).end('no such file');
    else if (!ranges || from === undefined) response.writeHead(200).end(file);
    else if (Number(from) >= file.length) response.writeHead(416, { 'content-range': `bytes */${file.length}` }).end();
    else {
      const part = file.subarray(Number(from), Number(to) + 1);
      response.writeHead(206, { 'content-range': `bytes ${from}-${Number(from) + part.length - 1}/${file.length}` }).end(part);
    }
  });
  await new Promise<void>((resolve) => server.listen(0, '127.0.0.1', resolve));
  const self: FileServer = {
    url: `http://127.0.0.1:${(server.address() as AddressInfo).port}`,
    requests,
    intercept: undefined,
    close: () => new Promise((resolve) => {
      server.close(() => resolve());
      server.closeAllConnections();
    }),
  };
  return self;
}
