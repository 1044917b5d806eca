import { createMla } from '../src/index.ts';
import { software } from './case-lists.ts';
import { conformance } from './conformance.ts';

conformance('cpu', () => createMla({ backend: 'cpu' }), software);
