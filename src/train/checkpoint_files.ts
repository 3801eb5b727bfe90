/**
 * A training checkpoint as files, wherever they are kept: a pipeline in diffusers' layout with the moving averages beside it (`unet/`, `unet_ema/`), an
 * autoencoder, or an adapter's file; the optimizer's moments and where the run stood.
 */
import { BruitError } from '../engine/errors';
import type { ModelFolder } from '../io/folder';
import { openSafetensors, writeSafetensors } from '../io/safetensors';
import type { NamedTensor } from '../model/parameters';
import { learnedEmbeds, loraFileName, loraParameterName, loraPrefix } from './adapters';
import { stepComponents } from './components';
import { modelFolders, nullLabel, type TrainConfig } from './config';
import type { TrainerState, TrainerTensors } from './trainer';

/** Path and contents. */
export type CheckpointFile = readonly [path: string, contents: string | Uint8Array<ArrayBuffer>];

/** JSON as these files are written. */
export const configText = (value: unknown): string => `${JSON.stringify(value, null, 2)}\n`;

const named = (tensors: readonly NamedTensor[], dtype: 'F32' | 'F16' = 'F32', prefix = '') => tensors.map((t) => ({ name: prefix + t.name, dtype, shape: [...t.shape], data: t.data }));

/** A file of weights as diffusers writes it. */
export const packTensors = (tensors: readonly NamedTensor[], dtype: 'F32' | 'F16' = 'F32'): Uint8Array<ArrayBuffer> => writeSafetensors(named(tensors, dtype), { format: 'pt' });

/** Files of weights in a checkpoint. Each has a twin with the moving averages. */
interface WeightFile {
  readonly weights: string;
  readonly ema: string;
  /** Name in the file of a parameter of the step; undefined for those of other files. */
  toFile(name: string): string | undefined;
  toStep(name: string): string;
}

function weightFiles(config: TrainConfig): WeightFile[] {
  const folder = modelFolders[config.model.kind];
  const renamed = (prefix: string, file: string, toFile: (name: string) => string, toStep: (name: string) => string): WeightFile => ({
    weights: `${file}.safetensors`,
    ema: `${file}_ema.safetensors`,
    toFile: (name) => (name.startsWith(prefix) ? toFile(name) : undefined),
    toStep,
  });
  if (config.method === 'lora') return [renamed(loraPrefix, 'pytorch_lora_weights', (name) => loraFileName(folder, name), (name) => loraParameterName(folder, name))];
  if (config.method === 'textual_inversion') return [renamed(learnedEmbeds, 'learned_embeds', () => config.textualInversion!.placeholder, () => learnedEmbeds)];
  return stepComponents(config)
    .filter((c) => c.trained)
    .map(({ name, file }) => ({
      weights: `${name}/${file}.safetensors`,
      ema: `${name}_ema/${file}.safetensors`,
      toFile: (full) => (full.startsWith(`${name}.`) ? full.slice(name.length + 1) : undefined),
      toStep: (own) => `${name}.${own}`,
    }));
}

/** Whether a run's checkpoints are pipelines that can be sampled from. */
export const isPipeline = (config: TrainConfig): boolean => config.method === 'full' && config.model.kind !== 'AutoencoderKL';

/**
 * All files of a checkpoint but for those of models that are not trained, one at a time: a caller that stores each needs no memory for all.
 * @param scalingFactor of a trained autoencoder.
 */
export function* checkpointFiles(config: TrainConfig, state: TrainerState, tensors: TrainerTensors, scalingFactor?: number): Generator<CheckpointFile> {
  for (const file of weightFiles(config)) {
    for (const part of ['weights', 'ema'] as const) {
      const own = tensors[part].flatMap((t) => {
        const inFile = file.toFile(t.name);
        return inFile === undefined ? [] : [{ ...t, name: inFile }];
      });
      yield [file[part], packTensors(own)];
    }
  }
  for (const c of stepComponents(config).filter((c) => c.trained)) {
    const text = configText({ ...c.json, ...(scalingFactor !== undefined && { scaling_factor: scalingFactor }) });
    for (const folder of [c.name, `${c.name}_ema`]) yield [`${folder}/config.json`, text];
  }
  if (isPipeline(config)) {
    yield ['scheduler/scheduler_config.json', configText(config.schedulerJson)];
    yield ['model_index.json', configText(modelIndex(config))];
    const none = nullLabel(config.model);
    // A model trained without its label now and then can be guided; the scale is a sampling choice, 1 is none.
    if (config.conditionDropout > 0 && config.model.kind === 'UNet2DModel') yield ['bruit.json', configText({ guidance_scale: 1, null_label: none })];
  }
  yield ['optimizer.safetensors', writeSafetensors([...named(tensors.moment1, 'F32', 'exp_avg.'), ...named(tensors.moment2, 'F32', 'exp_avg_sq.')])];
  yield ['trainer_state.json', configText(state)];
}

/** The pipeline that a checkpoint is. */
function modelIndex(config: TrainConfig): object {
  const scheduler = ['diffusers', (config.schedulerJson as { _class_name?: string })._class_name ?? 'DDPMScheduler'];
  const { kind } = config.model;
  if (kind === 'UNet2DModel' && !config.vae) return { _class_name: 'DDPMPipeline', unet: ['diffusers', kind], scheduler };
  const vae = ['diffusers', 'AutoencoderKL'];
  if (kind === 'UNet2DModel') return { _class_name: 'LDMPipeline', unet: ['diffusers', kind], vqvae: vae, scheduler };
  if (kind === 'Transformer2DModel') return { _class_name: 'DiTPipeline', transformer: ['diffusers', kind], vae, scheduler };
  return {
    _class_name: 'StableDiffusionPipeline',
    vae,
    text_encoder: ['transformers', 'CLIPTextModel'],
    tokenizer: ['transformers', 'CLIPTokenizer'],
    unet: ['diffusers', kind],
    scheduler,
    safety_checker: [null, null],
    feature_extractor: [null, null],
    requires_safety_checker: false,
  };
}

/** Where a checkpoint's run stood. */
export async function readState(folder: ModelFolder): Promise<TrainerState> {
  try {
    return JSON.parse(await folder.text('trainer_state.json')) as TrainerState;
  } catch (e) {
    throw new BruitError('checkpoint', `${folder.name}/trainer_state.json cannot be read (${(e as Error).message}): this is not a training checkpoint`, { cause: e });
  }
}

/** Reads what {@link checkpointFiles} made for a recipe. */
export async function readCheckpoint(folder: ModelFolder, config: TrainConfig): Promise<{ state: TrainerState; tensors: TrainerTensors }> {
  const state = await readState(folder);
  const read = async (name: string, rename: (inFile: string) => string | undefined): Promise<NamedTensor[]> => {
    const store = await openSafetensors(await folder.source(name));
    try {
      const out: NamedTensor[] = [];
      for (const [key, info] of store.tensors) {
        const own = rename(key);
        if (own !== undefined) out.push({ name: own, shape: info.shape, data: await store.readF32(key) });
      }
      return out;
    } finally {
      await store.close();
    }
  };
  const all = async (part: 'weights' | 'ema'): Promise<NamedTensor[]> => (await Promise.all(weightFiles(config).map((f) => read(f[part], (name) => f.toStep(name))))).flat();
  const moments = (prefix: string): Promise<NamedTensor[]> => read('optimizer.safetensors', (name) => (name.startsWith(prefix) ? name.slice(prefix.length) : undefined));
  return { state, tensors: { weights: await all('weights'), ema: await all('ema'), moment1: await moments('exp_avg.'), moment2: await moments('exp_avg_sq.') } };
}
