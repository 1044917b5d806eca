import { gridOf } from './grid.ts';

gridOf(64, 1);
