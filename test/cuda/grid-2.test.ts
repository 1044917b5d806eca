import { gridOf } from './grid.ts';

gridOf(2);
