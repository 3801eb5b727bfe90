/** The table of model classes that cases may be of. */
import { BruitError } from '../../engine/errors';
import { isJsonObject } from '../../io/json';
import type { ModelClass } from '../model';
import { autoencoderModels } from './autoencoder';
import { controlNetModel } from './controlnet';
import { textModels } from './text';
import { priorTransformerModel, transformer2dModel } from './transformers';
import { unet2dModel } from './unet2d';
import { unet2dConditionModel } from './unet2d_condition';

export const modelClasses: readonly ModelClass[] = [unet2dModel, unet2dConditionModel, controlNetModel, transformer2dModel, priorTransformerModel, ...textModels, ...autoencoderModels];

/** The class that a config.json names. @throws BruitError `input` if there is none, or none that is known. */
export function modelClassOf(config: unknown, folder: string): ModelClass {
  const name = isJsonObject(config) ? (config._class_name ?? (config.architectures as string[] | undefined)?.[0]) : undefined;
  const found = modelClasses.find(({ names }) => names.includes(name as string));
  if (found) return found;
  const known = modelClasses.flatMap(({ names }) => names).join(', ');
  throw new BruitError('input', `${folder}: ${typeof name === 'string' ? `${name} is not supported (yet)` : 'config.json names no class (_class_name, or architectures)'}; bruit verifies ${known}, schedulers, hybrid losses, learning rates, Fréchet distances, tokenizers and torch's random draws`);
}
