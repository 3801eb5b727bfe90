/** Running a recipe from disk to disk: data, checkpoints, metrics, loss curve, resuming. */
import { existsSync } from 'node:fs';
import { mkdir, rm, writeFile } from 'node:fs/promises';
import path from 'node:path';
import { BatchLoader, type ImageDataset } from '../data/dataset';
import { digitScenes, sceneSize } from '../data/scenes';
import type { Engine } from '../engine/device';
import { BruitError } from '../engine/errors';
import { openWeights, type ModelFolder } from '../io/folder';
import { encodePng, imageGrid } from '../io/png';
import type { AutoencoderKLConfig } from '../model/autoencoder_kl';
import { samplerModel } from '../pipelines/ddpm';
import { createGpuSampler, type GpuSampler } from '../sampler/sample';
import { convertSchedulerConfig, createSampler } from '../sampler/scheduler_config';
import { loadTokenizer } from '../text/tokenizer';
import { Encoder, encodeDataset, measureScalingFactor } from '../train/autoencoder';
import { imageChannels, type TrainConfig } from '../train/config';
import type { StepMetrics } from '../train/step';
import { Trainer, type TrainerOptions, type TrainEvents } from '../train/trainer';
import { loadCaptionFolder } from './caption_folder';
import { appendJsonl, writeFileAtomic } from './files';
import { loadImageFolder } from './image_folder';
import { loadIdxFolder, loadMnist } from './mnist';
import { plotMetrics, readMetrics } from './plot';
import { loadRecipe } from './recipe';
import { listCheckpoints, loadCheckpoint, saveCheckpoint } from './run_directory';

/** The training part of a recipe's data, and what is held back where the source can say. */
export async function loadRecipeData(config: TrainConfig): Promise<{ train: ImageDataset; heldBack: ImageDataset | undefined }> {
  const { data, seed } = config;
  const folder = { size: data.size, channels: imageChannels(config) as 1 | 3 };
  if (data.source === 'folder') return { train: await loadImageFolder(data.path!, folder), heldBack: undefined };
  if (data.source === 'captions') return { train: await loadCaptionFolder(data.path!, folder), heldBack: undefined };
  if (data.source === 'scenes') {
    if (data.size !== sceneSize) throw new BruitError('config', `data: size ${data.size}: scenes come as ${sceneSize}`);
    const { train, heldBack } = await loadMnist({ heldBack: data.heldBack, seed });
    return { train: await digitScenes(train, { count: data.count, seed, pairs: data.pairs }), heldBack: await digitScenes(heldBack, { count: heldBack.length, seed, heldBack: true }) };
  }
  if (data.size !== 28 && data.size !== 32) throw new BruitError('config', `data: size ${data.size}: MNIST comes as 28 or, padded, 32`);
  const options = { size: data.size as 28 | 32, heldBack: data.heldBack, seed };
  return data.source === 'idx' ? loadIdxFolder(data.path!, 'train', options) : loadMnist(options);
}

export interface TrainRunOptions {
  readonly recipe: string;
  readonly out: string;
  /** Go on from the newest checkpoint in `out`. */
  readonly resume?: boolean;
  /** Start over in a folder that holds a run. */
  readonly overwrite?: boolean;
  /** Instead of the recipe's number of steps; the learning-rate schedule stays the recipe's. */
  readonly stopAfter?: number;
  readonly signal?: AbortSignal;
  readonly debugNan?: TrainerOptions['debugNan'];
  readonly onNonFinite?: TrainEvents['onNonFinite'];
  /** Called while images are encoded once, before training. */
  readonly onEncode?: (done: number, total: number) => void;
  /** `peakBytes`: GPU memory that the run takes at most. */
  readonly onStart?: (trainer: Trainer, total: number, peakBytes: number) => void;
  readonly onMetrics?: (metrics: readonly StepMetrics[]) => void;
  readonly onCheckpoint?: (dir: string) => void | Promise<void>;
}

export interface TrainRunResult {
  readonly steps: number;
  readonly checkpoint: string | undefined;
  readonly lossCurve: string;
  /** Mean loss of the last 100 steps. */
  readonly loss: number;
}

export async function runTraining(engine: Engine, o: TrainRunOptions): Promise<TrainRunResult> {
  const { text, config, weights, tokenizer } = await loadRecipe(o.recipe);

  const known = await listCheckpoints(o.out);
  const metricsFile = path.join(o.out, 'metrics.jsonl');
  if (o.resume && known.length === 0) throw new BruitError('input', `--resume: ${o.out} holds no finished checkpoint`);
  if (!o.resume && !o.overwrite && (known.length > 0 || existsSync(metricsFile))) throw new BruitError('input', `${o.out} already holds a training run: go on with --resume, start over with --overwrite, or choose another --out`);
  if (!o.resume && o.overwrite) await Promise.all([...known.map((c) => rm(c.path, { recursive: true })), rm(metricsFile, { force: true })]);

  const { train: images } = await loadRecipeData(config);
  const train = config.cacheLatents ? await encodeOnce(engine, config, weights.vae!, images, o) : images;
  const loader = new BatchLoader(train, { batchSize: config.batchSize, seed: config.seed, flip: config.data.flip ? 0.5 : 0 });
  const trainer = await Trainer.create(engine, config, train, loader, { weights, ...(tokenizer && { tokenizer: await loadTokenizer(tokenizer, '') }) }, { debugNan: o.debugNan });
  // Their configs have been read from these folders, so they are on disk.
  const folders = checkpointFolders(config, { ...weights, ...(tokenizer && { tokenizer }) });
  let grids: SampleGrids | undefined;
  let scale: Encoder | undefined;
  try {
    const newest = known[known.length - 1];
    if (o.resume && newest) {
      const { state, tensors } = await loadCheckpoint(newest.path, config);
      trainer.restore(state, tensors);
      // Steps after the checkpoint are run again: their lines go.
      const kept = (await readMetrics(metricsFile).catch(() => [])).filter((m) => m.step < state.step);
      await writeFile(metricsFile, kept.map((m) => `${JSON.stringify(m)}\n`).join(''));
    }
    await mkdir(o.out, { recursive: true });
    await writeFileAtomic(path.join(o.out, 'recipe.json'), text);
    await writeFileAtomic(path.join(o.out, 'run.json'), `${JSON.stringify({ adapter: engine.profile.name, data: train.name, images: train.length, weights: trainer.step.weights.count }, null, 2)}\n`);
    const total = Math.min(config.steps, o.stopAfter ?? Infinity);
    let checkpoint = newest?.path;
    grids = config.sampleEvery > 0 ? await SampleGrids.create(engine, trainer, train) : undefined;
    scale = config.model.kind === 'AutoencoderKL' ? await emaEncoder(engine, config.model.config, trainer, images) : undefined;
    // All buffers are made; what is read back on the way comes on top.
    o.onStart?.(trainer, total, engine.liveBytes + trainer.step.readBackBytes);
    let losses: number[] = [];
    await trainer.train({
      until: total,
      ...(o.signal && { signal: o.signal }),
      onMetrics: async (metrics) => {
        losses = [...losses, ...metrics.map((m) => m.loss)].slice(-100);
        await appendJsonl(metricsFile, ...metrics.map((m) => ({ step: m.step, loss: m.loss, lr: m.learningRate, grad_norm: m.gradNorm, ...(m.skipped && { skipped: true }) })));
        o.onMetrics?.(metrics);
      },
      ...(o.onNonFinite && { onNonFinite: o.onNonFinite }),
      onSample: async (t) => {
        await mkdir(path.join(o.out, 'samples'), { recursive: true });
        await writeFileAtomic(path.join(o.out, 'samples', `step-${String(t.stepsDone).padStart(8, '0')}.png`), await grids!.render());
      },
      onCheckpoint: async (t) => {
        checkpoint = await saveCheckpoint(o.out, config, await t.readState(), await t.readTensors(), { folders, ...(scale && config.model.kind === 'AutoencoderKL' && { scalingFactor: await measureScalingFactor(scale, config.model.config, images) }) });
        await o.onCheckpoint?.(checkpoint);
      },
    });
    const lossCurve = path.join(o.out, 'loss.png');
    await writeFileAtomic(lossCurve, await plotMetrics(await readMetrics(metricsFile), { title: 'Training loss', subtitle: `${train.name}, batch ${config.batchSize}` }));
    return { steps: trainer.stepsDone, checkpoint, lossCurve, loss: losses.reduce((a, b) => a + b, 0) / Math.max(losses.length, 1) };
  } finally {
    grids?.destroy();
    scale?.destroy();
    trainer.destroy();
  }
}

/** The pipeline's other models as a checkpoint names them. */
function checkpointFolders({ model, textEncoder, trainTextEncoder, vae }: TrainConfig, folders: Readonly<Record<string, ModelFolder | undefined>>): Record<string, ModelFolder> {
  const parts: Record<string, ModelFolder | undefined> = {
    ...(vae && { [model.kind === 'UNet2DModel' ? 'vqvae' : 'vae']: folders.vae }),
    ...(textEncoder && { tokenizer: folders.tokenizer }),
    ...(textEncoder && !trainTextEncoder && { text_encoder: folders.text_encoder }),
  };
  return Object.fromEntries(Object.entries(parts).filter((entry): entry is [string, ModelFolder] => entry[1] !== undefined));
}

async function encodeOnce(engine: Engine, { vae, batchSize }: TrainConfig, folder: ModelFolder, images: ImageDataset, { onEncode }: TrainRunOptions): Promise<ImageDataset> {
  const store = await openWeights(folder, '.');
  try {
    return await encodeDataset(engine, vae!.config, store, images, { batch: batchSize, ...(onEncode && { onProgress: onEncode }) });
  } finally {
    await store.close();
  }
}

/** The encoder of an autoencoder in training, with its moving averages. */
function emaEncoder(engine: Engine, vae: AutoencoderKLConfig, { step, config }: Trainer, images: ImageDataset): Promise<Encoder> {
  const [, height, width] = images.shape;
  return Encoder.create(engine, vae, Math.min(config.batchSize, images.length), [height, width], (parameters) => step.emaBindings(parameters, 'vae.'));
}

/** Pictures of what the EMA weights have learnt, always from the same seed: compiled once, drawn every `sample_every` steps. */
class SampleGrids {
  private constructor(
    private readonly sampler: GpuSampler,
    private readonly shape: readonly [number, number, number, number],
    private readonly labels: Int32Array | undefined,
  ) {}

  static async create(engine: Engine, { config, step }: Trainer, dataset: ImageDataset): Promise<SampleGrids> {
    if (config.model.kind !== 'UNet2DModel') throw new BruitError('config', 'samples on the way are drawn of a UNet2DModel');
    const { config: model } = config.model;
    const classes = dataset.classes?.length ?? 0;
    const labels = model.num_class_embeds === null ? undefined : Int32Array.from({ length: 20 }, (_, i) => i % Math.max(classes, 1));
    const shape = [labels?.length ?? 16, ...dataset.shape] as const;
    const sampler = await createGpuSampler(engine, {
      program: createSampler(convertSchedulerConfig(config.scheduler, 'DDIMScheduler'), { numInferenceSteps: Math.min(25, config.scheduler.num_train_timesteps) }),
      shape,
      ...samplerModel(model, (parameters) => step.emaBindings(parameters, 'unet.')),
      ...(labels && { labels }),
    });
    return new SampleGrids(sampler, shape, labels);
  }

  async render(): Promise<Uint8Array> {
    await this.sampler.run();
    // [-1,1] to [0,1]
    const data = (await this.sampler.read()).map((v) => Math.min(Math.max(v / 2 + 0.5, 0), 1));
    return encodePng(imageGrid({ data, shape: this.shape }, { ...(this.labels && { columns: 10, labels: Array.from(this.labels, String) }) }));
  }

  destroy(): void {
    this.sampler.destroy();
  }
}
