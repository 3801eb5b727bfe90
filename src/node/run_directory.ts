/**
 * A training run on disk:
 *   recipe.json  metrics.jsonl  samples/…  checkpoint-00001000/{model_index.json, unet/, unet_ema/, scheduler/, optimizer.safetensors, trainer_state.json}
 * A checkpoint is written under a temporary name and renamed when it is complete, so whatever kills the process, the one before stays whole.
 * unet/ and unet_ema/ are diffusers' folder layout.
 */
import { existsSync } from 'node:fs';
import { mkdir, readdir, rename, rm } from 'node:fs/promises';
import path from 'node:path';
import type { NamedTensor } from '../model/parameters';
import { checkpointFiles, modelFiles, readCheckpoint, type CheckpointFile } from '../train/checkpoint_files';
import type { TrainConfig } from '../train/config';
import type { TrainerState, TrainerTensors } from '../train/trainer';
import { directory } from './directory';
import { writeFileAtomic } from './files';

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

/** Writes a UNet2DModel folder as diffusers does: config.json and diffusion_pytorch_model.safetensors. */
export async function writeModelFolder(dir: string, config: object, tensors: readonly NamedTensor[], dtype: 'F32' | 'F16' = 'F32'): Promise<void> {
  await writeFiles(path.dirname(dir), modelFiles(path.basename(dir), config, tensors, dtype));
}

async function writeFiles(folder: string, files: Iterable<CheckpointFile>): Promise<void> {
  for (const [name, contents] of files) {
    const file = path.join(folder, name);
    await mkdir(path.dirname(file), { recursive: true });
    await writeFileAtomic(file, contents);
  }
}

/** Saves a checkpoint and drops all but the newest `keep`. */
export async function saveCheckpoint(run: string, config: TrainConfig, state: TrainerState, tensors: TrainerTensors, keep = 2): Promise<string> {
  const name = `checkpoint-${String(state.step).padStart(8, '0')}`;
  const final = path.join(run, name);
  const temporary = path.join(run, `.${name}.${process.pid}.tmp`);
  await rm(temporary, { recursive: true, force: true });
  await writeFiles(temporary, checkpointFiles(config, state, tensors));
  await rm(final, { recursive: true, force: true });
  await rename(temporary, final);
  const old = (await listCheckpoints(run)).slice(0, -keep);
  await Promise.all(old.map((c) => rm(c.path, { recursive: true, force: true })));
  return final;
}

/** Reads what {@link saveCheckpoint} wrote. */
export const loadCheckpoint = (dir: string): ReturnType<typeof readCheckpoint> => readCheckpoint(directory(dir));
