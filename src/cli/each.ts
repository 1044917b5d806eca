/** Work for one thing after the other on one instance: what fails is told of, a device that is lost is replaced. */
import { MlaError } from '../errors.ts';
import type { Mla, MlaInfo } from '../mla.ts';
import { openMla, type Context, type MlaChoice } from './context.ts';

/**
 * Does `work` for each item in turn. One that fails keeps no other from its turn: `failed` hears of it. Where a device is lost and no
 * other one is to be had, it hears of all items to come.
 * @returns what the first instance said of itself
 * @throws MlaError where there is none to begin with
 */
export async function forEachOn<Item>(
  context: Context, choice: MlaChoice, items: readonly Item[], work: (mla: Mla, item: Item) => Promise<void>, failed: (item: Item, error: unknown) => void,
): Promise<MlaInfo> {
  let mla: Mla | undefined = await openMla(context, choice);
  const { info } = mla;
  try {
    for (const item of items) {
      try {
        mla ??= await openMla(context, choice);
        await work(mla, item);
      } catch (error) {
        failed(item, error);
        if (!(error instanceof MlaError) || error.code !== 'device-lost') continue;
        await mla?.destroy();
        mla = undefined;
      }
    }
  } finally {
    await mla?.destroy();
  }
  return info;
}
