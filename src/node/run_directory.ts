/**
 * A training run on disk:
 *   recipe.json  metrics.jsonl  samples/…  checkpoint-00001000/{model_index.json, unet/, unet_ema/, …, optimizer.safetensors, trainer_state.json}
 * A checkpoint is written under a temporary name and renamed when it is complete, so whatever kills the process, the one before stays whole.
 * It is a pipeline in diffusers' layout (DDPMPipeline, StableDiffusionPipeline, DiTPipeline) with the moving averages beside it, an autoencoder (`vae/`,
 * `vae_ema/`), or an adapter's file alone (`pytorch_lora_weights.safetensors`, `learned_embeds.safetensors`, and the moving averages' with `_ema`).
 */
import { existsSync } from 'node:fs';
import { cp, readdir, readFile, rename, rm } from 'node:fs/promises';
import path from 'node:path';
import type { ModelFolder } from '../io/folder';
import type { NamedTensor } from '../model/parameters';
import { checkpointFiles, configText, isPipeline, packTensors, readCheckpoint, readState } from '../train/checkpoint_files';
import type { TrainConfig } from '../train/config';
import type { TrainerState, TrainerTensors } from '../train/trainer';
import { directory } from './directory';
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

/** Writes a model's folder as diffusers does: config.json (of a UNet2DModel, unless it says otherwise) and diffusion_pytorch_model.safetensors (transformers: model.safetensors). */
export async function writeModelFolder(dir: string, config: object, tensors: readonly NamedTensor[], dtype: 'F32' | 'F16' = 'F32', file = 'diffusion_pytorch_model'): Promise<void> {
  await writeFileAtomic(path.join(dir, 'config.json'), configText({ _class_name: 'UNet2DModel', ...config }));
  await writeFileAtomic(path.join(dir, `${file}.safetensors`), packTensors(tensors, dtype));
}

/** What a checkpoint holds beside what is trained. */
export interface CheckpointParts {
  /** Folders of the pipeline's other models and of its tokenizer, copied as they are. */
  readonly folders?: Readonly<Record<string, ModelFolder>>;
  /** Of a trained autoencoder. */
  readonly scalingFactor?: number;
  /** Newest checkpoints that stay; 2 by default. */
  readonly keep?: number;
}

/** Saves a checkpoint and drops all but the newest. */
export async function saveCheckpoint(run: string, config: TrainConfig, state: TrainerState, tensors: TrainerTensors, { folders = {}, scalingFactor, keep = 2 }: CheckpointParts = {}): Promise<string> {
  const name = `checkpoint-${String(state.step).padStart(8, '0')}`;
  const final = path.join(run, name);
  const temporary = path.join(run, `.${name}.${process.pid}.tmp`);
  await rm(temporary, { recursive: true, force: true });
  for (const [file, contents] of checkpointFiles(config, state, tensors, scalingFactor)) await writeFileAtomic(path.join(temporary, file), contents);
  if (isPipeline(config)) for (const [part, { name: from }] of Object.entries(folders)) await cp(from, path.join(temporary, part), { recursive: true });
  await rm(final, { recursive: true, force: true });
  await rename(temporary, final);
  const old = (await listCheckpoints(run)).slice(0, -keep);
  await Promise.all(old.map((c) => rm(c.path, { recursive: true, force: true })));
  return final;
}

/** Where a checkpoint's run stood. */
export const readTrainerState = (dir: string): Promise<TrainerState> => readState(directory(dir));

/** Reads what {@link saveCheckpoint} wrote for a recipe. */
export const loadCheckpoint = (dir: string, config: TrainConfig): ReturnType<typeof readCheckpoint> => readCheckpoint(directory(dir), config);

/**
 * Writes what a checkpoint is for without what training needs: moving averages in place of the weights, the other models as they are. All weights are
 * stored as `dtype`. Returns the number of weights that were trained.
 */
export async function exportCheckpoint(checkpoint: string, out: string, dtype: 'F32' | 'F16'): Promise<number> {
  const files = (await readdir(checkpoint, { recursive: true, withFileTypes: true })).filter((f) => f.isFile()).map((f) => path.relative(checkpoint, path.join(f.parentPath, f.name)));
  let trained = 0;
  for (const file of files) {
    if (/_ema(\/|\.safetensors$)|^(optimizer\.safetensors|trainer_state\.json)$/.test(file)) continue;
    const target = path.join(out, file);
    if (!file.endsWith('.safetensors')) {
      await writeFileAtomic(target, await readFile(path.join(checkpoint, file)));
      continue;
    }
    const twin = file.includes('/') ? file.replace(/^([^/]+)\//, '$1_ema/') : file.replace(/\.safetensors$/, '_ema.safetensors');
    const averaged = files.includes(twin);
    const store = await openTensorFile(path.join(checkpoint, averaged ? twin : file));
    try {
      const tensors: NamedTensor[] = [];
      for (const [name, { shape }] of store.tensors) tensors.push({ name, shape, data: await store.readF32(name) });
      if (averaged) trained += tensors.reduce((n, t) => n + t.data.length, 0);
      await writeFileAtomic(target, packTensors(tensors, dtype));
    } finally {
      await store.close();
    }
  }
  return trained;
}
