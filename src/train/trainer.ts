/** The training loop: batches in, steps submitted with a bounded queue, metrics, checkpoints. Knows no files; the caller stores what it is given. */
import type { Engine } from '../engine/device';
import { BruitError } from '../engine/errors';
import type { BatchLoader, BatchLoaderState, ImageDataset } from '../data/dataset';
import type { Graph, Tensor } from '../engine/graph';
import { matchCheckpoint } from '../io/checkpoint';
import { openWeights, type ModelFolder } from '../io/folder';
import { clipText, type CLIPTextConfig } from '../model/clip';
import type { ModelContext } from '../model/layers';
import type { NamedTensor, WeightStore } from '../model/parameters';
import { transformer2d } from '../model/transformer2d';
import { unet2d } from '../model/unet2d';
import { unet2dCondition } from '../model/unet2d_condition';
import { DiffusionProcess } from '../sampler/diffusion_process';
import { noiseTables } from '../sampler/scheduler_config';
import type { Tokenizer } from '../text/tokenizer';
import { embedWithNewWord, extendTokenizer, learnedEmbeds, withLora } from './adapters';
import { autoencoderForward, latentsOf } from './autoencoder';
import { componentContext, stepComponents, type ComponentName, type StepComponent } from './components';
import { imageChannels, modelFolders, nullLabel, recipeLearningRates, type TextualInversionRecipe, type TrainConfig } from './config';
import { diffusionForward, TrainingStep, METRIC_ROWS, type BuildForward, type BuildModel, type StepConfig, type StepMetrics } from './step';

/** Everything that a run needs to go on as if it had not stopped. */
export interface TrainerState {
  /** Optimizer steps done. */
  readonly step: number;
  readonly counters: readonly number[];
  readonly control: readonly number[];
  readonly microStep: number;
  readonly loader: BatchLoaderState;
}

/** The stores of a checkpoint by name, each in checkpoint layout. */
export interface TrainerTensors {
  readonly weights: NamedTensor[];
  readonly ema: NamedTensor[];
  readonly moment1: NamedTensor[];
  readonly moment2: NamedTensor[];
}

export interface TrainEvents {
  /** Stop after this many steps in all; `config.steps` by default. */
  readonly until?: number;
  readonly signal?: AbortSignal;
  /** Called about every `logEvery` steps with all steps since. */
  readonly onMetrics?: (metrics: StepMetrics[]) => void | Promise<void>;
  /** Called every `checkpointEvery` steps and at the end. */
  readonly onCheckpoint?: (trainer: Trainer) => Promise<void>;
  /** Called every `sampleEvery` steps. */
  readonly onSample?: (trainer: Trainer) => Promise<void>;
}

/** Steps that may be queued before the host waits: enough to keep a GPU busy, few enough that an abort is prompt. */
const queueDepth = 2;

/** What a run takes from elsewhere. */
export interface TrainerSources {
  /** Weights to begin with, each in a folder of its own with diffusers' or transformers' file name. */
  readonly weights?: Partial<Record<ComponentName, ModelFolder>>;
  /** For models that read text. */
  readonly tokenizer?: Tokenizer;
}

export class Trainer {
  private done = 0;
  /** Token ids by caption. */
  private readonly tokens = new Map<string, Int32Array>();

  private constructor(
    readonly config: TrainConfig,
    readonly step: TrainingStep,
    /** Models of the step, trained or not. */
    readonly components: readonly StepComponent[],
    private readonly dataset: ImageDataset,
    private readonly loader: BatchLoader,
    private readonly text: { readonly tokenizer: Tokenizer; readonly length: number } | undefined,
  ) {}

  /** Compiles the step of a recipe for a data set. Weights come from `sources`, or are freshly initialised. `loader` gives the batches of `dataset`. */
  static async create(engine: Engine, config: TrainConfig, dataset: ImageDataset, loader: BatchLoader, sources: TrainerSources = {}): Promise<Trainer> {
    checkData(config, dataset);
    const { textEncoder, textualInversion: inversion } = config;
    let text: Trainer['text'];
    if (textEncoder) {
      if (!sources.tokenizer) throw new BruitError('input', 'this recipe trains with text, so it needs a tokenizer');
      const tokenizer = inversion ? extendTokenizer(sources.tokenizer, inversion, textEncoder.config.vocab_size) : sources.tokenizer;
      text = { tokenizer, length: Math.min(tokenizer.modelMaxLength, textEncoder.config.max_position_embeddings) };
    }
    const [channels, height, width] = dataset.shape;
    const common: StepConfig = {
      batch: [config.batchSize, channels, height, width],
      optimizer: config.optimizer,
      learningRates: recipeLearningRates(config),
      emaDecay: config.emaDecay,
      seed: config.seed,
      labelled: nullLabel(config.model) !== undefined,
      ...(text && { tokens: text.length }),
      accumulation: config.accumulation,
      mixedPrecision: config.mixedPrecision,
      gradientCheckpointing: config.gradientCheckpointing,
    };
    const step = await TrainingStep.compile(engine, common, buildForward(config, text));
    try {
      step.weights.initialise(config.seed);
      step.frozen.initialise(config.seed);
      const components = stepComponents(config);
      for (const component of components) {
        const folder = sources.weights?.[component.name];
        if (folder) await loadComponent(step, component, folder);
      }
      const folder = sources.weights?.text_encoder;
      if (inversion && folder && text) await initialiseNewWord(step, inversion, folder, sources.tokenizer!);
      step.ema.copyFrom(step.weights);
      return new Trainer(config, step, components, dataset, loader, text);
    } catch (e) {
      step.destroy();
      throw e;
    }
  }

  /** [C,H,W] of the images. */
  get imageShape(): readonly [number, number, number] {
    const [, channels, height, width] = this.step.config.batch;
    return [channels, height, width];
  }

  /** Optimizer steps done so far. */
  get stepsDone(): number {
    return this.done;
  }

  /** Runs up to `until`; returns early, with everything whole, when the signal aborts. */
  async train(events: TrainEvents = {}): Promise<void> {
    const { config, step } = this;
    const until = Math.min(events.until ?? config.steps, config.steps);
    const queue: Promise<void>[] = [];
    let logged = this.done;
    const log = async () => {
      if (logged === this.done) return;
      const metrics = await step.metrics(logged);
      logged = this.done;
      await events.onMetrics?.(metrics);
    };
    // Rows of the ring must be read before they are written again.
    const logEvery = Math.min(config.logEvery, METRIC_ROWS);
    let saved = -1;
    const save = async () => {
      if (saved === this.done) return;
      await log();
      await events.onCheckpoint?.(this);
      saved = this.done;
    };
    while (this.done < until && !events.signal?.aborted) {
      for (let k = 0; k < config.accumulation; k++) {
        const { images, labels, indices } = await this.loader.next();
        step.write({ images, labels, ...(this.text && { inputIds: this.inputIds(indices) }) });
        step.run();
      }
      step.update();
      this.done++;
      queue.push(step.done());
      if (queue.length > queueDepth) await queue.shift();
      if (this.done % logEvery === 0) await log();
      if (this.done % config.checkpointEvery === 0) await save();
      if (config.sampleEvery && this.done % config.sampleEvery === 0) await events.onSample?.(this);
    }
    await Promise.all(queue);
    await log();
    await save();
  }

  async readState(): Promise<TrainerState> {
    const { counters, control, microStep } = await this.step.readState();
    return { step: this.done, counters: [...counters], control: [...control], microStep: microStep[0]!, loader: this.loader.state() };
  }

  /** Token ids [N,T] of the captions of some items. */
  private inputIds(indices: Uint32Array): Int32Array {
    const { tokenizer, length } = this.text!;
    const out = new Int32Array(indices.length * length);
    indices.forEach((index, i) => {
      const caption = this.dataset.captions![index]!;
      let ids = this.tokens.get(caption);
      if (!ids) this.tokens.set(caption, (ids = tokenizer.batch([caption], length).inputIds));
      out.set(ids, i * length);
    });
    return out;
  }

  /** Everything that training changes, and what lies beside it in the files of trained models. */
  async readTensors(): Promise<TrainerTensors> {
    const { step } = this;
    const own = this.components.filter((c) => c.trained).map((c) => `${c.name}.`);
    const isOwn = (name: string): boolean => own.some((prefix) => name.startsWith(prefix));
    const frozen = step.frozen.specs.some((s) => isOwn(s.name)) ? (await step.frozen.readAll()).filter((t) => isOwn(t.name)) : [];
    const whole = async (s: WeightStore) => [...(await s.readAll()), ...frozen];
    return { weights: await whole(step.weights), ema: await whole(step.ema), moment1: await step.moment1.readAll(), moment2: await step.moment2.readAll() };
  }

  /** Puts a run back where `state` and `tensors` were taken. */
  restore(state: TrainerState, tensors: TrainerTensors): void {
    const { step } = this;
    const frozen = new Set(step.frozen.specs.map((s) => s.name));
    const write = (store: WeightStore, list: NamedTensor[]) => list.forEach((t) => (frozen.has(t.name) ? step.frozen : store).write(t.name, t.data));
    write(step.weights, tensors.weights);
    write(step.ema, tensors.ema);
    write(step.moment1, tensors.moment1);
    write(step.moment2, tensors.moment2);
    step.writeState({ counters: Uint32Array.from(state.counters), control: Float32Array.from(state.control), microStep: Uint32Array.of(state.microStep) });
    this.loader.restore(state.loader);
    this.done = state.step;
  }

  destroy(): void {
    this.step.destroy();
  }
}

function checkData(config: TrainConfig, dataset: ImageDataset): void {
  const { model, vae } = config;
  const channels = config.cacheLatents ? 2 * vae!.config.latent_channels : imageChannels(config);
  if (dataset.shape[0] !== channels) throw new BruitError('config', `the ${vae ? 'autoencoder' : 'model'} takes images of ${channels} channels, data set ${dataset.name} has ${dataset.shape[0]}`);
  if (config.textEncoder && !dataset.captions) throw new BruitError('config', `data set ${dataset.name} has no captions, which a ${model.kind} is trained with`);
  const placeholder = config.textualInversion?.placeholder;
  if (placeholder !== undefined && !dataset.captions!.some((c) => c.includes(placeholder))) throw new BruitError('config', `no caption of data set ${dataset.name} holds the placeholder_token "${placeholder}", so there is nothing to learn of it`);
  const none = nullLabel(model);
  if (none === undefined) return;
  const classes = dataset.classes?.length ?? 0;
  const dropped = config.conditionDropout > 0;
  if (model.kind === 'Transformer2DModel') {
    if (none < classes) throw new BruitError('config', `num_embeds_ada_norm is ${none}, but data set ${dataset.name} has ${classes} classes`);
  } else if (none + 1 < classes + (dropped ? 1 : 0)) {
    throw new BruitError('config', `num_class_embeds is ${none + 1}, but data set ${dataset.name} has ${classes} classes${dropped ? ' and condition_dropout needs one more' : ''}`);
  }
}

/** The forward pass of a recipe. */
function buildForward(config: TrainConfig, text: Trainer['text']): BuildForward {
  const { model, vae } = config;
  if (model.kind === 'AutoencoderKL') return autoencoderForward(model.config, config.klWeight);
  const { betas, alphasCumprod } = noiseTables(config.scheduler);
  return diffusionForward({
    buildModel: buildDenoiser(config),
    process: new DiffusionProcess(betas, alphasCumprod),
    loss: {
      predictionType: config.scheduler.prediction_type,
      kind: config.loss,
      huberDelta: config.huberDelta,
      ...(config.minSnrGamma !== undefined && { minSnrGamma: config.minSnrGamma }),
      ...(config.vlbWeight !== undefined && { vlbWeight: config.vlbWeight }),
    },
    ...(vae && { latents: latentsOf(vae.config, config.cacheLatents) }),
    ...(config.conditionDropout > 0 && {
      conditionDropout: { probability: config.conditionDropout, ...(text ? { emptyPrompt: text.tokenizer.batch([''], text.length).inputIds } : { nullLabel: nullLabel(model)! }) },
    }),
  });
}

function buildDenoiser(config: TrainConfig): BuildModel {
  const { model, lora, textEncoder, textualInversion: inversion } = config;
  const folder = modelFolders[model.kind];
  return (ctx, xt, timestep, labels, inputIds) => {
    const own = componentContext(ctx, folder, config.method === 'full');
    const states = inputIds && encodeText(ctx, textEncoder!.config, config.trainTextEncoder, inputIds, inversion);
    // Inputs of another graph with the same shapes, for a look at the model's layers.
    const build = (c: ModelContext, graph: Graph): Tensor => {
      const here = <T extends Tensor | undefined>(t: T, name: string): T => (t && t.graph !== graph ? (graph.input(name, t.shape, t.dtype) as T) : t);
      const [sample, time, classLabels, encoderHiddenStates] = [here(xt, 'sample'), here(timestep, 'timestep'), here(labels, 'class_labels'), here(states, 'encoder_hidden_states')];
      if (model.kind === 'UNet2DModel') return unet2d(c, model.config, classLabels ? { sample, timestep: time, classLabels } : { sample, timestep: time });
      if (model.kind === 'Transformer2DModel') return transformer2d(c, model.config, { sample, timestep: time, classLabels });
      if (model.kind === 'UNet2DConditionModel') return unet2dCondition(c, model.config, { sample, timestep: time, encoderHiddenStates });
      throw new BruitError('config', `${model.kind} is no denoiser`);
    };
    if (!lora) return build(own, ctx.graph);
    // The factors join the step's own parameters, not the model's.
    return withLora({ ...own, parameters: ctx.parameters }, lora, (c, graph) => build(graph === ctx.graph ? { ...c, parameters: own.parameters } : c, graph));
  };
}

function encodeText(ctx: ModelContext, config: CLIPTextConfig, trained: boolean, inputIds: Tensor, inversion: TextualInversionRecipe | undefined): Tensor {
  return clipText(componentContext(ctx, 'text_encoder', trained), config, { inputIds, ...(inversion && { embedTokens: embedWithNewWord(ctx, inputIds, inversion) }) }).lastHiddenState;
}

/** Reads a component's weights into those of the step. */
async function loadComponent(step: TrainingStep, { name, file, load }: StepComponent, folder: ModelFolder): Promise<void> {
  const prefix = `${name}.`;
  const stores = [step.weights, step.frozen].flatMap((store) => store.specs.filter((s) => s.name.startsWith(prefix)).map((spec) => ({ store, spec })));
  const target = new Map(stores.map(({ store, spec }) => [spec.name.slice(prefix.length), { store, spec }]));
  const tensors = await openWeights(folder, '.', file);
  try {
    const names = matchCheckpoint(tensors, new Map([...target].map(([key, { spec }]) => [key, spec.shape])), load);
    for (const [key, inFile] of names) {
      const { store, spec } = target.get(key)!;
      store.write(spec.name, await tensors.readF32(inFile));
    }
  } finally {
    await tensors.close();
  }
}

/** The new word means at first what a known one means. */
async function initialiseNewWord(step: TrainingStep, { initializer, vectors }: TextualInversionRecipe, folder: ModelFolder, tokenizer: Tokenizer): Promise<void> {
  const ids = tokenizer.encode(initializer);
  if (ids.length !== 1) throw new BruitError('config', `initializer_token "${initializer}" is ${ids.length} tokens; choose a word that is one`);
  const tensors = await openWeights(folder, '.', 'model');
  try {
    const name = 'text_model.embeddings.token_embedding.weight';
    const [, width] = tensors.tensors.get(name)!.shape as [number, number];
    const row = (await tensors.readF32(name)).subarray(ids[0]! * width, (ids[0]! + 1) * width);
    const start = new Float32Array(vectors * width);
    for (let i = 0; i < vectors; i++) start.set(row, i * width);
    step.weights.write(learnedEmbeds, start);
  } finally {
    await tensors.close();
  }
}
