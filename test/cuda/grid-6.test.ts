import { gridOf } from './grid.ts';

gridOf(6);
