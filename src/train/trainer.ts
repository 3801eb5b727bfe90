/** The training loop: batches in, steps submitted with a bounded queue, metrics, checkpoints. Knows no files; the caller stores what it is given. */
import type { Engine } from '../engine/device';
import { BruitError } from '../engine/errors';
import { describeNonFinite, NanProbe, type NonFinite } from '../engine/nan_probe';
import type { BatchLoader, BatchLoaderState, ImageDataset } from '../data/dataset';
import { unet2d } from '../model/unet2d';
import type { NamedTensor, WeightStore } from '../model/parameters';
import { DiffusionProcess } from '../sampler/diffusion_process';
import { noiseTables } from '../sampler/scheduler_config';
import { recipeLearningRates, type TrainConfig } from './config';
import { TrainingStep, type StepMetrics, METRIC_ROWS } from './step';

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

export interface TrainerOptions {
  /**
   * Looks in every step for the layer that makes the first NaN or infinity: `stop` ends the run with an error (code `nan`) that names it; `skip` tells it and goes
   * on, the step having changed no weight. Costs time, and waits for the GPU after each step.
   */
  readonly debugNan?: 'stop' | 'skip' | undefined;
}

export interface TrainEvents {
  /** Stop after this many steps in all; `config.steps` by default. */
  readonly until?: number;
  readonly signal?: AbortSignal;
  /** Called about every `logEvery` steps with all steps since. */
  readonly onMetrics?: (metrics: StepMetrics[]) => void | Promise<void>;
  /** With `debugNan: 'skip'`: what was not finite in step `step` (from 0), which changed no weight. */
  readonly onNonFinite?: (found: NonFinite, step: number) => void;
  /** Called every `checkpointEvery` steps and at the end. */
  readonly onCheckpoint?: (trainer: Trainer) => Promise<void>;
  /** Called every `sampleEvery` steps. */
  readonly onSample?: (trainer: Trainer) => Promise<void>;
}

/** Steps that may be queued before the host waits: enough to keep a GPU busy, few enough that an abort is prompt. */
const queueDepth = 2;

export class Trainer {
  private done = 0;

  private constructor(
    readonly config: TrainConfig,
    readonly step: TrainingStep,
    private readonly loader: BatchLoader,
    private readonly debugNan: TrainerOptions['debugNan'],
  ) {}

  /** Compiles the step of a recipe for a data set; weights are freshly initialised. */
  static async create(engine: Engine, config: TrainConfig, dataset: ImageDataset, loader: BatchLoader, { debugNan }: TrainerOptions = {}): Promise<Trainer> {
    const { model } = config;
    const [channels, height, width] = dataset.shape;
    if (channels !== model.in_channels) throw new BruitError('config', `the model takes images of ${model.in_channels} channels, data set ${dataset.name} has ${channels}`);
    const classes = dataset.classes?.length ?? 0;
    const labelled = model.num_class_embeds !== null;
    const needed = classes + (config.conditionDropout > 0 ? 1 : 0);
    if (labelled && model.num_class_embeds! < needed) {
      throw new BruitError('config', `num_class_embeds is ${model.num_class_embeds}, but data set ${dataset.name} has ${classes} classes${config.conditionDropout > 0 ? ' and condition_dropout needs one more' : ''}`);
    }
    const { betas, alphasCumprod } = noiseTables(config.scheduler);
    const step = await TrainingStep.create(engine, {
      batch: [config.batchSize, channels, height, width],
      buildModel: (ctx, sample, timestep, classLabels) => unet2d(ctx, model, classLabels ? { sample, timestep, classLabels } : { sample, timestep }),
      process: new DiffusionProcess(betas, alphasCumprod),
      loss: {
        predictionType: config.scheduler.prediction_type,
        ...(config.minSnrGamma !== undefined && { minSnrGamma: config.minSnrGamma }),
        ...(config.vlbWeight !== undefined && { vlbWeight: config.vlbWeight }),
      },
      optimizer: config.optimizer,
      learningRates: recipeLearningRates(config),
      emaDecay: config.emaDecay,
      seed: config.seed,
      labelled,
      ...(config.conditionDropout > 0 && { conditionDropout: { probability: config.conditionDropout, nullLabel: model.num_class_embeds! - 1 } }),
      accumulation: config.accumulation,
      mixedPrecision: config.mixedPrecision,
      gradientCheckpointing: config.gradientCheckpointing,
      ...(debugNan && { nanProbe: new NanProbe() }),
    });
    step.weights.initialise(config.seed);
    step.frozen.initialise(config.seed);
    step.ema.copyFrom(step.weights);
    return new Trainer(config, step, loader, debugNan);
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
        const { images, labels } = await this.loader.next();
        step.write({ images, labels });
        step.run();
      }
      step.update();
      const found = this.debugNan && (await step.firstNonFinite());
      if (found && this.debugNan === 'stop') throw new BruitError('nan', `training step ${this.done}: ${describeNonFinite(found)}. The last checkpoint is from before`);
      if (found) events.onNonFinite?.(found, this.done);
      this.done++;
      const finished = step.done();
      finished.catch(() => undefined); // told when the queue is awaited; the loop may fail first
      queue.push(finished);
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

  async readTensors(): Promise<TrainerTensors> {
    const { step } = this;
    const frozen = await step.frozen.readAll();
    const whole = async (s: WeightStore) => [...(await s.readAll()), ...frozen];
    return { weights: await whole(step.weights), ema: await whole(step.ema), moment1: await step.moment1.readAll(), moment2: await step.moment2.readAll() };
  }

  /** Puts a run back where `state` and `tensors` were taken. */
  restore(state: TrainerState, tensors: TrainerTensors): void {
    const { step } = this;
    const frozen = new Set(step.frozen.specs.map((s) => s.name));
    const write = (store: WeightStore, list: NamedTensor[]) => {
      const names = new Set(list.map((t) => t.name));
      const missing = store.specs.find((s) => !names.has(s.name));
      if (missing) throw new BruitError('checkpoint', `the checkpoint's ${store.label} lack ${missing.name}`);
      list.forEach((t) => (frozen.has(t.name) ? step.frozen : store).write(t.name, t.data));
    };
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
