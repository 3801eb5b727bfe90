/**
 * The training step as recorded GPU programs: draw time steps and noise, noise the images, run the model, loss, gradients, clipping,
 * optimizer, EMA. The host writes a batch and submits; nothing is read back until metrics are asked for.
 *
 * With gradient accumulation there are two programs: `accumulate`, run once per micro-batch, and `update`.
 */
import type { Engine } from '../engine/device';
import { gradients } from '../engine/autodiff';
import { BruitError } from '../engine/errors';
import { Graph, type Tensor } from '../engine/graph';
import type { NanProbe, NonFinite } from '../engine/nan_probe';
import { accumulateInto, increment, zero } from '../engine/ops/state';
import { controlSize, controlSlots, optimizerStep, type OptimizerAttrs, type SlabState } from '../engine/ops/optimizer';
import { add, cast, less, mul, where } from '../engine/ops/pointwise';
import { dropout as dropoutOp, randomInt, randomNormal, randomUniform } from '../engine/ops/random';
import { slice } from '../engine/ops/copy';
import { reshape } from '../engine/ops/reshape';
import { sumSquares } from '../engine/ops/sum';
import { compile, type BufferView, type CompileOptions, type Program } from '../engine/program';
import { RngStream, seedKey } from '../engine/rng';
import type { Shape } from '../engine/shape';
import { Parameters, WeightStore, type ParameterSpec } from '../model/parameters';
import type { ModelContext } from '../model/layers';
import type { DiffusionProcess } from '../sampler/diffusion_process';
import { addNoise, diffusionLoss, StepCoefficients, type LossConfig } from './loss';

/** How the trained model is built: predicts from noisy images or latents [N,C,H,W], f32 time steps [N], labels i32 [N] and token ids i32 [N,T]. */
export type BuildModel = (ctx: ModelContext, xt: Tensor, timestep: Tensor, labels: Tensor | undefined, inputIds: Tensor | undefined) => Tensor;

/** What a batch is in the graph. */
export interface BatchLeaves {
  /** As the data set has them. */
  readonly images: Tensor;
  /** i32 [N]. */
  readonly labels: Tensor | undefined;
  /** i32 [N,T]. */
  readonly inputIds: Tensor | undefined;
  /** Time steps of a record, i32 [N]. */
  readonly t: Tensor | undefined;
}

/** The draws of a step: functions of (seed, micro-step, sample, stream). */
export interface StepDraws {
  normal(shape: Shape, stream: number): Tensor;
  /** [N] in (0,1). */
  uniform(stream: number): Tensor;
  /** u32 [N], 0 to `max` − 1. */
  integers(max: number, stream: number): Tensor;
  /** The noise that is added to what is learned: drawn, or a record's. */
  noise(shape: Shape): Tensor;
}

/** What a forward pass must give: the loss [1] and what it is the mean of [N], and two values to look at. */
export interface ForwardPass {
  readonly loss: Tensor;
  readonly perSample: Tensor;
  /** What the model was given. */
  readonly xt: Tensor;
  readonly prediction: Tensor;
}

/** Adds the forward pass to the graph: all parameters that it asks for as trainable are trained. */
export type BuildForward = (ctx: ModelContext, batch: BatchLeaves, draws: StepDraws) => ForwardPass;

export interface OptimizerConfig {
  readonly kind: 'adamw' | 'sgd';
  /** β1 of AdamW, momentum of SGD. */
  readonly beta1: number;
  readonly beta2: number;
  readonly eps: number;
  readonly weightDecay: number;
  /** Largest global gradient norm; 0 or absent: no clipping. */
  readonly maxGradNorm?: number;
}

/** A training step, whatever it is that is learned. */
export interface StepConfig {
  /** [N,C,H,W] of one micro-batch. */
  readonly batch: readonly [number, number, number, number];
  readonly optimizer: OptimizerConfig;
  /** Learning rate of every update, in order. */
  readonly learningRates: ArrayLike<number>;
  /** Largest EMA decay; diffusers' rule min(decay, (1+n)/(10+n)), 0 at the first update. */
  readonly emaDecay: number;
  readonly seed: number;
  /** Labels i32 [N] are an input. */
  readonly labelled: boolean;
  /** Length of token sequences i32 [N,T], which then are an input. */
  readonly tokens?: number;
  /** Micro-batches per update. */
  readonly accumulation?: number;
  /** f16 activations with f32 weights, statistics and accumulation, and a dynamic loss scale. Needs shader-f16. */
  readonly mixedPrecision?: boolean;
  readonly gradientCheckpointing?: boolean;
  /** Looks for the layer that makes the first NaN or infinity of a step. */
  readonly nanProbe?: NanProbe;
  /** Time steps (`t`, i32 [N]) and noise (`noise`) come from the host instead of the GPU's generator. */
  readonly recordedDraws?: boolean;
}

/** With this probability a condition is replaced by one that says nothing: classifier-free guidance (Ho & Salimans 2022). */
export interface ConditionDropout {
  readonly probability: number;
  /** In place of a label. */
  readonly nullLabel?: number;
  /** Token ids of the empty prompt, [T], in place of a prompt. */
  readonly emptyPrompt?: Int32Array;
}

/** A denoiser's training step. */
export interface TrainingStepConfig extends StepConfig {
  readonly buildModel: BuildModel;
  readonly process: DiffusionProcess;
  readonly loss: LossConfig;
  readonly conditionDropout?: ConditionDropout;
  /** What noise is added to, from the batch's images (an autoencoder's latents); the images themselves by default. */
  readonly latents?: (ctx: ModelContext, images: Tensor, draws: StepDraws) => Tensor;
}

/** Rows of metrics kept on the GPU between two read-backs. */
export const METRIC_ROWS = 1024;

export interface StepMetrics {
  /** Number of the optimizer step, from 0. */
  readonly step: number;
  readonly loss: number;
  /** Before clipping. */
  readonly gradNorm: number;
  readonly learningRate: number;
  /** The gradients were not finite, so no weight moved. */
  readonly skipped: boolean;
}

interface Leaves {
  images: Tensor;
  labels: Tensor | undefined;
  inputIds: Tensor | undefined;
  t: Tensor | undefined;
  noise: Tensor | undefined;
}

/** EMA decay of update n (diffusers.training_utils.EMAModel). */
export const emaDecayAt = (n: number, limit: number): number => (n <= 0 ? 0 : Math.min(limit, (1 + n) / (10 + n)));

export class TrainingStep {
  private constructor(
    readonly engine: Engine,
    readonly config: StepConfig,
    /** Trained weights, and everything that has one value per weight. */
    readonly weights: WeightStore,
    readonly ema: WeightStore,
    readonly gradients: WeightStore,
    readonly moment1: WeightStore,
    readonly moment2: WeightStore,
    /** Weights of the checkpoint that are not trained. */
    readonly frozen: WeightStore,
    private readonly leaves: Readonly<Leaves>,
    private readonly state: { counters: Tensor; control: Tensor; metrics: Tensor; microStep: Tensor },
    private readonly programs: { step: Program; update: Program | undefined },
    /** Values kept for verification: the prediction, x_t and losses of the last step. */
    readonly values: ForwardPass & { readonly squareNorm: Tensor },
    private readonly allStores: readonly WeightStore[],
  ) {}

  static create(engine: Engine, config: TrainingStepConfig): Promise<TrainingStep> {
    return TrainingStep.compile(engine, config, diffusionForward(config));
  }

  /** A step of any forward pass. */
  static async compile(engine: Engine, config: StepConfig, build: BuildForward): Promise<TrainingStep> {
    const { accumulation = 1, mixedPrecision = false } = config;
    if (mixedPrecision && !engine.profile.f16) throw new BruitError('device', `mixed precision needs the device feature shader-f16, which this one (${engine.profile.name}) lacks`);
    const graph = new Graph();
    const parameters = new Parameters(graph);
    const [n] = config.batch;
    const leaves: Leaves = {
      images: graph.input('images', config.batch),
      labels: config.labelled ? graph.input('labels', [n], 'i32') : undefined,
      inputIds: config.tokens ? graph.input('input_ids', [n, config.tokens], 'i32') : undefined,
      t: config.recordedDraws ? graph.input('t', [n], 'i32') : undefined,
      noise: undefined,
    };
    const microStep = graph.state('micro_step', [1], 'u32');
    const control = graph.state('control', [controlSize], 'f32', initialControl(mixedPrecision));
    const forward = buildForward(graph, parameters, config, leaves, microStep, build);

    // Loss scaling keeps small f16 gradients from vanishing; without f16 the scale is 1 and the product would only cost a dispatch.
    const seedLoss = mixedPrecision ? mul(forward.loss, slice(control, 0, controlSlots.lossScale, 1)) : forward.loss;
    const trained = [...parameters.specs.values()].filter((s) => s.trainable);
    const grads = gradients(seedLoss, trained.map((s) => parameters.tensors.get(s.name)!));

    const made: WeightStore[] = [];
    const make = (label: string, specs: ParameterSpec[] = trained): WeightStore => {
      const store = new WeightStore(engine, specs, label);
      made.push(store);
      return store;
    };
    const makeStores = () => ({
      stores: { weights: make('weights'), ema: make('ema'), gradients: make('gradients'), moment1: make('moment1'), moment2: make('moment2') },
      frozen: make('frozen', [...parameters.specs.values()].filter((s) => !s.trainable)),
      microGradients: accumulation > 1 ? make('micro_gradients') : undefined,
    });
    let all: ReturnType<typeof makeStores>;
    try {
      await engine.withinMemory(() => (all = makeStores()), () => `training: ${made.reduce((n, store) => n + store.bytes, 0)} bytes of weights, gradients, moments and EMA`);
    } catch (e) {
      for (const store of made) store.destroy();
      throw e;
    }
    const { stores, frozen, microGradients } = all!;

    const bindings = new Map<Tensor, BufferView>();
    for (const spec of parameters.specs.values()) bindings.set(parameters.tensors.get(spec.name)!, (spec.trainable ? stores.weights : frozen).view(spec.name));
    trained.forEach((s, i) => bindings.set(grads[i]!, (microGradients ?? stores.gradients).view(s.name)));

    const slabLeaf = (g: Graph, into: Map<Tensor, BufferView>, store: WeightStore, i: number): Tensor => {
      const t = g.state(`${store.label}.${i}`, [store.slabs[i]!.bytes / 4]);
      into.set(t, { buffer: store.slabs[i]!.buffer, offset: 0 });
      return t;
    };
    const optimizer: OptimizerAttrs = {
      kind: config.optimizer.kind,
      beta1: config.optimizer.beta1,
      beta2: config.optimizer.beta2,
      eps: config.optimizer.eps,
      weightDecay: config.optimizer.weightDecay,
      maxNorm: config.optimizer.maxGradNorm ?? 0,
      growthInterval: mixedPrecision ? 2000 : 0,
      gradientScale: 1 / accumulation,
    };
    const counters = graph.state('counters', [4], 'u32');
    const metrics = graph.state('metrics', [METRIC_ROWS, 4]);
    const appendUpdate = (g: Graph, into: Map<Tensor, BufferView>, shared: { counters: Tensor; control: Tensor; metrics: Tensor; loss: Tensor }): Tensor => {
      const slabs = stores.weights.slabs.map((_, i): SlabState => ({
        weight: slabLeaf(g, into, stores.weights, i),
        gradient: slabLeaf(g, into, stores.gradients, i),
        moment1: slabLeaf(g, into, stores.moment1, i),
        moment2: slabLeaf(g, into, stores.moment2, i),
        ema: slabLeaf(g, into, stores.ema, i),
      }));
      const squareNorm = slabs.map((s) => sumSquares(s.gradient)).reduce(add);
      const table = g.constant('optimizer_table', [config.learningRates.length, 4], optimizerTable(config));
      optimizerStep({ table, ...shared }, slabs, shared.loss, squareNorm, optimizer);
      return squareNorm;
    };

    const programs: Program[] = [];
    const record = async (from: Graph, options: CompileOptions): Promise<Program> => {
      const program = await compile(engine, from, { ...options, probe: from === graph ? config.nanProbe : undefined });
      programs.push(program);
      return program;
    };
    try {
      const outputs = [forward.xt, forward.prediction, forward.perSample, forward.loss];
      if (!microGradients) {
        const squareNorm = appendUpdate(graph, bindings, { counters, control, metrics, loss: forward.loss });
        increment(microStep, 1);
        const step = await record(graph, { outputs: [...outputs, squareNorm, counters, control, metrics, microStep], bindings, label: 'training step' });
        return new TrainingStep(engine, config, stores.weights, stores.ema, stores.gradients, stores.moment1, stores.moment2, frozen, leaves, { counters, control, metrics, microStep }, { step, update: undefined }, { ...forward, squareNorm }, made);
      }
      // Micro-batches add to the gradient slabs; their losses add to one number.
      const lossSum = graph.state('loss_sum', [1]);
      microGradients.slabs.forEach((_, i) => accumulateInto(slabLeaf(graph, bindings, stores.gradients, i), slabLeaf(graph, bindings, microGradients, i), 1));
      accumulateInto(lossSum, forward.loss, 1 / accumulation);
      increment(microStep, 1);
      const step = await record(graph, { outputs: [...outputs, control, microStep, lossSum], bindings, label: 'training micro-step' });

      const updateGraph = new Graph();
      const own = new Map<Tensor, BufferView>();
      const shared = { counters: updateGraph.state('counters', [4], 'u32'), control: updateGraph.state('control', [controlSize]), metrics: updateGraph.state('metrics', [METRIC_ROWS, 4]), loss: updateGraph.state('loss_sum', [1]) };
      own.set(shared.control, step.view(control));
      own.set(shared.loss, step.view(lossSum));
      const squareNorm = appendUpdate(updateGraph, own, shared);
      stores.gradients.slabs.forEach((_, i) => zero(slabLeaf(updateGraph, own, stores.gradients, i)));
      zero(shared.loss);
      const update = await record(updateGraph, { outputs: [squareNorm, shared.counters, shared.metrics], bindings: own, label: 'training update' });
      return new TrainingStep(engine, config, stores.weights, stores.ema, stores.gradients, stores.moment1, stores.moment2, frozen, leaves, { counters: shared.counters, control, metrics: shared.metrics, microStep }, { step, update }, { ...forward, squareNorm }, made);
    } catch (e) {
      for (const each of [...programs, ...made]) each.destroy();
      throw e;
    }
  }

  /** Writes one micro-batch: images [N,C,H,W] in [-1,1], labels [N], token ids [N,T]; with recorded draws also time steps and noise. */
  write(batch: { images: Float32Array; labels?: Int32Array; inputIds?: Int32Array; t?: Int32Array; noise?: Float32Array }): void {
    const { step } = this.programs;
    step.write(this.leaves.images, batch.images);
    if (this.leaves.labels) {
      if (!batch.labels) throw new BruitError('input', 'this training step wants labels with every batch');
      step.write(this.leaves.labels, batch.labels);
    }
    if (this.leaves.inputIds) {
      if (!batch.inputIds) throw new BruitError('input', 'this training step wants token ids with every batch');
      step.write(this.leaves.inputIds, batch.inputIds);
    }
    if (this.leaves.t && this.leaves.noise) {
      if (!batch.t || !batch.noise) throw new BruitError('input', 'this training step replays recorded draws: give `t` and `noise` with every batch');
      step.write(this.leaves.t, batch.t);
      step.write(this.leaves.noise, batch.noise);
    }
  }

  /** Submits forward and backward of the written micro-batch, and the update with it unless gradients are accumulated. */
  run(): void {
    this.programs.step.run();
  }

  /** Submits the optimizer update after the last micro-batch. Only with gradient accumulation. */
  update(): void {
    this.programs.update?.run();
  }

  done(): Promise<void> {
    return this.programs.step.done();
  }

  /** Metrics of the optimizer steps from `from` on (at most the last {@link METRIC_ROWS}); one read-back. */
  async metrics(from: number): Promise<StepMetrics[]> {
    const program = this.programs.update ?? this.programs.step;
    const [steps] = new Uint32Array(await program.readRaw(this.state.counters)) as unknown as [number];
    const rows = await program.read(this.state.metrics);
    const out: StepMetrics[] = [];
    for (let step = Math.max(from, steps - METRIC_ROWS); step < steps; step++) {
      const at = (step % METRIC_ROWS) * 4;
      out.push({ step, loss: rows[at]!, gradNorm: rows[at + 1]!, learningRate: rows[at + 2]!, skipped: rows[at + 3] === 0 });
    }
    return out;
  }

  /** What was not finite since this was last asked, where there is a probe. */
  async firstNonFinite(): Promise<NonFinite | undefined> {
    return this.config.nanProbe?.firstNonFinite(this.programs.step);
  }

  /** Bindings of a graph of one of the models to its EMA weights, for sampling during training. `prefix` stands before that model's names. */
  emaBindings(parameters: Parameters, prefix = ''): Map<Tensor, BufferView> {
    const frozen = new Set(this.frozen.specs.map((s) => s.name));
    return new Map([...parameters.tensors].map(([name, t]) => [t, (frozen.has(prefix + name) ? this.frozen : this.ema).view(prefix + name)]));
  }

  /** One of the last step's {@link values}. */
  read(t: Tensor): Promise<Float32Array> {
    return (t === this.values.squareNorm && this.programs.update ? this.programs.update : this.programs.step).read(t);
  }

  /** Counters and loss scale, beside the stores all that a resumed run needs. */
  async readState(): Promise<{ counters: Uint32Array; control: Float32Array; microStep: Uint32Array }> {
    const update = this.programs.update ?? this.programs.step;
    return {
      counters: new Uint32Array(await update.readRaw(this.state.counters)),
      control: await this.programs.step.read(this.state.control),
      microStep: new Uint32Array(await this.programs.step.readRaw(this.state.microStep)),
    };
  }

  writeState(state: { counters: Uint32Array; control: Float32Array; microStep: Uint32Array }): void {
    (this.programs.update ?? this.programs.step).write(this.state.counters, state.counters);
    this.programs.step.write(this.state.control, state.control);
    this.programs.step.write(this.state.microStep, state.microStep);
  }

  /** Activation memory planned against naive, for reports. */
  get plan() {
    return this.programs.step.plan;
  }

  /** Bytes of the largest copy that is read back at once: a checkpoint's weights. Beside its buffers the step takes no more than that. */
  get readBackBytes(): number {
    return Math.max(this.weights.bytes, this.frozen.bytes, METRIC_ROWS * 16);
  }

  get program(): Program {
    return this.programs.step;
  }

  destroy(): void {
    this.programs.step.destroy();
    this.programs.update?.destroy();
    for (const s of this.allStores) s.destroy();
  }
}

function initialControl(mixedPrecision: boolean): Float32Array {
  const control = new Float32Array(controlSize);
  control[controlSlots.lossScale] = mixedPrecision ? 65536 : 1;
  return control;
}

/** Rows of the optimizer's table, in f64: the powers of β lose their digits in f32. */
function optimizerTable({ learningRates, optimizer, emaDecay }: StepConfig): Float32Array {
  const rows = new Float32Array(learningRates.length * 4);
  for (let n = 0; n < learningRates.length; n++) {
    rows.set([learningRates[n]!, 1 / (1 - optimizer.beta1 ** (n + 1)), 1 / Math.sqrt(1 - optimizer.beta2 ** (n + 1)), emaDecayAt(n, emaDecay)], n * 4);
  }
  return rows;
}

/** Leaves and draws of a step, then what `build` makes of them. */
function buildForward(graph: Graph, parameters: Parameters, config: StepConfig, leaves: Leaves, microStep: Tensor, build: BuildForward): ForwardPass {
  const [n] = config.batch;
  const draw = {
    graph,
    seed: graph.constant('seed', [2], Uint32Array.from(seedKey(config.seed))),
    samples: graph.constant('samples', [n], Uint32Array.from({ length: n }, (_, i) => i)),
    step: microStep,
  };
  let dropouts = 0;
  const ctx: ModelContext = {
    graph,
    parameters,
    ...(config.mixedPrecision && { computeType: 'f16' as const }),
    gradientCheckpointing: config.gradientCheckpointing ?? false,
    // Each layer has a stream of its own.
    dropout: (x, p) => dropoutOp(x, p, { ...draw, stream: RngStream.dropout + 256 * ++dropouts }),
  };
  return build(ctx, leaves, {
    normal: (shape, stream) => randomNormal({ ...draw, shape, stream }),
    uniform: (stream) => randomUniform({ ...draw, shape: [n], stream }),
    integers: (max, stream) => randomInt({ ...draw, shape: [n], stream }, max),
    noise: (shape) => (config.recordedDraws ? (leaves.noise = graph.input('noise', shape)) : randomNormal({ ...draw, shape, stream: RngStream.noise })),
  });
}

/** Draws time steps and noise, adds the noise, asks the model, compares. */
export const diffusionForward =
  ({ process, loss, buildModel, latents, conditionDropout }: Pick<TrainingStepConfig, 'process' | 'loss' | 'buildModel' | 'latents' | 'conditionDropout'>): BuildForward =>
  (ctx, batch, draws) => {
    const x0 = latents ? latents(ctx, batch.images, draws) : batch.images;
    const t = batch.t ?? draws.integers(process.numTrainTimesteps, RngStream.timestep);
    const noise = draws.noise(x0.shape);
    const coefficients = new StepCoefficients(process, loss, t);
    const xt = addNoise(coefficients, x0, noise);
    const { labels, inputIds } = dropConditions(batch, draws, conditionDropout);
    const prediction = buildModel(ctx, xt, cast(t, 'f32'), labels, inputIds);
    return { xt, prediction, ...diffusionLoss(coefficients, loss, { x0, noise, xt, output: prediction }) };
  };

function dropConditions({ labels, inputIds }: BatchLeaves, draws: StepDraws, dropout: ConditionDropout | undefined): Pick<BatchLeaves, 'labels' | 'inputIds'> {
  const graph = (labels ?? inputIds)?.graph;
  if (!graph || !dropout || dropout.probability <= 0) return { labels, inputIds };
  const drop = less(draws.uniform(RngStream.condition), graph.constant('condition_dropout', [1], Float32Array.of(dropout.probability)));
  const replace = (ids: Tensor, by: Tensor, where1: Tensor): Tensor => cast(where(where1, by, cast(ids, 'f32')), 'i32');
  const { nullLabel, emptyPrompt } = dropout;
  return {
    labels: labels && nullLabel !== undefined ? replace(labels, graph.constant('null_label', [1], Float32Array.of(nullLabel)), drop) : labels,
    inputIds: inputIds && emptyPrompt ? replace(inputIds, graph.constant('empty_prompt', [1, emptyPrompt.length], Float32Array.from(emptyPrompt)), reshape(drop, [-1, 1])) : inputIds,
  };
}
