/**
 * DeepFloyd IF after Imagen (Saharia et al. 2022): diffusers' IFPipeline makes a small image of a text, IFSuperResolutionPipeline a larger one of that. Both
 * work on pixels; T5's states of the text go into the U-Net, padding included.
 */
import type { Engine } from '../engine/device';
import { check } from '../engine/errors';
import type { Tensor } from '../engine/graph';
import { concat, transpose } from '../engine/ops/copy';
import { interpolate } from '../engine/ops/interpolate';
import { add, scale } from '../engine/ops/pointwise';
import { normals, RngStream } from '../engine/rng';
import { numel, showShape, type Shape } from '../engine/shape';
import type { ModelFolder } from '../io/folder';
import { parseT5Config, t5Encoder, type T5Config } from '../model/t5';
import { unet2dCondition, type UNet2DConditionConfig } from '../model/unet2d_condition';
import { createSampler, noiseTables, type SamplerOptions, type SchedulerConfig } from '../sampler/scheduler_config';
import { loadTokenizer, type TokenBatch, type Tokenizer } from '../text/tokenizer';
import { checkPipelineClass, Component, openScheduler, runOnce, type ComponentOptions, type LoadingOptions } from './component';
import { conditionUNet } from './declarations';
import { guided, Progress, runStage, stageSeed, toImages, type PipelineCall, type PipelineImages } from './stage';

/** T5's states of texts. */
export interface PromptEmbeds {
  /** [N, T, D]. */
  readonly shape: readonly [number, number, number];
  readonly data: Float32Array;
}

export interface IFCall extends PipelineCall {
  /** One text for each image; needs a folder with text_encoder/ and tokenizer/. */
  readonly prompt?: readonly string[];
  /** What guidance leads away from, one for each image; '' by default. */
  readonly negative_prompt?: readonly string[];
  /** In place of the texts; see {@link IFPipeline.encodePrompt}. */
  readonly prompt_embeds?: PromptEmbeds;
  readonly negative_prompt_embeds?: PromptEmbeds;
  /** At most 1 for none. */
  readonly guidance_scale?: number;
  readonly num_inference_steps?: number;
  /** In place of the folder's. */
  readonly scheduler?: SchedulerConfig;
  /** Such as `timesteps`, descending, in place of num_inference_steps. */
  readonly schedulerOptions?: Omit<SamplerOptions, 'numInferenceSteps'>;
  /** [height, width]; the U-Net's sample_size by default. */
  readonly size?: readonly [number, number];
}

export interface IFSuperResolutionCall extends IFCall {
  /** What is enlarged: [N, C, h, w] in [−1, 1], such as the first stage's `samples`. */
  readonly image: { readonly shape: Shape; readonly data: Float32Array };
  /** Train time step up to which noise is put on the enlarged image, and which the U-Net is told (Ho et al. 2021); 250 by default. */
  readonly noise_level?: number;
}

/** T5's window in IF. */
const TOKENS = 77;

interface Components {
  readonly unet: Component<UNet2DConditionConfig>;
  readonly scheduler: SchedulerConfig;
  /** Folders of later stages have none, and are given the first stage's embeddings. */
  readonly text?: { readonly encoder: Component<T5Config>; readonly tokenizer: Tokenizer };
}

const t5Encoding: ComponentOptions<T5Config> = {
  name: 'text_encoder',
  weights: 'model',
  parse: parseT5Config,
  declare: (ctx, config) => void t5Encoder(ctx, config, { inputIds: ctx.graph.input('input_ids', [1, 1], 'i32') }),
};

async function openComponents(engine: Engine, folder: ModelFolder, pipeline: string, loading: LoadingOptions): Promise<Components> {
  await checkPipelineClass(folder, pipeline);
  const unet = await Component.open(engine, folder, conditionUNet('unet'), loading);
  const hasText = await folder.has('text_encoder/config.json');
  return {
    unet,
    scheduler: await openScheduler(folder),
    ...(hasText && { text: { encoder: await Component.open(engine, folder, t5Encoding, loading), tokenizer: await loadTokenizer(folder) } }),
  };
}

abstract class IFBase {
  protected constructor(
    readonly engine: Engine,
    readonly name: string,
    protected readonly components: Components,
  ) {}

  get scheduler(): SchedulerConfig {
    return this.components.scheduler;
  }

  /** Token ids and mask of texts, as the text encoder sees them: lower case, 77 tokens. */
  tokenize(prompts: readonly string[]): TokenBatch {
    const { text } = this.components;
    check(text, 'input', () => `${this.name}: the folder has no text_encoder; give prompt_embeds (encodePrompt of the first stage)`);
    return text.tokenizer.batch(prompts.map((prompt) => prompt.toLowerCase().trim()), TOKENS);
  }

  /** T5's states of texts [N, 77, d_model]; padding is masked in T5, and its states are part of the result. */
  async encodePrompt(prompts: readonly string[]): Promise<PromptEmbeds> {
    const { shape, inputIds, attentionMask } = this.tokenize(prompts);
    const { encoder } = this.components.text!;
    const { states } = await encoder.run((ctx, inputs) => ({
      states: t5Encoder(ctx, encoder.config, { inputIds: inputs.add('input_ids', shape, inputIds), attentionMask: inputs.add('attention_mask', shape, attentionMask) }).lastHiddenState,
    }));
    return { shape: [...shape, encoder.config.d_model], data: states };
  }

  /** The embeddings of a call: those of the negative prompts first where it is guided. */
  protected async embeds({ prompt, negative_prompt, prompt_embeds, negative_prompt_embeds }: IFCall, guidanceScale: number): Promise<PromptEmbeds> {
    check((prompt === undefined) !== (prompt_embeds === undefined), 'input', () => `${this.name}: give either prompt or prompt_embeds`);
    const n = prompt?.length ?? prompt_embeds!.shape[0];
    check(n >= 1, 'input', () => `${this.name}: no prompt was given`);
    check(!negative_prompt || negative_prompt.length === n, 'input', () => `${this.name}: ${negative_prompt!.length} negative prompts for ${n} prompts`);
    const positive = prompt_embeds ?? (await this.encodePrompt(prompt!));
    if (!guided(guidanceScale)) return positive;
    check(negative_prompt_embeds || this.components.text, 'input', () => `${this.name}: guidance needs negative_prompt_embeds where the folder has no text_encoder`);
    const negative = negative_prompt_embeds ?? (await this.encodePrompt(negative_prompt ?? Array.from({ length: n }, () => '')));
    check(negative.shape.every((d, i) => d === positive.shape[i]), 'input', () => `${this.name}: negative_prompt_embeds ${showShape(negative.shape)} must have the shape of prompt_embeds, ${showShape(positive.shape)}`);
    const data = new Float32Array(2 * positive.data.length);
    data.set(negative.data);
    data.set(positive.data, positive.data.length);
    return { shape: [2 * n, positive.shape[1], positive.shape[2]], data };
  }

  /** The denoising loop. `image` [N, C, H, W] joins the sample, `noise_level` is its class label. */
  protected async denoise(call: IFCall, defaults: { guidanceScale: number; numInferenceSteps: number }, second?: { readonly latents: Float32Array; readonly image: Float32Array; readonly noise_level: number; readonly shape: PipelineImages['shape'] }): Promise<PipelineImages> {
    const { engine } = this;
    const { unet, scheduler } = this.components;
    const { config } = unet;
    const { guidance_scale: guidanceScale = defaults.guidanceScale, schedulerOptions, onRecord } = call;
    const embeds = await this.embeds(call, guidanceScale);
    const copies = guided(guidanceScale) ? 2 : 1;
    const n = embeds.shape[0] / copies;
    const channels = second ? config.in_channels / 2 : config.in_channels;
    const size = second?.shape.slice(2) ?? call.size ?? config.sample_size;
    check(size, 'input', () => `${this.name}: the U-Net's config has no sample_size, so give a size`);
    const shape = [n, channels, size[0]!, size[1]!] as const;
    const steps = schedulerOptions?.timesteps ? {} : { numInferenceSteps: call.num_inference_steps ?? defaults.numInferenceSteps };
    const program = createSampler(call.scheduler ?? scheduler, { ...steps, ...schedulerOptions });
    const progress = new Progress(program.steps.length, call.onProgress);
    const samples = await unet.use((weights) =>
      runStage({
        engine,
        call,
        program,
        shape,
        guidanceScale,
        weights,
        progress,
        ...(second && { index: 1, latents: second.latents }),
        model: (ctx, x, timestep, inputs, step) => {
          const twice = (t: Tensor): Tensor => (copies === 2 ? concat([t, t], 0) : t);
          const sample = second ? concat([x, twice(inputs.add('image', shape, second.image))], 1) : x;
          step.record('unet_input', sample);
          const output = unet2dCondition(ctx, config, {
            sample,
            timestep,
            encoderHiddenStates: inputs.add('encoder_hidden_states', embeds.shape, embeds.data),
            ...(second && config.class_embed_type && { classLabels: inputs.add('class_labels', [copies * n], new Float32Array(copies * n).fill(second.noise_level)) }),
          });
          step.record('unet_output', output);
          return output;
        },
      }),
    );
    onRecord?.('image', samples);
    return { images: toImages(samples), samples, shape: [...shape] };
  }
}

/** Text to a small image (64×64 in the public checkpoints): T5, pixel U-Net with learned variance, dynamic thresholding. */
export class IFPipeline extends IFBase {
  /** Reads the folder's configs; weights are loaded by calls, one component after another. */
  static async fromFolder(engine: Engine, folder: ModelFolder, loading: LoadingOptions = {}): Promise<IFPipeline> {
    return new IFPipeline(engine, 'IFPipeline', await openComponents(engine, folder, 'IFPipeline', loading));
  }

  /** guidance_scale is 7 and num_inference_steps 100 by default. */
  generate(call: IFCall): Promise<PipelineImages> {
    return this.denoise(call, { guidanceScale: 7, numInferenceSteps: 100 });
  }
}

/** A small image to a larger one, under the same text. */
export class IFSuperResolutionPipeline extends IFBase {
  private constructor(
    engine: Engine,
    components: Components,
    /** Of the noise on the enlarged image. */
    readonly imageNoisingScheduler: SchedulerConfig,
  ) {
    super(engine, 'IFSuperResolutionPipeline', components);
    const { unet } = components;
    check(unet.config.in_channels % 2 === 0, 'config', () => `${unet.folder.name}/unet/config.json: in_channels ${unet.config.in_channels} must be even: a sample and the enlarged image`);
  }

  static async fromFolder(engine: Engine, folder: ModelFolder, loading: LoadingOptions = {}): Promise<IFSuperResolutionPipeline> {
    const components = await openComponents(engine, folder, 'IFSuperResolutionPipeline', loading);
    return new IFSuperResolutionPipeline(engine, components, await openScheduler(folder, 'image_noising_scheduler'));
  }

  /** guidance_scale is 4 and num_inference_steps 50 by default. */
  async generate(call: IFSuperResolutionCall): Promise<PipelineImages> {
    const { image, noise_level = 250, generator, seed = 0, sampleOffset = 0 } = call;
    const { config } = this.components.unet;
    const size = call.size ?? config.sample_size;
    check(size, 'input', () => `${this.name}: the U-Net's config has no sample_size, so give a size`);
    const channels = config.in_channels / 2;
    const n = call.prompt?.length ?? call.prompt_embeds?.shape[0];
    check(image.shape.length === 4 && image.shape[0] === n && image.shape[1] === channels && image.data.length === numel(image.shape), 'input', () => `${this.name}: image ${showShape(image.shape)} must be [${n}, ${channels}, h, w], one for each prompt`);
    const bars = noiseTables(this.imageNoisingScheduler).alphasCumprod;
    check(Number.isInteger(noise_level) && noise_level >= 0 && noise_level < bars.length, 'input', () => `${this.name}: noise_level ${noise_level} must be an integer from 0 to ${bars.length - 1}`);
    const shape = [n!, channels, ...size] as const;
    const per = numel(shape) / n!;
    // One draw for all images from a generator; image by image from the seed.
    const draw = (stream: number): Float32Array => {
      if (generator) return generator.randn(shape);
      const all = new Float32Array(numel(shape));
      for (let i = 0; i < n!; i++) all.set(normals(stageSeed(seed, 1), { index: sampleOffset + i, step: 0, stream }, per), i * per);
      return all;
    };
    const [latents, noise] = [draw(RngStream.noise), draw(RngStream.condition)];
    const bar = bars[noise_level]!;
    const { noised } = await runOnce(this.engine, undefined, (_, inputs) => {
      const enlarged = interpolate(transpose(inputs.add('image', image.shape, image.data), [0, 2, 3, 1]), size, { mode: 'bilinear', alignCorners: true });
      return { noised: add(scale(transpose(enlarged, [0, 3, 1, 2]), Math.sqrt(bar)), scale(inputs.add('noise', shape, noise), Math.sqrt(1 - bar))) };
    });
    return this.denoise(call, { guidanceScale: 4, numInferenceSteps: 50 }, { latents, image: noised, noise_level, shape: [...shape] });
  }
}
