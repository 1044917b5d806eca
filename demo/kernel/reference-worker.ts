/** The thread of the float64 reference: makes the random tokens, keeps them, and judges results. */
import { expose, transfer } from 'comlink';
import { TokenStore } from './token-store.ts';

const store = new TokenStore();

const service = {
  reset: (seed: number): void => store.reset(seed),
  append(sequences: number[], counts: number[]): Uint16Array<ArrayBuffer> {
    const rows = store.append(sequences, counts);
    return transfer(rows, [rows.buffer]);
  },
  fork: (from: number, to: number): void => store.fork(from, to),
  free: (...sequences: number[]): void => store.free(...sequences),
  query(rows: number): Uint16Array<ArrayBuffer> {
    const q = store.query(rows);
    return transfer(q, [q.buffer]);
  },
  check: store.check.bind(store),
};

export type ReferenceService = typeof service;

expose(service);
