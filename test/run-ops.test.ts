/** The way to a backend's `run`: who may pass what, attention among other operations, and the worker in between. */
import { MessageChannel } from 'node:worker_threads';
import { describe, expect, test } from 'vitest';
import type { Backend } from '../src/backend.ts';
import { MlaHost } from '../src/host.ts';
import { createBackend, createMla } from '../src/index.ts';
import type { Mla, MlaTensor } from '../src/mla.ts';
import { runOps } from '../src/run-ops.ts';
import { connect, serve } from '../src/worker/index.ts';
import { expectRefusal } from './check.ts';

const copy = (mla: Mla, from: MlaTensor, to: MlaTensor): Promise<void> =>
  runOps(mla, ({ id }) => [{ op: 'takeRows', rows: Int32Array.of(1, 0), n: 2, x: id(from, 'from'), out: id(to, 'to') }]);
const floats = (mla: Mla, ...values: number[]): Promise<MlaTensor> => mla.tensor({ data: Float32Array.from(values), shape: [values.length], dtype: 'f32' });

describe('tensors of operations', () => {
  test('must be alive, of this instance, and tensors', async () => {
    const [mla, other] = [await createMla({ backend: 'cpu' }), await createMla({ backend: 'cpu' })];
    const [from, to, foreign] = [await floats(mla, 1, 2, 3, 4), await floats(mla, 0, 0, 0, 0), await floats(other, 0, 0, 0, 0)];
    await expectRefusal(() => copy(mla, from, foreign), 'invalid-argument', 'to');
    await expectRefusal(() => copy(mla, {} as MlaTensor, to), 'invalid-argument', 'from');
    await copy(mla, from, to);
    from.destroy(); // what is enqueued completes
    expect(await to.read()).toEqual(Float32Array.of(3, 4, 1, 2));
    await expectRefusal(() => copy(mla, from, to), 'destroyed', 'from');
    await mla.destroy();
    await expectRefusal(() => copy(mla, from, to), 'destroyed', 'mla');
    await other.destroy();
  });

  test('arrays are taken as they are at the call', async () => {
    const mla = await createMla({ backend: 'cpu' });
    const [from, to] = [await floats(mla, 1, 2, 3, 4), await floats(mla, 0, 0, 0, 0)];
    const rows = Int32Array.of(1, 0);
    const done = runOps(mla, ({ id }) => [{ op: 'takeRows', rows, n: 2, x: id(from, 'from'), out: id(to, 'to') }]);
    rows.fill(0);
    await done;
    expect(await to.read()).toEqual(Float32Array.of(3, 4, 1, 2));
    await mla.destroy();
  });
});

describe('a backend that runs no models', () => {
  /** As cuda's. */
  const without = async (): Promise<Backend> => Object.assign(Object.create(await createBackend({ backend: 'cpu' })), { run: undefined }) as Backend;
  const fake = { info: { backend: 'cuda' }, destroy: () => undefined } as unknown as Backend;

  test('says so', () => expectRefusal(() => runOps(new MlaHost(fake), () => []), 'backend-unavailable', 'backend').then(() => undefined));

  test('says so from a worker', async () => {
    const { port1: ours, port2: theirs } = new MessageChannel();
    serve(async () => without(), theirs);
    const mla = await connect(ours);
    await expectRefusal(() => runOps(mla, () => []), 'backend-unavailable', 'backend');
    ours.close();
  });
});

test('through a worker', async () => {
  const { port1: ours, port2: theirs } = new MessageChannel();
  serve(() => createBackend({ backend: 'cpu' }), theirs);
  const mla = await connect(ours);
  const [from, to] = [await floats(mla, 1, 2, 3, 4), await floats(mla, 0, 0, 0, 0)];
  await copy(mla, from, to);
  expect(await to.read()).toEqual(Float32Array.of(3, 4, 1, 2));
  await mla.destroy();
  ours.close();
});

