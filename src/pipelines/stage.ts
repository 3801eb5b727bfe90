/** One denoising loop of a pipeline: a sampler that is made, run once, read and freed. */
import type { Engine } from '../engine/device';
import type { Graph, Tensor } from '../engine/graph';
import { slice } from '../engine/ops/copy';
import type { NormalSource } from '../engine/torch_rng';
import { numel } from '../engine/shape';
import { hoistables, type ModelContext } from '../model/layers';
import { Parameters, type WeightStore } from '../model/parameters';
import type { SamplerProgram } from '../sampler/program';
import { createGpuSampler, type GpuSampler, type GpuSamplerOptions, type SamplerPreview, type StepContext } from '../sampler/sample';
import { Inputs } from './component';

/** What every pipeline's call takes beside what it makes images of. */
export interface PipelineCall {
  /** Image i is a pure function of (seed, i) and the arguments; 0 by default. Without effect where a `generator` is given. */
  readonly seed?: number;
  /** Number of the first image: parts of a larger job are images of their own. */
  readonly sampleOffset?: number;
  /** x_t and the predicted x0 after every step of the stage that makes the image, some time after the step. */
  readonly onPreview?: (preview: SamplerPreview) => void;
  /** Where all normal draws come from, in the order in which diffusers draws: torch's generators, or recorded draws. */
  readonly generator?: NormalSource;
  readonly signal?: AbortSignal;
  /** Model evaluations done of all. */
  readonly onProgress?: (done: number, total: number) => void;
  /** Told what is computed on the way, under diffusers' names and in PyTorch's layout: every step's latents, what the first step was given, …. */
  readonly onRecord?: (name: string, value: Float32Array) => void;
}

/** What pipelines of one denoising loop take besides. */
export interface LatentCall extends PipelineCall {
  /** Standard normal start noise [N, C, h, w]; drawn from the seed by default. */
  readonly latents?: Float32Array;
  /** The loop's {@link SamplerRunOptions.onQueued}, with the sampler: latents and predicted x0 can be drawn from its memory. */
  readonly onQueued?: (sampler: GpuSampler, step: number, total: number) => void;
  /** Images decoded, or tiles of all passes over all images, and how many there are. */
  readonly onDecode?: (done: number, total: number) => void;
}

export interface PipelineImages {
  /** [N, C, H, W] in [0, 1]. */
  readonly images: Float32Array;
  /** The same before it is mapped there and clamped: about [−1, 1]. */
  readonly samples: Float32Array;
  readonly shape: readonly [number, number, number, number];
}

/** From [−1, 1] to [0, 1], clamped. */
export const toImages = (samples: Float32Array): Float32Array => samples.map((x) => Math.min(Math.max(x / 2 + 0.5, 0), 1));

export interface Stage {
  readonly engine: Engine;
  readonly call: PipelineCall & Pick<LatentCall, 'onQueued'>;
  /** Names of what is recorded begin with it. */
  readonly prefix?: string;
  /** Distinguishes the stages of one pipeline, so that none repeats the noise of another. */
  readonly index?: number;
  readonly program: SamplerProgram;
  readonly shape: GpuSamplerOptions['shape'];
  /** Start noise; drawn if it is not given. */
  readonly latents?: Float32Array;
  /** u + guidanceScale · (c − u) where it is more than 1, as in diffusers: the model then sees a doubled batch, u's half first. */
  readonly guidanceScale?: number;
  readonly weights: WeightStore;
  /** Class of each image, and the class that stands for none under guidance. */
  readonly labels?: { readonly classes: Int32Array; readonly none: number };
  readonly model: (ctx: ModelContext, x: Tensor, timestep: Tensor, inputs: Inputs, step: StepContext, labels: Tensor | undefined) => Tensor;
  /** Adds the model where its {@link hoistables} of the time step are computed for all steps at once; for models that embed nothing but the time step and `labels`. */
  readonly timeModel?: (ctx: ModelContext, x: Tensor, timestep: Tensor, labels: Tensor | undefined) => unknown;
  readonly progress: Progress;
}

/** Evaluations of a whole pipeline. */
export class Progress {
  private done = 0;

  constructor(
    private readonly total: number,
    private readonly report: PipelineCall['onProgress'],
  ) {
    report?.(0, total);
  }

  tick(): void {
    this.report?.(++this.done, this.total);
  }
}

export const guided = (scale: number): boolean => scale > 1;

/** Keys of a pipeline's stages lie so far apart that seeds meet only where somebody looks for it. */
export const stageSeed = (seed: number, index: number): number => (seed + index * 2 ** 47) % 2 ** 53;

/** A run's start noise and the draws of its steps, in the order in which diffusers takes them. `latents`: already drawn. */
export function drawNoise(generator: NormalSource | undefined, program: SamplerProgram, shape: GpuSamplerOptions['shape'], latents = generator?.randn(shape)): { latents?: Float32Array; noise?: Float32Array } {
  if (!generator) return latents ? { latents } : {};
  const noise = new Float32Array(program.noiseDraws * numel(shape));
  for (let i = 0; i < program.noiseDraws; i++) noise.set(generator.randn(shape), i * numel(shape));
  return { latents: latents!, noise };
}

/** Tells of the latents after every step, and of what else the first step was given and computed. */
export const recordSteps = (record: NonNullable<PipelineCall['onRecord']>, prefix = '') => ({ step, recorded: { latents, ...first } }: SamplerPreview): void => {
  if (step === 0) for (const [name, value] of Object.entries(first)) record(`${prefix}${name}.0`, value);
  record(`${prefix}latents.${step}`, latents!);
};

/** Runs a stage; returns its last sample [N, C, H, W]. */
export async function runStage(stage: Stage): Promise<Float32Array> {
  const { engine, call, prefix = '', index = 0, program, shape, guidanceScale = 1, weights, model, timeModel, labels, progress } = stage;
  const { generator, onRecord: record, onPreview, onQueued } = call;
  const parameters: Parameters[] = [];
  const contextOf = (graph: Graph, hoist: NonNullable<ModelContext['hoist']>): ModelContext => {
    const own = new Parameters(graph);
    parameters.push(own);
    return { graph, parameters: own, hoist };
  };
  let inputs: Inputs | undefined;
  const sampler = await createGpuSampler(engine, {
    program,
    shape,
    model: (graph: Graph, x, timestep, classes, step) => {
      inputs = new Inputs(graph);
      const output = model(contextOf(graph, step.hoist), x, timestep, inputs, step, classes);
      // As diffusers does: a variance that the scheduler does not read is no part of what it is given.
      return program.varianceHalf === 'unused' && output.shape[1] === 2 * shape[1] ? slice(output, 1, 0, shape[1]) : output;
    },
    ...(timeModel && {
      timeValues: (graph: Graph, timestep: Tensor, classes: Tensor | undefined) =>
        hoistables('time', (hoist) => timeModel(contextOf(graph, hoist), graph.input('sample', [timestep.shape[0]!, ...shape.slice(1)]), timestep, classes)),
    }),
    bindings: () => new Map(parameters.flatMap((own) => [...weights.bindings(own)])),
    seed: stageSeed(call.seed ?? 0, index),
    sampleOffset: call.sampleOffset ?? 0,
    ...drawNoise(generator, program, shape, stage.latents),
    ...(labels && { labels: labels.classes }),
    ...(guided(guidanceScale) && { guidance: { scale: guidanceScale, ...(labels && { nullLabel: labels.none }) } }),
    preview: (onPreview ?? onQueued) !== undefined,
    record: record !== undefined,
  });
  try {
    inputs!.write(sampler.stepProgram);
    record?.(`${prefix}timesteps`, Float32Array.from(program.timesteps));
    await sampler.run({
      ...(call.signal && { signal: call.signal }),
      onProgress: () => progress.tick(),
      ...(onQueued && { onQueued: (step: number, total: number) => onQueued(sampler, step, total) }),
      ...((record ?? onPreview) && {
        onPreview: (preview: SamplerPreview) => {
          if (record) recordSteps(record, prefix)(preview);
          onPreview?.(preview);
        },
      }),
    });
    return await sampler.read();
  } finally {
    sampler.destroy();
  }
}
