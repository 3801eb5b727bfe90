/**
 * Stable Diffusion 1 and 2 (Rombach et al. 2022) from a folder in diffusers' layout: text to image, image to image, inpainting with U-Nets of 4 and 9
 * channels, with or without ControlNets; latent consistency models. One object does what diffusers has a class for each: the arguments say which is
 * meant. Components are in GPU memory only while they are used, unless they are to be kept. SDXL (stable_diffusion_xl.ts) differs in its text.
 */
import type { Engine } from '../engine/device';
import { BruitError, check } from '../engine/errors';
import type { Tensor } from '../engine/graph';
import { concat, slice } from '../engine/ops/copy';
import { add, mul, shift, scale } from '../engine/ops/pointwise';
import { reshape } from '../engine/ops/reshape';
import { timestepFrequencies } from '../engine/ops/timestep_embedding';
import { normals, RngStream } from '../engine/rng';
import { numel, showShape, type Shape } from '../engine/shape';
import type { NormalSource } from '../engine/torch_rng';
import { asSubfolder, readJson, type ModelFolder } from '../io/folder';
import type { TensorStore } from '../io/safetensors';
import { encodeImage, latentFactor, sampleLatent, scaleLatent, type AutoencoderKLConfig } from '../model/autoencoder_kl';
import { controlNet, controlNetInputs, forPositiveHalf, parseControlNetConfig, sumResiduals, type ControlNetConfig } from '../model/controlnet';
import { hoistables, type ModelContext } from '../model/layers';
import { Parameters, type WeightStore } from '../model/parameters';
import { conditionInputs, unet2dCondition, type ConditionedConfig, type ControlResiduals, type UNet2DConditionConfig } from '../model/unet2d_condition';
import { createGpuSampler, type GpuSampler, type SamplerPreview, type StepContext } from '../sampler/sample';
import { takeSteps, type SamplerProgram } from '../sampler/program';
import { createSampler, noiseLevels, type SamplerOptions, type SchedulerConfig } from '../sampler/scheduler_config';
import { roundHalfEven } from '../sampler/schedules';
import { loadTokenizer } from '../text/tokenizer';
import { Component, openScheduler, pipelineClass, repeatRows, textValues, type ComponentOptions, type LoadedLora, type LoadingOptions, type TextValues } from './component';
import { addedSizes, autoencoder, clipTextEncoder, conditionUNet } from './declarations';
import { latentDecoderOf } from './latent_decoder';
import type { LatentDecoder } from './preview';
import { encodePrompts, joinRows, type EncodedPrompts, type PromptEncoder, type PromptOptions } from './encode_prompts';

/** Images [N,C,H,W] with numbers in [0,1]. */
export interface ImageBatch {
  readonly data: Float32Array;
  readonly shape: Shape;
}

/** Arguments under diffusers' names; what diffusers has no name for is in camel case. */
export interface StableDiffusionOptions extends PromptOptions {
  readonly prompt: string | readonly string[];
  readonly negative_prompt?: string | readonly string[] | undefined;
  /** Of the image; the U-Net's sample_size by default. Multiples of the autoencoder's factor. */
  readonly height?: number | undefined;
  readonly width?: number | undefined;
  readonly num_inference_steps?: number | undefined;
  /** 1 and less is none. A U-Net with time_cond_proj_dim (latent consistency models) is told the scale instead of being evaluated twice. */
  readonly guidance_scale?: number | undefined;
  /** Lin et al. 2023, section 3.4. */
  readonly guidance_rescale?: number | undefined;
  readonly num_images_per_prompt?: number | undefined;
  /** `np`: images in [0,1], the default. `latent`: what the decoder would be given, scaled as the U-Net has it, [N,C,h,w]. */
  readonly output_type?: 'np' | 'latent' | undefined;
  readonly eta?: number | undefined;
  /** Latent consistency models: steps that they were distilled with. */
  readonly original_inference_steps?: number | undefined;
  /** Standard normal start noise [N,C,h,w]. */
  readonly latents?: Float32Array | undefined;
  /** An image to begin with (image to image), or to be painted into. One of as many channels as latents have is taken for latents, as `output_type: 'latent'` gives them. */
  readonly image?: ImageBatch | undefined;
  /** One channel; 1 is to be painted, 0 kept. */
  readonly mask_image?: ImageBatch | undefined;
  /** How far to go back into noise: 0.8 by default for images, 1 with a mask. */
  readonly strength?: number | undefined;
  /** What the ControlNet reads (diffusers: `image` of the ControlNet pipelines); a list for several, as are the following. */
  readonly control_image?: ImageBatch | readonly ImageBatch[] | undefined;
  readonly controlnet_conditioning_scale?: number | readonly number[] | undefined;
  readonly guess_mode?: boolean | undefined;
  /** Parts of the steps between which the ControlNet acts. */
  readonly control_guidance_start?: number | readonly number[] | undefined;
  readonly control_guidance_end?: number | readonly number[] | undefined;
  /** `scale` multiplies the strength of all LoRA files. */
  readonly cross_attention_kwargs?: { readonly scale?: number } | undefined;
  /** Where normal draws come from, in diffusers' order: torch's generators, or a record. By default image i is a function of (seed, sampleOffset + i). */
  readonly generator?: NormalSource | undefined;
  readonly seed?: number | undefined;
  readonly sampleOffset?: number | undefined;
  /** A configuration in place of the folder's own. */
  readonly scheduler?: SchedulerConfig | undefined;
  readonly signal?: AbortSignal | undefined;
  readonly onProgress?: ((done: number, total: number) => void) | undefined;
  /** Images decoded, or tiles of all passes over all images, and how many there are. */
  readonly onDecode?: ((done: number, total: number) => void) | undefined;
  readonly onPreview?: ((preview: SamplerPreview) => void) | undefined;
  /** The denoising loop's {@link SamplerRunOptions.onQueued}, with the sampler: latents and predicted x0 can be drawn from its memory. */
  readonly onQueued?: ((sampler: GpuSampler, step: number, total: number) => void) | undefined;
  /** Called with intermediate values under the names that reference runs have (`timesteps`, `model_output.0`, `latents.N`, …). Costs memory and time. */
  readonly onRecord?: ((name: string, value: Float32Array) => void) | undefined;
}

/** Texts as a trajectory reads them; rows are [negative; positive] where it is guided. */
export interface TextConditions {
  /** [rows, tokens, width]. */
  readonly embeds: Float32Array;
  /** Of the embeddings, without the rows. */
  readonly shape: readonly [tokens: number, width: number];
  /** Pooled text [rows, D] and sizes [rows, K], of SDXL. */
  readonly added?: { readonly text_embeds: Float32Array; readonly time_ids: Float32Array };
}

/** What {@link TextConditions} are made of. */
export interface PromptBatch {
  readonly prompts: readonly string[];
  /** As many as prompts; undefined where none was given. */
  readonly negative: readonly string[] | undefined;
  readonly guided: boolean;
  /** [height, width] of the images. */
  readonly size: readonly [number, number];
}

interface Size {
  readonly batch: number;
  readonly height: number;
  readonly width: number;
}

/** The part of the noise schedule that a call runs, for ensembles: from 0, all noise, to 1. */
export interface DenoisingPart {
  /** The image is noisy already, as another model's `end` left it. */
  readonly start?: number | undefined;
  readonly end?: number | undefined;
}

/** The latents that steps are computed for, and what of an image belongs to them. */
interface Start {
  /** Scaled latents of the image, [N,C,h,w]. */
  readonly image?: Float32Array;
  /** They have the first step's noise already. */
  readonly noisy?: boolean;
  /** At the latents' size, [N,1,h,w]. */
  readonly mask?: Float32Array;
  /** Scaled latents of the image without the masked part, for U-Nets that take them. */
  readonly maskedImage?: Float32Array;
  readonly noise: Float32Array | undefined;
}

export interface StableDiffusionPipelineOptions extends LoadingOptions {
  /** Folders of ControlNets; the pipeline's own sub-folder `controlnet` by default, where there is one. */
  readonly controlnets?: readonly ModelFolder[];
}

/** One text or several as a list. */
export const list = (text: string | readonly string[]): readonly string[] => (typeof text === 'string' ? [text] : text);

const controlNetOptions: ComponentOptions<ControlNetConfig> = {
  name: 'controlnet',
  weights: 'diffusion_pytorch_model',
  parse: parseControlNetConfig,
  declare(ctx, config) {
    const side = 2 ** config.block_out_channels.length;
    controlNet(ctx, config, controlNetInputs(ctx, config, { sample: [1, side, side], tokens: 1, ...addedSizes(config) }));
  },
};

/** What all Stable Diffusion pipelines have. */
export interface StableDiffusionComponents {
  readonly engine: Engine;
  readonly name: string;
  readonly unet: Component<UNet2DConditionConfig>;
  readonly vae: Component<AutoencoderKLConfig>;
  readonly scheduler: SchedulerConfig;
  readonly controlnets: readonly Component<ControlNetConfig>[];
}

/** Opens what all Stable Diffusion pipelines have; configs are checked here, weights are read when they are used. */
export async function openStableDiffusion(engine: Engine, folder: ModelFolder, { controlnets, ...loading }: StableDiffusionPipelineOptions): Promise<StableDiffusionComponents> {
  const unet = await Component.open(engine, folder, conditionUNet('unet'), loading);
  const vae = await Component.open(engine, folder, autoencoder, loading);
  const { in_channels: channels } = unet.config;
  const latent = vae.config.latent_channels;
  check(channels === latent || channels === 2 * latent + 1, 'config', () => `${folder.name}/unet: ${channels} input channels; ${latent} are for latents, ${2 * latent + 1} for inpainting (latents, mask, masked image)`);
  const own = (await folder.has('controlnet/config.json')) ? [await Component.open(engine, folder, controlNetOptions, loading)] : [];
  const given = controlnets && (await Promise.all(controlnets.map((each) => Component.open(engine, asSubfolder(each, 'controlnet'), controlNetOptions, loading))));
  return { engine, name: folder.name, unet, vae, scheduler: await openScheduler(folder), controlnets: given ?? own };
}

/** Defaults of a pipeline's call, where diffusers has another one for each class. */
export interface StableDiffusionDefaults {
  readonly guidance_scale: number;
  readonly num_inference_steps: number;
  /** For images, and with a mask. */
  readonly strength: readonly [image: number, mask: number];
}

/** Everything but the text. */
export abstract class StableDiffusionBase<O extends StableDiffusionOptions> {
  private loras: LoadedLora[] = [];
  readonly engine: Engine;
  readonly name: string;
  readonly unet: Component<UNet2DConditionConfig>;
  readonly vae: Component<AutoencoderKLConfig>;
  readonly scheduler: SchedulerConfig;
  readonly controlnets: readonly Component<ControlNetConfig>[];

  protected constructor(
    { engine, name, unet, vae, scheduler, controlnets }: StableDiffusionComponents,
    readonly defaults: StableDiffusionDefaults,
  ) {
    [this.engine, this.name, this.unet, this.vae, this.scheduler, this.controlnets] = [engine, name, unet, vae, scheduler, controlnets];
  }

  /** The texts of a call, row by row. */
  protected abstract conditions(options: O, batch: PromptBatch): Promise<TextConditions>;

  protected abstract readonly textEncoders: readonly PromptEncoder[];

  /** What a call runs of the schedule: all of it but in SDXL. */
  protected denoisingPart(_options: O): DenoisingPart {
    return {};
  }

  /** Adds a LoRA file to U-Net and text encoder from the next call on; `scale` is its strength. The caller closes the file when it is done with it. */
  loadLoraWeights(store: TensorStore, scale = 1): void {
    this.loras.push({ store, scale });
  }

  /** Takes all LoRA files out again. */
  unloadLoraWeights(): void {
    this.loras = [];
  }

  protected scaledLoras({ cross_attention_kwargs: kwargs }: Pick<StableDiffusionOptions, 'cross_attention_kwargs'>): LoadedLora[] {
    return this.loras.map(({ store, scale }) => ({ store, scale: scale * (kwargs?.scale ?? 1) }));
  }

  /** Generates images [N,C,H,W] in [0,1]; those of one prompt follow each other. The whole trajectory is computed without a read-back. */
  async generate(options: O): Promise<ImageBatch> {
    const { num_inference_steps: count = this.defaults.num_inference_steps, guidance_scale: guidanceScale = this.defaults.guidance_scale, onRecord } = options;
    const prompts = list(options.prompt);
    check(prompts.length > 0, 'input', () => 'there is no prompt');
    const perPrompt = options.num_images_per_prompt ?? 1;
    const size = this.size(options, prompts.length * perPrompt);
    const inpainting = options.mask_image !== undefined;
    check(this.unet.config.in_channels === this.vae.config.latent_channels || inpainting, 'input', () => `${this.name}: this U-Net paints into images: give image and mask_image`);
    check(!inpainting || options.image, 'input', () => 'mask_image was given without the image that it belongs to');
    const controlImages = listOf(options.control_image);
    const nets = this.controlnets.length;
    check(controlImages.length === nets, 'input', () => (nets ? `${this.name} has ${nets === 1 ? 'a ControlNet' : `${nets} ControlNets`}: give control_image, one for each; got ${controlImages.length}` : `${this.name} has no ControlNet to read control_image`));

    const config = options.scheduler ?? this.scheduler;
    const strength = options.strength ?? this.defaults.strength[inpainting ? 1 : 0];
    check(strength >= 0 && strength <= 1, 'input', () => `strength ${strength} must be from 0 to 1`);
    const part = this.denoisingPart(options);
    const samplerOptions: SamplerOptions = {
      numInferenceSteps: count,
      ...(options.eta !== undefined && config._class_name === 'DDIMScheduler' && { eta: options.eta }),
      ...(options.original_inference_steps !== undefined && { original_inference_steps: options.original_inference_steps }),
    };
    // Heun evaluates every step twice.
    const perStep = config._class_name === 'HeunDiscreteScheduler' ? 2 : 1;
    let skipped = 0;
    if (part.start !== undefined) skipped = evaluationsBefore(config, createSampler(config, samplerOptions).timesteps, part.start, perStep);
    else if (options.image) {
      const skippedSteps = Math.max(count - Math.min(Math.floor(count * strength), count), 0);
      check(skippedSteps < count, 'input', () => `strength ${strength} leaves none of ${count} steps`);
      skipped = skippedSteps * perStep;
    }
    const whole = createSampler(config, { ...samplerOptions, begin: skipped });
    onRecord?.('timesteps', Float32Array.from(whole.timesteps));
    if (whole.sigmas) onRecord?.('sigmas', Float32Array.from(whole.sigmas));
    const program = part.end === undefined ? whole : takeSteps(whole, evaluationsUntil(config, whole, part.end));

    const guided = guidanceScale > 1 && this.unet.config.time_cond_proj_dim === null;
    const negative = options.negative_prompt === undefined ? undefined : list(options.negative_prompt);
    check(!negative || negative.length === 1 || negative.length === prompts.length, 'input', () => `${negative!.length} negative prompts for ${prompts.length} prompts`);
    const factor = latentFactor(this.vae.config);
    const text = await this.conditions(options, { prompts, negative: negative && prompts.map((_, i) => negative[i % negative.length]!), guided, size: [size.height * factor, size.width * factor] });
    const rows = (guided ? 2 : 1) * prompts.length;
    const each = (data: Float32Array): Float32Array => repeatRows(data, rows, rows * perPrompt, { each: true, what: 'prompts' });
    const conditions: TextConditions = { ...text, embeds: each(text.embeds), ...(text.added && { added: { text_embeds: each(text.added.text_embeds), time_ids: each(text.added.time_ids) } }) };

    const latentShape: Shape = [size.batch, this.vae.config.latent_channels, size.height, size.width];
    const start = await this.start(options, size, latentShape, { partly: skipped > 0, noisy: part.start !== undefined });
    const { generator } = options;
    const noise = generator && program.noiseDraws > 0 ? joinDraws(generator, latentShape, program.noiseDraws) : undefined;

    const latents = await this.sample(options, { program, stepCount: whole.steps.length, config, guided, skipped, start, noise, text: conditions, latentShape, guidanceScale });
    if (options.output_type === 'latent') return { data: latents, shape: latentShape };
    const shape: Shape = [size.batch, this.vae.config.out_channels, size.height * factor, size.width * factor];
    const decoded = await this.latentDecoder.decode(latents, latentShape, options);
    onRecord?.('decoded', decoded);
    const data = decoded.map((x) => Math.min(Math.max(x / 2 + 0.5, 0), 1));
    onRecord?.('image', data);
    return { data, shape };
  }

  /** Batch, and height and width of the latents. */
  private size({ height, width, image, control_image: control }: StableDiffusionOptions, batch: number): Size {
    const factor = latentFactor(this.vae.config);
    const controls = listOf(control);
    const given = image ? this.imageSize(image) : controls[0] && this.imageSize(controls[0]);
    const own = this.unet.config.sample_size;
    const pixels = [height ?? given?.[0] ?? (own && own[0] * factor), width ?? given?.[1] ?? (own && own[1] * factor)] as const;
    for (const side of pixels) check(side !== undefined && Number.isInteger(side) && side >= factor && side % factor === 0, 'input', () => `height ${pixels[0]} and width ${pixels[1]} must be multiples of ${factor}`);
    for (const [name, batchOf] of [['image', image] as const, ...controls.map((each) => ['control_image', each] as const)]) {
      check(!batchOf || (batchOf.shape.length === 4 && this.imageSize(batchOf).every((side, i) => side === pixels[i]) && batchOf.data.length === numel(batchOf.shape)), 'input', () => `${name} ${showShape(batchOf!.shape)} must be [N, C, ${pixels[0]}, ${pixels[1]}]: resize it first`);
    }
    return { batch, height: pixels[0]! / factor, width: pixels[1]! / factor };
  }

  /** Whether an image is given as latents. */
  private isLatent({ shape }: ImageBatch): boolean {
    const { latent_channels: latent, in_channels: pixels } = this.vae.config;
    return shape[1] === latent && latent !== pixels;
  }

  /** [height, width] in pixels. */
  private imageSize(image: ImageBatch): readonly [number, number] {
    const factor = this.isLatent(image) ? latentFactor(this.vae.config) : 1;
    return [image.shape[2]! * factor, image.shape[3]! * factor];
  }

  /**
   * Start noise, and latents of the image and of its kept part. Draws are taken in diffusers' order: image, noise, masked image.
   * @param partly The first steps are left out. `noisy`: the image is at the first step's level of noise already.
   */
  private async start(options: StableDiffusionOptions, { batch, height, width }: Size, latentShape: Shape, { partly, noisy: already }: { partly: boolean; noisy: boolean }): Promise<Start> {
    const { image, mask_image: mask, generator, seed = 0, sampleOffset = 0 } = options;
    const draw = (shape: Shape, step: number): Float32Array => {
      if (generator) return generator.randn(shape);
      const out = new Float32Array(numel(shape));
      const each = out.length / shape[0]!;
      for (let i = 0; i < shape[0]!; i++) out.set(normals(seed, { index: sampleOffset + i, step, stream: RngStream.latent }, each), i * each);
      return out;
    };
    const startNoise = (): Float32Array | undefined => options.latents ?? generator?.randn(latentShape);
    if (!image) return { noise: startNoise() };
    const n = image.shape[0]!;
    const given = this.isLatent(image);
    const channels = latentShape[1]!;
    const drawShape = [n, channels, height, width];
    const toModel = given ? image.data : image.data.map((x) => 2 * x - 1);
    const takesMask = this.unet.config.in_channels !== channels;
    const encode = async (pixels: Float32Array, gaussian: Float32Array): Promise<Float32Array> => {
      const { latents } = await this.vae.run((ctx, inputs) => ({
        latents: scaleLatent(this.vae.config, sampleLatent(encodeImage(ctx, this.vae.config, inputs.add('image', image.shape, pixels)), inputs.add('gaussian', drawShape, gaussian))),
      }));
      return repeatRows(latents, n, batch, { what: 'image' });
    };
    const needsImage = !takesMask || partly || already;
    const gaussian = needsImage && !given ? draw(drawShape, 0) : undefined;
    // Without a mask, nothing is done with noise where the image has its own.
    const noise = already && !mask ? undefined : startNoise();
    const latents = needsImage && { image: gaussian ? await encode(toModel, gaussian) : repeatRows(image.data, n, batch, { what: 'image' }), noisy: already };
    if (!mask) return { ...latents, noise };
    check(!given || !takesMask, 'input', () => `${this.name}: this U-Net reads what the mask keeps of the image, which latents do not tell: give the image itself`);
    const [h, w] = this.imageSize(image);
    check(mask.shape.length === 4 && mask.shape[1] === 1 && mask.shape[2] === h && mask.shape[3] === w && (mask.shape[0] === 1 || mask.shape[0] === n), 'input', () => `mask_image ${showShape(mask.shape)} must be [1 or ${n}, 1, ${h}, ${w}]`);
    const painted = repeatRows(mask.data.map((x) => (x >= 0.5 ? 1 : 0)), mask.shape[0]!, n, { what: 'mask_image' });
    const factor = h / height;
    const small = Float32Array.from({ length: n * height * width }, (_, i) => painted[(Math.floor(i / width) * w + (i % width)) * factor]!);
    if (given) return { ...latents, mask: repeatRows(small, n, batch, { what: 'mask_image' }), noise };
    // diffusers draws for it whether or not the U-Net reads it.
    const maskedGaussian = draw(drawShape, 1);
    const kept = toModel.map((x, i) => x * (1 - painted[Math.floor(i / (image.shape[1]! * h * w)) * h * w + (i % (h * w))]!));
    return { ...latents, mask: repeatRows(small, n, batch, { what: 'mask_image' }), ...(takesMask && { maskedImage: await encode(kept, maskedGaussian) }), noise };
  }

  private sample(options: StableDiffusionOptions, run: Trajectory): Promise<Float32Array> {
    const loras = this.scaledLoras(options);
    const withNets = (unet: WeightStore, nets: readonly WeightStore[]): Promise<Float32Array> =>
      nets.length < this.controlnets.length ? this.controlnets[nets.length]!.use((net) => withNets(unet, [...nets, net])) : this.trajectory(options, run, unet, nets);
    return this.unet.use((unet) => withNets(unet, []), loras);
  }

  private async trajectory(options: StableDiffusionOptions, run: Trajectory, unet: WeightStore, nets: readonly WeightStore[]): Promise<Float32Array> {
    const { program, config, guided, skipped, start, latentShape, text } = run;
    const { onRecord, onPreview, onQueued } = options;
    const [batch, channels, height, width] = latentShape as [number, number, number, number];
    const rows = guided ? 2 * batch : batch;
    // In guess mode a ControlNet sees the prompt's half only.
    const guessMode = options.guess_mode === true || this.controlnets[0]?.config.global_pool_conditions === true;
    const guess = guided && guessMode;
    const controlRows = guess ? batch : rows;
    const doubled = (x: Float32Array, times: number): Float32Array => repeatRows(x, batch, times * batch, { what: 'latents' });
    const lastRows = (x: Float32Array): Float32Array => x.subarray(x.length - (x.length / rows) * controlRows);
    const controlImages = listOf(options.control_image);
    const inputs: Record<string, Float32Array> = {
      encoder_hidden_states: text.embeds,
      control_hidden_states: lastRows(text.embeds),
      ...(text.added && { ...text.added, control_text_embeds: lastRows(text.added.text_embeds), control_time_ids: lastRows(text.added.time_ids) }),
      ...(start.image && { image_latents: start.image }),
      ...(start.mask && { mask: start.mask }),
      ...(start.maskedImage && start.mask && { mask_input: doubled(start.mask, rows / batch), masked_image_latents: doubled(start.maskedImage, rows / batch) }),
    };
    controlImages.forEach((image, i) => (inputs[`controlnet_cond.${i}`] = doubled(repeatRows(image.data, image.shape[0]!, batch, { each: true, what: 'control_image' }), controlRows / batch)));
    const guidanceDim = this.unet.config.time_cond_proj_dim;
    if (guidanceDim !== null) inputs.timestep_cond = repeatRows(guidanceEmbedding(run.guidanceScale, guidanceDim), 1, rows, { what: 'guidance' });
    const parameters: [Parameters, WeightStore][] = [];
    const held: TextValues[] = [];
    const levels = noiseLevels(config, program).slice(program.timesteps.length - program.steps.length);
    const inputLatents = (graph: Tensor['graph'], x: Tensor): Tensor =>
      start.maskedImage ? concat([x, graph.input('mask_input', [rows, 1, height, width]), graph.input('masked_image_latents', [rows, channels, height, width])], 1) : x;
    const [tokens] = text.shape;
    const added = addedSizes(this.unet.config, text.added && text.added.time_ids.length / rows);
    const unetOf = (ctx: ModelContext, sample: Tensor, timestep: Tensor, residuals?: ControlResiduals): Tensor =>
      unet2dCondition(ctx, this.unet.config, { ...conditionInputs(ctx, this.unet.config, { sample: [sample.shape[0]!, height, width], tokens, timestepCond: guidanceDim !== null, ...added }, { sample, timestep }), control: residuals });
    const controlOf = (i: number, ctx: ModelContext, sample: Tensor, timestep: Tensor, conditioningScale: Tensor | number): ControlResiduals => {
      const net = this.controlnets[i]!.config;
      const { shape } = controlImages[i]!;
      return controlNet(ctx, net, {
        sample,
        timestep,
        encoderHiddenStates: ctx.graph.input('control_hidden_states', [sample.shape[0]!, ...text.shape]),
        controlnetCond: ctx.graph.input(`controlnet_cond.${i}`, [sample.shape[0]!, ...shape.slice(1)]),
        ...(net.addition_embed_type === 'text_time' && added.timeIds && { added: { textEmbeds: ctx.graph.input('control_text_embeds', [controlRows, added.textEmbeds!]), timeIds: ctx.graph.input('control_time_ids', [controlRows, added.timeIds]) } }),
        conditioningScale,
        guessMode,
      });
    };
    const leaves = (ctx: ModelContext, n: number, sampleChannels: number): [Tensor, Tensor] => [ctx.graph.input('sample', [n, sampleChannels, height, width]), ctx.graph.input('timestep', [n])];

    try {
      const unetText = await textValues(this.engine, unet, inputs, (ctx) => void unetOf(ctx, ...leaves(ctx, rows, this.unet.config.in_channels)));
      held.push(unetText);
      const netTexts: TextValues[] = [];
      for (const [i, net] of nets.entries()) {
        const values = await textValues(this.engine, net, inputs, (ctx) => void controlOf(i, ctx, ...leaves(ctx, controlRows, channels), 1));
        netTexts.push(values);
        held.push(values);
      }
      const contextOf = (graph: Tensor['graph'], weights: WeightStore, hoist: NonNullable<ModelContext['hoist']>): ModelContext => {
        const own = new Parameters(graph);
        parameters.push([own, weights]);
        return { graph, parameters: own, hoist };
      };
      // The models have layers of the same names.
      const hoisted = (graph: Tensor['graph'], values: TextValues, step: StepContext, model: string): NonNullable<ModelContext['hoist']> => {
        const ofText = values.hoist(graph);
        return (value, compute) => (value.of === 'text' ? ofText(value, compute) : step.hoist({ path: `${model}${value.path}` }, compute));
      };
      const timeOf = (graph: Tensor['graph'], timestep: Tensor, weights: WeightStore, model: string, build: (ctx: ModelContext, sample: Tensor) => unknown): [string, Tensor][] => {
        const sample = graph.input('sample', [timestep.shape[0]!, model ? channels : this.unet.config.in_channels, height, width]);
        return [...hoistables('time', (hoist) => build(contextOf(graph, weights, hoist), sample))].map(([path, value]) => [`${model}${path}`, value]);
      };
      // Where text, sizes or a guidance scale join the time embedding, it is no function of the time step alone.
      const timeAlone = ({ addition_embed_type: addition, class_embed_type: kind, num_class_embeds: classes, time_cond_proj_dim: condition }: ConditionedConfig): boolean => addition === null && kind === null && classes === null && condition === null;
      const sampler = await createGpuSampler(this.engine, {
        program,
        shape: [batch, channels, height, width],
        model: (graph, x, timestep, _, step) => {
          const sample = inputLatents(graph, x);
          step.record('unet_input', sample);
          let residuals: ControlResiduals | undefined;
          if (nets.length) {
            const half = (t: Tensor): Tensor => (guess ? slice(t, 0, batch, batch) : t);
            const all = sumResiduals(nets.map((net, i) => controlOf(i, contextOf(graph, net, hoisted(graph, netTexts[i]!, step, `controlnet.${i}.`)), half(x), half(timestep), this.controlScale(options, i, step, { count: run.stepCount, taken: program.steps.length }))));
            residuals = guess ? forPositiveHalf(all) : all;
          }
          return unetOf(contextOf(graph, unet, hoisted(graph, unetText, step, '')), sample, timestep, residuals);
        },
        timeValues: (graph, timestep) =>
          new Map([
            ...(timeAlone(this.unet.config) ? timeOf(graph, timestep, unet, '', (ctx, sample) => unetOf(ctx, sample, timestep)) : []),
            ...nets.flatMap((net, i) => (timeAlone(this.controlnets[i]!.config) ? timeOf(graph, timestep, net, `controlnet.${i}.`, (ctx, sample) => controlOf(i, ctx, sample, timestep, 1)) : [])),
          ]),
        // At full strength nothing of the image is left in the start of inpainting.
        ...(start.image && (start.noisy || !(start.mask && skipped === 0)) && {
          start(noise: Tensor) {
            const image = noise.graph.input('image_latents', latentShape);
            return start.noisy ? image : noisy(image, noise, levels[0]!);
          },
        }),
        ...(start.mask && !start.maskedImage && { after: (sample: Tensor, step: StepContext) => keepUnmasked(sample, step, latentShape, levels) }),
        bindings: () => new Map([...parameters.flatMap(([own, weights]) => [...weights.bindings(own)]), ...held.flatMap((values) => [...values.bindings])]),
        seed: options.seed ?? 0,
        sampleOffset: options.sampleOffset ?? 0,
        latents: start.noise ?? null,
        ...(run.noise && { noise: run.noise }),
        ...(guided && { guidance: { scale: run.guidanceScale, ...(options.guidance_rescale && { rescale: options.guidance_rescale }) } }),
        preview: (onPreview ?? onQueued) !== undefined,
        record: onRecord !== undefined,
      });
      try {
        sampler.writeInputs(inputs);
        const masked = start.mask !== undefined && start.maskedImage === undefined;
        await sampler.run({
          ...(options.signal && { signal: options.signal }),
          ...(options.onProgress && { onProgress: options.onProgress }),
          ...(onQueued && { onQueued: (step: number, total: number) => onQueued(sampler, step, total) }),
          ...((onRecord ?? onPreview) && {
            onPreview: (preview: SamplerPreview) => {
              const { step, recorded } = preview;
              if (onRecord) {
                if (step === 0) for (const name of ['step_sample', 'model_output']) onRecord(`${name}.0`, recorded[name]!);
                if (step === 0) onRecord('unet_input', recorded.unet_input!);
                onRecord(`latents.${step}`, recorded.latents!);
                if (masked) onRecord(`after_step.${step}`, preview.sample);
              }
              onPreview?.(preview);
            },
          }),
        });
        return await sampler.read();
      } finally {
        sampler.destroy();
      }
    } finally {
      for (const values of held) values.destroy();
    }
  }

  /** Strength of ControlNet `net`: a number, or one for each step where it does not act in all of them. */
  private controlScale(o: StableDiffusionOptions, net: number, step: StepContext, { count, taken }: { readonly count: number; readonly taken: number }): Tensor | number {
    const of = (value: number | readonly number[] | undefined, fallback: number): number => (typeof value === 'number' ? value : (value?.[net] ?? fallback));
    const [strength, from, to] = [of(o.controlnet_conditioning_scale, 1), of(o.control_guidance_start, 0), of(o.control_guidance_end, 1)];
    if (from <= 0 && to >= 1) return strength;
    return reshape(step.perStep(`controlnet_scale.${net}`, Array.from({ length: taken }, (_, i) => [i / count < from || (i + 1) / count > to ? 0 : strength])), [1]);
  }

  private decoder: LatentDecoder | undefined;

  /** The autoencoder's decoder by itself. */
  get latentDecoder(): LatentDecoder {
    return (this.decoder ??= latentDecoderOf(this.vae));
  }

  /** Frees what is kept in GPU memory. */
  destroy(): void {
    for (const component of [...this.textEncoders.map(({ encoder }) => encoder), this.unet, this.vae, ...this.controlnets]) component.destroy();
  }
}

/** The guidance scale that `bruit.json` beside model_index.json may name: that of large models is too much for small ones. */
async function ownGuidance(folder: ModelFolder): Promise<number | undefined> {
  if (!(await folder.has('bruit.json'))) return undefined;
  const { guidance_scale: scale } = await readJson(folder, 'bruit.json');
  check(scale === undefined || (typeof scale === 'number' && Number.isFinite(scale)), 'config', () => `${folder.name}/bruit.json: "guidance_scale" must be a number`);
  return scale;
}

/** Stable Diffusion 1 and 2, and latent consistency models made of them. */
export class StableDiffusionPipeline extends StableDiffusionBase<StableDiffusionOptions> {
  private constructor(
    components: StableDiffusionComponents,
    private readonly text: PromptEncoder,
    defaults: StableDiffusionDefaults,
  ) {
    super(components, defaults);
  }

  /** Opens a folder. All configs are checked here, weights are read when they are used. */
  static async fromFolder(engine: Engine, folder: ModelFolder, options: StableDiffusionPipelineOptions = {}): Promise<StableDiffusionPipeline> {
    const kind = await pipelineClass(folder);
    if (!stableDiffusionClass.test(kind)) throw new BruitError('config', `${folder.name}: model_index.json names ${kind}, which is not a Stable Diffusion 1 or 2 pipeline`);
    const components = await openStableDiffusion(engine, folder, options);
    const { addition_embed_type: addition } = components.unet.config;
    // "text" pools the same text, so the pipeline has all that it needs.
    check(addition === null || addition === 'text', 'config', () => `${folder.name}/unet: addition_embed_type "${addition}" belongs to another family than Stable Diffusion 1 and 2`);
    const text = { encoder: await Component.open(engine, folder, clipTextEncoder(), options), tokenizer: await loadTokenizer(folder) };
    const consistency = kind.startsWith('LatentConsistencyModel');
    return new StableDiffusionPipeline(components, text, { guidance_scale: (await ownGuidance(folder)) ?? (consistency ? 8.5 : 7.5), num_inference_steps: consistency ? 4 : 50, strength: [0.8, 1] });
  }

  protected get textEncoders(): readonly PromptEncoder[] {
    return [this.text];
  }

  /** Token ids and states of the text encoder, prompt by prompt. */
  encodePrompt(prompts: readonly string[], options: PromptOptions & Pick<StableDiffusionOptions, 'cross_attention_kwargs'> = {}): Promise<EncodedPrompts> {
    return encodePrompts(this.text, prompts, { ...options, states: (out, skip) => out.skip(skip), loras: this.scaledLoras(options) });
  }

  protected async conditions(options: StableDiffusionOptions, { prompts, negative = prompts.map(() => ''), guided }: PromptBatch): Promise<TextConditions> {
    const { embeds, unskipped, shape } = await this.encodePrompt(guided ? [...negative, ...prompts] : prompts, options);
    const half = guided ? embeds.length / 2 : 0;
    return { embeds: joinRows(unskipped.subarray(0, half), embeds.subarray(half)), shape: [shape[1], shape[2]] };
  }
}

/** Classes of model_index.json that {@link StableDiffusionPipeline} runs. */
export const stableDiffusionClass = /^(StableDiffusion(Img2Img|Inpaint|ControlNet\w*)?|LatentConsistencyModel(Img2Img)?)Pipeline$/;

const listOf = <T extends object>(value: T | readonly T[] | undefined): readonly T[] => (value === undefined ? [] : Array.isArray(value) ? (value as readonly T[]) : [value as T]);

/** What a latent consistency model is told of the guidance scale w + 1: sinusoids of 1000·w [dim] (Luo et al. 2023), 0 at an odd end. */
function guidanceEmbedding(scale: number, dim: number): Float32Array {
  const frequencies = timestepFrequencies({ dim, freqShift: 1 });
  const out = new Float32Array(dim);
  const w = Math.fround(Math.fround(scale - 1) * 1000);
  frequencies.forEach((f, i) => {
    const angle = Math.fround(w * f);
    [out[i], out[frequencies.length + i]] = [Math.sin(angle), Math.cos(angle)];
  });
  return out;
}

/** What a trajectory is computed from. */
interface Trajectory {
  readonly program: SamplerProgram;
  /** Those of the program, and what `end` leaves out after them. */
  readonly stepCount: number;
  readonly config: SchedulerConfig;
  readonly guided: boolean;
  readonly skipped: number;
  readonly start: Start;
  /** Draws of the scheduler, where they are given. */
  readonly noise: Float32Array | undefined;
  readonly text: TextConditions;
  readonly latentShape: Shape;
  readonly guidanceScale: number;
}

/** The time step at a part of the schedule, as diffusers rounds it. */
const cutoff = ({ num_train_timesteps: total }: SchedulerConfig, part: number): number => roundHalfEven(total - part * total);

/** Evaluations that are left out where another model has done this part. */
function evaluationsBefore(config: SchedulerConfig, timesteps: readonly number[], start: number, perStep: number): number {
  const below = timesteps.filter((t) => t < cutoff(config, start)).length;
  // Not between the two evaluations of one of Heun's steps, of which the last has only one.
  const left = perStep === 2 && below % 2 === 0 ? below + 1 : below;
  check(below > 0 && left <= timesteps.length, 'input', () => `denoising_start ${start} leaves none of ${timesteps.length} steps`);
  return timesteps.length - left;
}

/** How many of a program's evaluations belong to the schedule up to `end`. */
function evaluationsUntil(config: SchedulerConfig, { steps }: SamplerProgram, end: number): number {
  const count = steps.filter(({ timestep }) => timestep >= cutoff(config, end)).length;
  check(count > 0, 'input', () => `denoising_end ${end} leaves none of ${steps.length} steps`);
  return count;
}

function joinDraws(generator: NormalSource, shape: Shape, draws: number): Float32Array {
  const out = new Float32Array(draws * numel(shape));
  for (let i = 0; i < draws; i++) out.set(generator.randn(shape), i * numel(shape));
  return out;
}

/** A clean sample at a level of noise. */
const noisy = (clean: Tensor, noise: Tensor, [signal, amount]: readonly [number, number]): Tensor => add(scale(clean, signal), scale(noise, amount));

/** What the mask keeps is the image's again, as noisy as the next step expects it; after the last step it is the image's own. */
function keepUnmasked(sample: Tensor, step: StepContext, shape: Shape, levels: readonly (readonly [number, number])[]): Tensor {
  const { graph } = sample;
  const after = levels.map((_, i) => levels[i + 1] ?? ([1, 0] as const));
  const factor = (name: string, part: 0 | 1): Tensor => reshape(step.perStep(name, after.map((level) => [level[part]])), [1]);
  const image = add(mul(graph.input('image_latents', shape), factor('image_signal', 0)), mul(step.noise, factor('image_noise', 1)));
  const mask = graph.input('mask', [shape[0]!, 1, ...shape.slice(2)]);
  return add(mul(sample, mask), mul(image, shift(scale(mask, -1), 1)));
}
