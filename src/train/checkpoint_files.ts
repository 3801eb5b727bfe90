/**
 * A training checkpoint as files, wherever they are kept:
 *   model_index.json, unet/, unet_ema/, scheduler/ (diffusers' layout), bruit.json, optimizer.safetensors, trainer_state.json
 */
import { BruitError } from '../engine/errors';
import type { ModelFolder } from '../io/folder';
import { openSafetensors, writeSafetensors } from '../io/safetensors';
import type { NamedTensor } from '../model/parameters';
import type { TrainConfig } from './config';
import type { TrainerState, TrainerTensors } from './trainer';

/** Path and contents. */
export type CheckpointFile = readonly [path: string, contents: string | Uint8Array<ArrayBuffer>];

const json = (value: unknown): string => `${JSON.stringify(value, null, 2)}\n`;
const named = (tensors: readonly NamedTensor[], dtype: 'F32' | 'F16' = 'F32', prefix = '') => tensors.map((t) => ({ name: prefix + t.name, dtype, shape: [...t.shape], data: t.data }));

/** A UNet2DModel folder as diffusers writes it: config.json and diffusion_pytorch_model.safetensors. */
export function* modelFiles(folder: string, config: object, tensors: readonly NamedTensor[], dtype: 'F32' | 'F16' = 'F32'): Generator<CheckpointFile> {
  yield [`${folder}/config.json`, json({ _class_name: 'UNet2DModel', ...config })];
  yield [`${folder}/diffusion_pytorch_model.safetensors`, writeSafetensors(named(tensors, dtype), { format: 'pt' })];
}

/** What makes a model folder a pipeline. */
export function* pipelineFiles(config: TrainConfig): Generator<CheckpointFile> {
  yield ['scheduler/scheduler_config.json', json(config.schedulerJson)];
  const scheduler = (config.schedulerJson as { _class_name?: string })._class_name ?? 'DDPMScheduler';
  yield ['model_index.json', json({ _class_name: 'DDPMPipeline', unet: ['diffusers', 'UNet2DModel'], scheduler: ['diffusers', scheduler] })];
  // A model trained without its label now and then can be guided; the scale is a sampling choice, 1 is none.
  if (config.conditionDropout > 0) yield ['bruit.json', json({ guidance_scale: 1, null_label: config.model.num_class_embeds! - 1 })];
}

/** All files of a checkpoint, one at a time: a caller that stores each needs no memory for all. */
export function* checkpointFiles(config: TrainConfig, state: TrainerState, tensors: TrainerTensors): Generator<CheckpointFile> {
  yield* modelFiles('unet', config.modelJson, tensors.weights);
  yield* modelFiles('unet_ema', config.modelJson, tensors.ema);
  yield* pipelineFiles(config);
  yield ['optimizer.safetensors', writeSafetensors([...named(tensors.moment1, 'F32', 'exp_avg.'), ...named(tensors.moment2, 'F32', 'exp_avg_sq.')])];
  yield ['trainer_state.json', json(state)];
}

/** Reads what {@link checkpointFiles} made. */
export async function readCheckpoint(folder: ModelFolder): Promise<{ state: TrainerState; tensors: TrainerTensors }> {
  let state: TrainerState;
  try {
    state = JSON.parse(await folder.text('trainer_state.json')) as TrainerState;
  } catch (e) {
    throw new BruitError('checkpoint', `${folder.name}/trainer_state.json cannot be read (${(e as Error).message}): this is not a training checkpoint`, { cause: e });
  }
  const read = async (name: string, prefix = ''): Promise<NamedTensor[]> => {
    const store = await openSafetensors(await folder.source(name));
    try {
      const out: NamedTensor[] = [];
      for (const [key, info] of store.tensors) if (key.startsWith(prefix)) out.push({ name: key.slice(prefix.length), shape: info.shape, data: await store.readF32(key) });
      return out;
    } finally {
      await store.close();
    }
  };
  const tensors: TrainerTensors = {
    weights: await read('unet/diffusion_pytorch_model.safetensors'),
    ema: await read('unet_ema/diffusion_pytorch_model.safetensors'),
    moment1: await read('optimizer.safetensors', 'exp_avg.'),
    moment2: await read('optimizer.safetensors', 'exp_avg_sq.'),
  };
  return { state, tensors };
}
