/**
 * A training run on disk:
 *   recipe.json  metrics.jsonl  samples/…  checkpoint-00001000/{model_index.json, unet/, unet_ema/, scheduler/, optimizer.safetensors, trainer_state.json}
 * A checkpoint is written under a temporary name and renamed when it is complete, so whatever kills the process, the one before stays whole.
 * unet/ and unet_ema/ are diffusers' folder layout.
 */
import { existsSync } from 'node:fs';
import { mkdir, readdir, readFile, rename, rm } from 'node:fs/promises';
import path from 'node:path';
import { BruitError } from '../engine/errors';
import { writeSafetensors } from '../io/safetensors';
import type { NamedTensor } from '../model/parameters';
import type { TrainConfig } from '../train/config';
import type { TrainerState, TrainerTensors } from '../train/trainer';
import { parseTrainerState } from '../train/trainer_state';
import { writeFileAtomic } from './files';
import { openTensorFile } from './file_source';

const checkpointName = /^checkpoint-(\d{8})$/;

/** Checkpoints of a run, oldest first. Unfinished ones carry another name and are not listed. */
export async function listCheckpoints(run: string): Promise<{ step: number; path: string }[]> {
  if (!existsSync(run)) return [];
  const found = (await readdir(run)).flatMap((name) => {
    const match = checkpointName.exec(name);
    return match ? [{ step: Number(match[1]), path: path.join(run, name) }] : [];
  });
  return found.sort((a, b) => a.step - b.step);
}

const json = (value: unknown): string => `${JSON.stringify(value, null, 2)}\n`;
const f32 = (tensors: readonly NamedTensor[], prefix = '') => tensors.map((t) => ({ name: prefix + t.name, dtype: 'F32' as const, shape: [...t.shape], data: t.data }));

/** Writes a UNet2DModel folder as diffusers does: config.json and diffusion_pytorch_model.safetensors. */
export async function writeModelFolder(dir: string, config: object, tensors: readonly NamedTensor[], dtype: 'F32' | 'F16' = 'F32'): Promise<void> {
  await mkdir(dir, { recursive: true });
  await writeFileAtomic(path.join(dir, 'config.json'), json({ _class_name: 'UNet2DModel', ...config }));
  await writeFileAtomic(path.join(dir, 'diffusion_pytorch_model.safetensors'), writeSafetensors(f32(tensors).map((t) => ({ ...t, dtype })), { format: 'pt' }));
}

/** Saves a checkpoint and drops all but the newest `keep`. */
export async function saveCheckpoint(run: string, config: TrainConfig, state: TrainerState, tensors: TrainerTensors, keep = 2): Promise<string> {
  const name = `checkpoint-${String(state.step).padStart(8, '0')}`;
  const final = path.join(run, name);
  const temporary = path.join(run, `.${name}.${process.pid}.tmp`);
  await rm(temporary, { recursive: true, force: true });
  await mkdir(path.join(temporary, 'scheduler'), { recursive: true });
  await writeModelFolder(path.join(temporary, 'unet'), config.modelJson, tensors.weights);
  await writeModelFolder(path.join(temporary, 'unet_ema'), config.modelJson, tensors.ema);
  await writeFileAtomic(path.join(temporary, 'scheduler', 'scheduler_config.json'), json(config.schedulerJson));
  const scheduler = (config.schedulerJson as { _class_name?: string })._class_name ?? 'DDPMScheduler';
  await writeFileAtomic(path.join(temporary, 'model_index.json'), json({ _class_name: 'DDPMPipeline', unet: ['diffusers', 'UNet2DModel'], scheduler: ['diffusers', scheduler] }));
  // A model trained without its label now and then can be guided; the scale is a sampling choice, 1 is none.
  if (config.conditionDropout > 0) await writeFileAtomic(path.join(temporary, 'bruit.json'), json({ guidance_scale: 1, null_label: config.model.num_class_embeds! - 1 }));
  await writeFileAtomic(path.join(temporary, 'optimizer.safetensors'), writeSafetensors([...f32(tensors.moment1, 'exp_avg.'), ...f32(tensors.moment2, 'exp_avg_sq.')]));
  await writeFileAtomic(path.join(temporary, 'trainer_state.json'), json(state));
  await rm(final, { recursive: true, force: true });
  await rename(temporary, final);
  const old = (await listCheckpoints(run)).slice(0, -keep);
  await Promise.all(old.map((c) => rm(c.path, { recursive: true, force: true })));
  return final;
}

/** Reads what {@link saveCheckpoint} wrote. */
export async function loadCheckpoint(dir: string): Promise<{ state: TrainerState; tensors: TrainerTensors }> {
  const file = path.join(dir, 'trainer_state.json');
  const text = await readFile(file, 'utf8').catch((e: unknown) => {
    throw new BruitError('checkpoint', `${file} cannot be read (${(e as Error).message}): this is not a training checkpoint`, { cause: e });
  });
  const state = parseTrainerState(text, file);
  const read = async (name: string, prefix = ''): Promise<NamedTensor[]> => {
    const store = await openTensorFile(path.join(dir, name));
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
