/** Class-conditional latent diffusion with a transformer: diffusers' DiTPipeline (Peebles & Xie 2023; model_index.json, transformer/, vae/, scheduler/). */
import type { Engine } from '../engine/device';
import { check } from '../engine/errors';
import type { Tensor } from '../engine/graph';
import type { ModelFolder } from '../io/folder';
import { latentFactor, type AutoencoderKLConfig } from '../model/autoencoder_kl';
import type { ModelContext } from '../model/layers';
import { parseTransformer2DConfig, transformer2d, transformer2dInputs, type Transformer2DConfig } from '../model/transformer2d';
import { createSampler, type SamplerOptions, type SchedulerConfig } from '../sampler/scheduler_config';
import { checkPipelineClass, Component, openScheduler, type LoadingOptions } from './component';
import { latentDecoder } from './declarations';
import { latentDecoderOf } from './latent_decoder';
import type { LatentDecoder } from './preview';
import { Progress, runStage, toImages, type LatentCall, type PipelineImages } from './stage';

export interface DiTCall extends LatentCall {
  /** One class for each image, 0 to num_embeds_ada_norm − 1. */
  readonly class_labels: readonly number[];
  /** 4 by default; at most 1 for none. */
  readonly guidance_scale?: number;
  /** 50 by default. */
  readonly num_inference_steps?: number;
  /** In place of the folder's. */
  readonly scheduler?: SchedulerConfig;
  readonly schedulerOptions?: Omit<SamplerOptions, 'numInferenceSteps'>;
}

export class DiTPipeline {
  private constructor(
    readonly engine: Engine,
    readonly transformer: Component<Transformer2DConfig>,
    readonly vae: Component<AutoencoderKLConfig>,
    readonly scheduler: SchedulerConfig,
  ) {}

  /** Reads the folder's configs; weights are loaded by calls, one component after another. */
  static async fromFolder(engine: Engine, folder: ModelFolder, loading: LoadingOptions = {}): Promise<DiTPipeline> {
    await checkPipelineClass(folder, 'DiTPipeline');
    const transformer = await Component.open(engine, folder, {
      name: 'transformer',
      weights: 'diffusion_pytorch_model',
      parse: parseTransformer2DConfig,
      declare: (ctx, config) => void transformer2d(ctx, config, transformer2dInputs(ctx, config, [1, config.sample_size!, config.sample_size!])),
    }, loading);
    const { patch_size: patch, num_embeds_ada_norm: classes } = transformer.config;
    check(patch !== null && classes !== null, 'config', () => `${folder.name}/transformer/config.json: DiTPipeline needs a model over patches with classes (patch_size, num_embeds_ada_norm)`);
    return new DiTPipeline(engine, transformer, await Component.open(engine, folder, latentDecoder, loading), await openScheduler(folder));
  }

  private decoder: LatentDecoder | undefined;

  /** The autoencoder's decoder by itself. */
  get latentDecoder(): LatentDecoder {
    return (this.decoder ??= latentDecoderOf(this.vae));
  }

  async generate(call: DiTCall): Promise<PipelineImages> {
    const { class_labels, guidance_scale: guidanceScale = 4, num_inference_steps: numInferenceSteps = 50, onRecord } = call;
    const { engine, transformer, vae } = this;
    const { config } = transformer;
    const none = config.num_embeds_ada_norm!;
    const n = class_labels.length;
    check(n >= 1, 'input', () => 'DiTPipeline: class_labels is empty; give a class for each image');
    const bad = class_labels.find((label) => !Number.isInteger(label) || label < 0 || label >= none);
    check(bad === undefined, 'input', () => `DiTPipeline: class label ${bad} is not one of 0 to ${none - 1}`);
    const size = config.sample_size!;
    const program = createSampler(call.scheduler ?? this.scheduler, { numInferenceSteps, ...call.schedulerOptions });
    const progress = new Progress(program.steps.length, call.onProgress);
    const model = (ctx: ModelContext, sample: Tensor, timestep: Tensor, classLabels: Tensor | undefined): Tensor => transformer2d(ctx, config, { sample, timestep, classLabels });
    const latents = await transformer.use((weights) =>
      runStage({
        engine,
        call,
        program,
        ...(call.latents && { latents: call.latents }),
        shape: [n, config.in_channels, size, size],
        guidanceScale,
        weights,
        progress,
        labels: { classes: Int32Array.from(class_labels), none },
        model: (ctx, sample, timestep, _inputs, _step, labels) => model(ctx, sample, timestep, labels),
        timeModel: model,
      }),
    );
    const side = size * latentFactor(vae.config);
    const decoded = await this.latentDecoder.decode(latents, [n, config.in_channels, size, size], call);
    onRecord?.('decoded', decoded);
    const images = toImages(decoded);
    onRecord?.('image', images);
    return { images, samples: decoded, shape: [n, vae.config.out_channels, side, side] };
  }
}
