/** What went wrong, in plain words. Pure. */
import type { MlaErrorCode } from '../../src/errors.ts';
import type { Diagnosis } from '../site/diagnosis.ts';
import type { Origin } from './protocol.ts';

type Failure = { readonly code: MlaErrorCode; readonly argument?: string | undefined };

const TOO_LARGE: Diagnosis = { title: 'Too large for this device', text: 'The model, or its cache, needs more than this device gives a page. A smaller one may fit.' };
const DEFECT: Diagnosis = { title: 'A defect: please report it', text: 'This should not happen.' };

/** Why a model did not load. */
export function loadTrouble({ code }: Failure, kind: Origin['kind']): Diagnosis {
  switch (code) {
    case 'invalid-argument':
      return { title: 'That is not the name of a model', text: 'Names on the hub have two parts: owner/name.' };
    case 'unsupported-model':
      return { title: 'This model does not run here', text: 'Models of the architectures deepseek_v2 and deepseek_v3 do, unless their settings are unusual.' };
    case 'invalid-shape':
    case 'invalid-dtype':
      return { title: 'The weights do not fit', text: 'They are not those that the model’s config.json describes, or of a type that is not read.' };
    case 'out-of-memory':
    case 'limit-exceeded':
      return TOO_LARGE;
    case 'invalid-file':
      return UNREADABLE[kind];
    default:
      return DEFECT;
  }
}

const UNREADABLE: Readonly<Record<Origin['kind'], Diagnosis>> = {
  shipped: { title: 'The model could not be fetched', text: 'Check the connection and try again. Files that came whole are kept.' },
  folder: { title: 'There is no model to read in that folder', text: 'It needs config.json, tokenizer.json and the weights as safetensors: one file, or shards with their index.' },
  hub: { title: 'The hub gave no such model', text: 'It may not exist, not be public, or lack a file: config.json, tokenizer.json or the weights as safetensors. The hub may also be out of reach.' },
};

/** Why a text did not begin, or did not go on. */
export function textTrouble({ code, argument }: Failure): Diagnosis {
  if (code === 'pool-exhausted') return { title: 'The cache is full', text: 'All its blocks are held by texts. End one, and its blocks are free for others.' };
  if (code === 'invalid-argument' && argument === 'prompt') return { title: 'Nothing to begin with', text: 'This model needs at least one token of text.' };
  if (code === 'limit-exceeded' && argument === 'prompt') return { title: 'The text is as long as this model allows', text: 'Begin with a shorter one.' };
  if (code === 'out-of-range') return { title: 'That text has ended', text: 'Its rows are no longer in the cache.' };
  return code === 'out-of-memory' || code === 'limit-exceeded' ? TOO_LARGE : DEFECT;
}
