/**
 * A training run on disk:
 *   recipe.json  metrics.jsonl  samples/…  checkpoint-00001000/{model_index.json, unet/, unet_ema/, …, optimizer.safetensors, trainer_state.json}
 * A checkpoint is written under a temporary name and renamed when it is complete, so whatever kills the process, the one before stays whole.
 * It is a pipeline in diffusers' layout (DDPMPipeline, StableDiffusionPipeline, DiTPipeline) with the moving averages beside it, an autoencoder (`vae/`,
 * `vae_ema/`), or an adapter's file alone (`pytorch_lora_weights.safetensors`, `learned_embeds.safetensors`, and the moving averages' with `_ema`).
 */
import { existsSync } from 'node:fs';
import { cp, mkdir, readdir, readFile, rename, rm } from 'node:fs/promises';
import path from 'node:path';
import { BruitError } from '../engine/errors';
import type { ModelFolder } from '../io/folder';
import { writeSafetensors } from '../io/safetensors';
import type { NamedTensor } from '../model/parameters';
import { learnedEmbeds, loraFileName, loraParameterName, loraPrefix } from '../train/adapters';
import { stepComponents } from '../train/components';
import { modelFolders, nullLabel, type TrainConfig } from '../train/config';
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

const writeTensors = (file: string, tensors: readonly NamedTensor[], dtype: 'F32' | 'F16' = 'F32'): Promise<void> =>
  writeFileAtomic(file, writeSafetensors(f32(tensors).map((t) => ({ ...t, dtype })), { format: 'pt' }));

/** Writes a model's folder as diffusers does: config.json (of a UNet2DModel, unless it says otherwise) and diffusion_pytorch_model.safetensors (transformers: model.safetensors). */
export async function writeModelFolder(dir: string, config: object, tensors: readonly NamedTensor[], dtype: 'F32' | 'F16' = 'F32', file = 'diffusion_pytorch_model'): Promise<void> {
  await mkdir(dir, { recursive: true });
  await writeFileAtomic(path.join(dir, 'config.json'), json({ _class_name: 'UNet2DModel', ...config }));
  await writeTensors(path.join(dir, `${file}.safetensors`), tensors, dtype);
}

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
  await mkdir(temporary, { recursive: true });
  for (const file of weightFiles(config)) {
    for (const part of ['weights', 'ema'] as const) {
      const own = tensors[part].flatMap((t) => {
        const inFile = file.toFile(t.name);
        return inFile === undefined ? [] : [{ ...t, name: inFile }];
      });
      await mkdir(path.dirname(path.join(temporary, file[part])), { recursive: true });
      await writeTensors(path.join(temporary, file[part]), own);
    }
  }
  for (const c of stepComponents(config).filter((c) => c.trained)) {
    const text = json({ ...c.json, ...(scalingFactor !== undefined && { scaling_factor: scalingFactor }) });
    for (const folder of [c.name, `${c.name}_ema`]) await writeFileAtomic(path.join(temporary, folder, 'config.json'), text);
  }
  if (config.method === 'full' && config.model.kind !== 'AutoencoderKL') {
    for (const [part, { name: from }] of Object.entries(folders)) await cp(from, path.join(temporary, part), { recursive: true });
    await writeFileAtomic(path.join(temporary, 'scheduler', 'scheduler_config.json'), json(config.schedulerJson));
    await writeFileAtomic(path.join(temporary, 'model_index.json'), json(modelIndex(config)));
    const none = nullLabel(config.model);
    // A model trained without its label now and then can be guided; the scale is a sampling choice, 1 is none.
    if (config.conditionDropout > 0 && config.model.kind === 'UNet2DModel') await writeFileAtomic(path.join(temporary, 'bruit.json'), json({ guidance_scale: 1, null_label: none }));
  }
  await writeFileAtomic(path.join(temporary, 'optimizer.safetensors'), writeSafetensors([...f32(tensors.moment1, 'exp_avg.'), ...f32(tensors.moment2, 'exp_avg_sq.')]));
  await writeFileAtomic(path.join(temporary, 'trainer_state.json'), json(state));
  await rm(final, { recursive: true, force: true });
  await rename(temporary, final);
  const old = (await listCheckpoints(run)).slice(0, -keep);
  await Promise.all(old.map((c) => rm(c.path, { recursive: true, force: true })));
  return final;
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
export async function readTrainerState(dir: string): Promise<TrainerState> {
  const file = path.join(dir, 'trainer_state.json');
  const text = await readFile(file, 'utf8').catch((e: unknown) => {
    throw new BruitError('checkpoint', `${file} cannot be read (${(e as Error).message}): this is not a training checkpoint`, { cause: e });
  });
  return parseTrainerState(text, file);
}

/** Reads what {@link saveCheckpoint} wrote for a recipe. */
export async function loadCheckpoint(dir: string, config: TrainConfig): Promise<{ state: TrainerState; tensors: TrainerTensors }> {
  const state = await readTrainerState(dir);
  const read = async (name: string, rename: (inFile: string) => string | undefined): Promise<NamedTensor[]> => {
    const store = await openTensorFile(path.join(dir, name));
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
      await writeTensors(target, tensors, dtype);
    } finally {
      await store.close();
    }
  }
  return trained;
}
