/** The thread that loads models and writes texts, so that the page never waits for either. */
import { expose } from 'comlink';
import { Writer } from './writer.ts';

expose(new Writer());
