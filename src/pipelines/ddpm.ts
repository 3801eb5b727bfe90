/**
 * Unconditional and class-conditional image generation with a UNet2DModel in pixel space: diffusers' DDPMPipeline and DDIMPipeline
 * folders (model_index.json, unet/, scheduler/), any scheduler, classifier-free guidance where the model has a null label.
 */
import type { Engine } from '../engine/device';
import { BruitError, check } from '../engine/errors';
import { openWeights, readJson, type ModelFolder } from '../io/folder';
import { Parameters, WeightStore } from '../model/parameters';
import type { WeightStorage } from '../model/weight_format';
import { parseUNet2DConfig, unet2d, unet2dInputs, type UNet2DConfig } from '../model/unet2d';
import { Graph, type Tensor } from '../engine/graph';
import type { BufferView } from '../engine/program';
import { hoistables, type ModelContext } from '../model/layers';
import { createGpuSampler, type GpuSampler, type GpuSamplerOptions, type SamplerPreview } from '../sampler/sample';
import { drawNoise, recordSteps, type PipelineCall } from './stage';
import { convertSchedulerConfig, createSampler, parseSchedulerConfig, type SamplerOptions, type SchedulerClass, type SchedulerConfig } from '../sampler/scheduler_config';

/** Short names of schedulers, as command lines and pages show them. */
export const schedulerNames = {
  ddpm: 'DDPMScheduler',
  ddim: 'DDIMScheduler',
  pndm: 'PNDMScheduler',
  lms: 'LMSDiscreteScheduler',
  heun: 'HeunDiscreteScheduler',
  euler: 'EulerDiscreteScheduler',
  euler_a: 'EulerAncestralDiscreteScheduler',
  dpmpp: 'DPMSolverMultistepScheduler',
  unipc: 'UniPCMultistepScheduler',
  lcm: 'LCMScheduler',
} as const satisfies Record<string, SchedulerClass>;
export type SchedulerName = keyof typeof schedulerNames;

/** What diffusers' files cannot say of a class-conditional model; `bruit.json` beside model_index.json. */
export interface ClassGuidance {
  /** Default guidance scale; 1 is none. */
  readonly guidance_scale: number;
  /** Label of the class embedding trained without a condition. */
  readonly null_label: number;
  /**
   * DDIM works out the noise from the clipped x0 again (diffusers' argument of that name), unless the caller says otherwise. Guidance pushes x0
   * beyond [-1,1]; noise that still belongs to the unclipped one leaves strokes where none should be.
   */
  readonly use_clipped_model_output?: boolean;
  /** Names of the classes, in label order. */
  readonly class_names?: readonly string[];
}

export interface GenerateOptions {
  /** Number of images; as many as there are labels by default, else 1. */
  readonly count?: number;
  /** Class of each image. Shorter lists are repeated. */
  readonly labels?: readonly number[];
  /** Denoising steps, 50 by default. */
  readonly steps?: number;
  /** Another scheduler than the folder's own. */
  readonly scheduler?: SchedulerName | SchedulerConfig;
  /** Keyword arguments of the scheduler's step: `eta` for DDIM, …. */
  readonly schedulerOptions?: Omit<SamplerOptions, 'numInferenceSteps'>;
  /** Classifier-free guidance scale; the folder's own by default, 1 for none. */
  readonly guidanceScale?: number;
  /** Image i is a pure function of (seed, i), whatever the batch size. */
  readonly seed?: number;
  /** Number of the first image. */
  readonly sampleOffset?: number;
  /** Only images `from` to `to` − 1 of the `count`, bit for bit as the whole job makes them: so several machines share a job. */
  readonly range?: readonly [from: number, to: number];
  /** Images computed at once. */
  readonly batchSize?: number;
  /** [height, width], the config's sample_size by default. */
  readonly size?: readonly [number, number];
  readonly signal?: AbortSignal;
  /** Model evaluations done of all; first 0, when everything is compiled. */
  readonly onProgress?: (done: number, total: number) => void;
  readonly onPreview?: (preview: SamplerPreview, firstImage: number) => void;
  /** As for every pipeline; all images are then computed at once. */
  readonly generator?: PipelineCall['generator'];
  readonly onRecord?: PipelineCall['onRecord'];
}

export interface GeneratedImages {
  /** [N,C,H,W] in [0,1]. */
  readonly images: Float32Array;
  readonly shape: readonly [number, number, number, number];
  readonly labels: Int32Array | undefined;
}

export class DDPMPipeline {
  private constructor(
    readonly engine: Engine,
    readonly name: string,
    readonly unet: UNet2DConfig,
    readonly scheduler: SchedulerConfig,
    readonly guidance: ClassGuidance | undefined,
    readonly weights: WeightStore,
  ) {}

  /**
   * Loads a folder in diffusers' layout. `component` picks other weights than `unet`, such as a training run's `unet_ema`; `weights` says how they
   * lie in GPU memory. Configs are checked before any weight is read.
   */
  static async fromFolder(engine: Engine, folder: ModelFolder, options: { component?: string; weights?: WeightStorage; onProgress?: (done: number, total: number) => void } = {}): Promise<DDPMPipeline> {
    const { component = 'unet' } = options;
    check(await folder.has('model_index.json'), 'checkpoint', () => `${folder.name}: no model_index.json; this is not a pipeline folder in diffusers' layout`);
    const index = await readJson(folder, 'model_index.json');
    const known = ['DDPMPipeline', 'DDIMPipeline', 'PNDMPipeline', 'ScoreSdeVePipeline'];
    if (!known.includes(String(index._class_name))) throw new BruitError('config', `${folder.name}: model_index.json names ${JSON.stringify(index._class_name)}; this pipeline loads ${known.join(', ')}`);
    const unet = parseUNet2DConfig(await readJson(folder, `${component}/config.json`), `${folder.name}/${component}/config.json`);
    const scheduler = parseSchedulerConfig(await folder.text('scheduler/scheduler_config.json'), `${folder.name}/scheduler/scheduler_config.json`);
    const guidance = (await folder.has('bruit.json')) ? parseGuidance(await readJson(folder, 'bruit.json'), `${folder.name}/bruit.json`, unet) : undefined;

    // The weights' names and shapes depend on the config alone, not on the size of the images built here.
    const parameters = new Parameters(new Graph());
    const ctx = { graph: parameters.graph, parameters };
    unet2d(ctx, unet, unet2dInputs(ctx, unet, [1, ...smallest(unet)]));
    const store = await openWeights(folder, component);
    try {
      const weights = await WeightStore.fromCheckpoint(engine, parameters.specs.values(), store, { label: 'unet', storage: options.weights ?? 'auto', onProgress: options.onProgress });
      return new DDPMPipeline(engine, folder.name, unet, scheduler, guidance, weights);
    } finally {
      await store.close();
    }
  }

  /**
   * The sampler of the first batch that these options ask for, compiled and not run: to record its steps into one's own command encoder, or to use the
   * sample where it lies on the GPU. With `preview` it keeps the predicted x0, too. It is the caller's to destroy, before the pipeline, whose weights it reads.
   */
  async createSampler(o: GenerateOptions & { readonly preview?: boolean } = {}): Promise<GpuSampler> {
    return (await this.prepare(o)).sampler;
  }

  private async prepare(o: GenerateOptions & { readonly preview?: boolean }) {
    const { steps = 50, seed = 0 } = o;
    const { unet } = this;
    const count = o.count ?? o.labels?.length ?? 1;
    check(Number.isInteger(count) && count >= 1, 'input', () => `count ${count} must be a whole number of at least 1`);
    const [from, to] = o.range ?? [0, count];
    check(Number.isInteger(from) && Number.isInteger(to) && from >= 0 && from < to && to <= count && !(o.range && o.generator), 'input', () => `range ${from} to ${to} is no part of the ${count} images, or a generator draws for all`);
    const size = o.size ?? unet.sample_size;
    check(size, 'input', () => `${this.name}: the config has no sample_size, so give a size`);
    const conditional = unet.num_class_embeds !== null && unet.class_embed_type === null;
    check(unet.class_embed_type === null, 'config', () => `${this.name}: class_embed_type "${unet.class_embed_type}" takes embeddings and not labels; use createGpuSampler`);
    check(!o.labels || conditional, 'input', () => `${this.name}: labels were given, but the model is not class-conditional`);
    check(o.labels || !conditional, 'input', () => `${this.name}: the model is class-conditional, so labels are needed (0 to ${unet.num_class_embeds! - 1})`);
    const bad = o.labels?.find((l) => !Number.isInteger(l) || l < 0 || l >= unet.num_class_embeds!);
    check(bad === undefined, 'input', () => `label ${bad} is not one of 0 to ${unet.num_class_embeds! - 1}`);
    const guidanceScale = o.guidanceScale ?? this.guidance?.guidance_scale ?? 1;
    check(guidanceScale === 1 || this.guidance, 'input', () => `${this.name}: guidance needs a null label, which bruit.json of the folder would name`);

    const labels = o.labels && Int32Array.from({ length: count }, (_, i) => o.labels![i % o.labels!.length]!);
    const scheduler = typeof o.scheduler === 'string' ? convertSchedulerConfig(this.scheduler, schedulerNames[o.scheduler]) : (o.scheduler ?? this.scheduler);
    const clipped = this.guidance?.use_clipped_model_output === true && scheduler._class_name === 'DDIMScheduler';
    const program = createSampler(scheduler, { numInferenceSteps: steps, ...(clipped && { use_clipped_model_output: true }), ...o.schedulerOptions });
    const batch = o.generator || o.onRecord ? count : Math.min(o.batchSize ?? 32, count);
    const shape = [batch, unet.in_channels, size[0], size[1]] as const;
    const batchLabels = (first: number) => labels && Int32Array.from({ length: batch }, (_, i) => labels[Math.min(first + i, count - 1)]!);
    const sampler: GpuSampler = await createGpuSampler(this.engine, {
      program,
      shape,
      ...samplerModel(unet, (parameters) => this.weights.bindings(parameters)),
      seed,
      sampleOffset: (o.sampleOffset ?? 0) + from,
      ...(labels && { labels: batchLabels(from)! }),
      ...(guidanceScale !== 1 && this.guidance && { guidance: { scale: guidanceScale, nullLabel: this.guidance.null_label } }),
      preview: o.preview === true || o.onPreview !== undefined,
      ...drawNoise(o.generator, program, shape),
      record: o.onRecord !== undefined,
    });
    return { sampler, program, shape, from, to, labels, batch, batchLabels };
  }

  /** Generates images. The whole trajectory of a batch is submitted without a read-back; images come back at its end. */
  async generate(o: GenerateOptions = {}): Promise<GeneratedImages> {
    const { sampler, program, shape, from, to, labels, batch, batchLabels } = await this.prepare(o);
    try {
      const per = shape[1] * shape[2] * shape[3];
      const images = new Float32Array((to - from) * per);
      const evaluations = program.steps.length * Math.ceil((to - from) / batch);
      o.onProgress?.(0, evaluations);
      for (let first = from; first < to; first += batch) {
        sampler.set({ sampleOffset: (o.sampleOffset ?? 0) + first, ...(labels && { labels: batchLabels(first)! }) });
        const before = ((first - from) / batch) * program.steps.length;
        await sampler.run({
          ...(o.signal && { signal: o.signal }),
          onProgress: (done) => o.onProgress?.(before + done, evaluations),
          ...((o.onPreview || o.onRecord) && {
            onPreview: (p: SamplerPreview) => {
              o.onPreview?.(p, first);
              if (o.onRecord) recordSteps(o.onRecord)(p);
            },
          }),
        });
        const sample = await sampler.read();
        // [-1,1] to [0,1]
        const used = Math.min(batch, to - first) * per;
        for (let i = 0; i < used; i++) images[(first - from) * per + i] = Math.min(Math.max(sample[i]! / 2 + 0.5, 0), 1);
      }
      o.onRecord?.('timesteps', Float32Array.from(program.timesteps));
      o.onRecord?.('image', images);
      return { images, shape: [to - from, shape[1], shape[2], shape[3]], labels: labels?.slice(from, to) };
    } finally {
      sampler.destroy();
    }
  }

  /** Frees the weights. */
  destroy(): void {
    this.weights.destroy();
  }
}

/** Height and width of images that halve at each resolution. */
function smallest({ block_out_channels: { length } }: UNet2DConfig): [number, number] {
  return [2 ** length, 2 ** length];
}

/** A UNet2DModel as samplers take it. */
export function samplerModel(config: UNet2DConfig, bindings: (parameters: Parameters) => ReadonlyMap<Tensor, BufferView>): Pick<GpuSamplerOptions, 'model' | 'timeValues' | 'bindings'> {
  const built: Parameters[] = [];
  const build = (sample: Tensor, timestep: Tensor, classLabels: Tensor | undefined, hoist: NonNullable<ModelContext['hoist']>): Tensor => {
    const { graph } = sample;
    const parameters = new Parameters(graph);
    built.push(parameters);
    return unet2d({ graph, parameters, hoist }, config, { sample, timestep, ...(classLabels && { classLabels }) });
  };
  return {
    model: (_, sample, timestep, labels, { hoist }) => build(sample, timestep, labels, hoist),
    timeValues: (graph, timestep, labels) => hoistables('time', (hoist) => build(graph.input('sample', [timestep.shape[0]!, config.in_channels, ...smallest(config)]), timestep, labels, hoist)),
    bindings: () => new Map(built.flatMap((parameters) => [...bindings(parameters)])),
  };
}

function parseGuidance(json: Record<string, unknown>, file: string, unet: UNet2DConfig): ClassGuidance {
  const { guidance_scale: scale, null_label: label, use_clipped_model_output: clipped, class_names: names } = json;
  check(typeof scale === 'number' && Number.isFinite(scale), 'config', () => `${file}: "guidance_scale" must be a number`);
  check(Number.isInteger(label) && unet.num_class_embeds !== null && (label as number) < unet.num_class_embeds, 'config', () => `${file}: "null_label" must be one of the model's ${unet.num_class_embeds ?? 0} labels`);
  check(clipped === undefined || typeof clipped === 'boolean', 'config', () => `${file}: "use_clipped_model_output" must be true or false`);
  check(names === undefined || (Array.isArray(names) && names.every((n) => typeof n === 'string')), 'config', () => `${file}: "class_names" must be a list of strings`);
  return { guidance_scale: scale, null_label: label as number, ...(clipped !== undefined && { use_clipped_model_output: clipped as boolean }), ...(names !== undefined && { class_names: names as string[] }) };
}
