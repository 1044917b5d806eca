/** The webgpu backend through Dawn: on SwiftShader, or with FLASHMLA_ADAPTER=system on this machine's GPU. */
import { createMla } from '../src/node.ts';
import { software } from './case-lists.ts';
import { conformance } from './conformance.ts';
import { softwareGpu } from './software-adapter.ts';

conformance('webgpu', async () => createMla({ backend: 'webgpu', gpu: await softwareGpu(), tune: 'off' }), software);
