/** The page: five figures, each on its own, so that one that cannot work leaves the others alone. */
import { byId } from '../site/dom.ts';
import { mountAbsorptionFigure } from './absorption-figure.ts';
import { mountBf16Figure } from './bf16-figure.ts';
import { mountLatentFigure } from './latent-figure.ts';
import { mountMergeFigure } from './merge-figure.ts';
import { mountPagingFigure } from './paging-figure.ts';
import { mountSplitFigure } from './split-figure.ts';

const tell = (id: string) => (error: Error): void => {
  byId(id).textContent = `This figure could not start: ${error.message}`;
};

mountLatentFigure();
mountAbsorptionFigure();
mountSplitFigure();
void mountBf16Figure();
mountPagingFigure().catch(tell('pool-stats'));
mountMergeFigure().catch(tell('merge-device'));
