/**
 * DALL·E 2 (Ramesh et al. 2022) as Karlo has it: diffusers' UnCLIPPipeline (text, prior, image embedding, decoder, super-resolution) and
 * UnCLIPImageVariationPipeline (the embedding is that of an image). Pixels throughout; only the decoder and the prior are guided.
 */
import type { Engine } from '../engine/device';
import { BruitError, check } from '../engine/errors';
import type { Tensor } from '../engine/graph';
import { concat, slice, transpose } from '../engine/ops/copy';
import { interpolate } from '../engine/ops/interpolate';
import { add, clamp, mul } from '../engine/ops/pointwise';
import { reshape } from '../engine/ops/reshape';
import { numel, showShape, type Shape } from '../engine/shape';
import { isJsonObject } from '../io/json';
import { readJson, type ModelFolder } from '../io/folder';
import { clipText, clipVision, parseCLIPVisionConfig, type CLIPTextConfig, type CLIPVisionConfig } from '../model/clip';
import { parsePriorTransformerConfig, priorPostProcess, priorTransformer, priorTransformerInputs, type PriorTransformerConfig } from '../model/prior_transformer';
import { parseUnCLIPTextProjConfig, unclipTextProj, type UnCLIPTextProjConfig } from '../model/unclip_text_proj';
import { unet2d, type UNet2DConfig } from '../model/unet2d';
import { unet2dCondition, type UNet2DConditionConfig } from '../model/unet2d_condition';
import { createSampler, type SchedulerConfig } from '../sampler/scheduler_config';
import { loadTokenizer, type TokenBatch, type Tokenizer } from '../text/tokenizer';
import { checkPipelineClass, Component, openScheduler, runOnce, type ComponentOptions, type LoadingOptions } from './component';
import { clipTextEncoder, conditionUNet, pixelUNet } from './declarations';
import { guided, Progress, runStage, toImages, type PipelineCall, type PipelineImages } from './stage';

interface DecodingCall extends PipelineCall {
  /** 8 by default; at most 1 for no guidance. */
  readonly decoder_guidance_scale?: number;
  /** 25 by default. */
  readonly decoder_num_inference_steps?: number;
  /** 7 by default. */
  readonly super_res_num_inference_steps?: number;
  /** In place of the folder's. */
  readonly schedulers?: { readonly prior?: SchedulerConfig; readonly decoder?: SchedulerConfig; readonly super_res?: SchedulerConfig };
}

export interface UnCLIPCall extends DecodingCall {
  /** One text for each image. */
  readonly prompt: readonly string[];
  /** 4 by default. */
  readonly prior_guidance_scale?: number;
  /** 25 by default. */
  readonly prior_num_inference_steps?: number;
}

export interface UnCLIPImageVariationCall extends DecodingCall {
  /** [N, 3, h, w] in [0, 1]; or their embeddings [N, D] of CLIP. */
  readonly image?: { readonly shape: Shape; readonly data: Float32Array };
  readonly image_embeddings?: Float32Array;
  /** Variations of each image; 1 by default. */
  readonly num_images_per_prompt?: number;
}

/** What a text encoder says of texts. */
interface EncodedText extends TokenBatch {
  /** Pooled and projected, [N, projection_dim]. */
  readonly embeds: Float32Array;
  /** [N, T, hidden_size]. */
  readonly states: Float32Array;
}

/** Both halves of a guided batch, or one. */
interface TextBatch {
  readonly n: number;
  readonly tokens: number;
  readonly embeds: Float32Array;
  readonly states: Float32Array;
  readonly mask: Float32Array;
}

const join = (a: ArrayLike<number>, b: ArrayLike<number>): Float32Array => {
  const out = new Float32Array(a.length + b.length);
  out.set(a);
  out.set(b, a.length);
  return out;
};

const textBatch = (positive: EncodedText, negative: EncodedText | undefined): TextBatch => {
  const [n, tokens] = positive.shape;
  const mask = Float32Array.from(positive.attentionMask);
  if (!negative) return { n, tokens, embeds: positive.embeds, states: positive.states, mask };
  return { n: 2 * n, tokens, embeds: join(negative.embeds, positive.embeds), states: join(negative.states, positive.states), mask: join(negative.attentionMask, mask) };
};

interface Components {
  readonly textEncoder: Component<CLIPTextConfig>;
  readonly tokenizer: Tokenizer;
  readonly textProj: Component<UnCLIPTextProjConfig>;
  readonly decoder: Component<UNet2DConditionConfig>;
  readonly superResFirst: Component<UNet2DConfig>;
  readonly superResLast: Component<UNet2DConfig>;
  readonly decoderScheduler: SchedulerConfig;
  readonly superResScheduler: SchedulerConfig;
}

const textProjection: ComponentOptions<UnCLIPTextProjConfig> = {
  name: 'text_proj',
  weights: 'diffusion_pytorch_model',
  parse: parseUnCLIPTextProjConfig,
  declare(ctx, config) {
    const { clip_embeddings_dim: width } = config;
    const leaf = (name: string, shape: number[]): Tensor => ctx.graph.input(name, shape);
    // A guided batch, which alone reads the learned embedding.
    unclipTextProj(ctx, config, { imageEmbeds: leaf('image_embeds', [1, width]), promptEmbeds: leaf('prompt_embeds', [2, width]), textEncoderHiddenStates: leaf('states', [2, 1, width]) });
  },
};

async function openComponents(engine: Engine, folder: ModelFolder, pipeline: string, loading: LoadingOptions): Promise<Components> {
  await checkPipelineClass(folder, pipeline);
  const components = {
    textEncoder: await Component.open(engine, folder, clipTextEncoder({ projection: true }), loading),
    tokenizer: await loadTokenizer(folder),
    textProj: await Component.open(engine, folder, textProjection, loading),
    decoder: await Component.open(engine, folder, conditionUNet('decoder'), loading),
    superResFirst: await Component.open(engine, folder, pixelUNet('super_res_first'), loading),
    superResLast: await Component.open(engine, folder, pixelUNet('super_res_last'), loading),
    decoderScheduler: await openScheduler(folder, 'decoder_scheduler'),
    superResScheduler: await openScheduler(folder, 'super_res_scheduler'),
  };
  check(components.decoder.config.class_embed_type === 'identity', 'config', () => `${folder.name}/decoder/config.json: class_embed_type must be "identity": text_proj makes what is added to the time embedding`);
  return components;
}

/** What both pipelines do once there is an image embedding. */
abstract class UnCLIPBase {
  protected constructor(
    readonly engine: Engine,
    readonly name: string,
    protected readonly components: Components,
  ) {}

  /** Ids, mask, pooled projection and states of texts. Padding is not masked in the encoder. */
  async encodePrompt(prompts: readonly string[]): Promise<EncodedText> {
    const { textEncoder: encoder, tokenizer } = this.components;
    const batch = tokenizer.batch(prompts, Math.min(tokenizer.modelMaxLength, encoder.config.max_position_embeddings));
    const { embeds, states } = await encoder.run((ctx, inputs) => {
      const { textEmbeds, lastHiddenState } = clipText(ctx, encoder.config, { inputIds: inputs.add('input_ids', batch.shape, batch.inputIds) }, { projection: true });
      return { embeds: textEmbeds!, states: lastHiddenState };
    });
    return { ...batch, embeds, states };
  }

  /** Texts, and those of empty prompts where something is guided. */
  protected async encodeBoth(prompts: readonly string[], anyGuided: boolean): Promise<{ positive: EncodedText; negative: EncodedText | undefined }> {
    return { positive: await this.encodePrompt(prompts), negative: anyGuided ? await this.encodePrompt(prompts.map(() => '')) : undefined };
  }

  /** Model evaluations from the embedding to the image. */
  protected decodingSteps({ decoder_num_inference_steps = 25, super_res_num_inference_steps = 7 }: DecodingCall): number {
    return decoder_num_inference_steps + super_res_num_inference_steps;
  }

  /** Decoder and super-resolution for `image_embeddings` [N, clip_embeddings_dim]. */
  protected async decode(call: DecodingCall, positive: EncodedText, negative: EncodedText | undefined, image_embeddings: Float32Array, progress: Progress): Promise<PipelineImages> {
    const { engine } = this;
    const { textProj, textEncoder, decoder, superResFirst, superResLast } = this.components;
    const { decoder_guidance_scale: guidanceScale = 8, decoder_num_inference_steps = 25, super_res_num_inference_steps = 7, onRecord } = call;
    const [n] = positive.shape;
    const text = textBatch(positive, guided(guidanceScale) ? negative : undefined);
    const { clip_embeddings_dim: width, clip_extra_context_tokens: extra, cross_attention_dim: cross, time_embed_dim: time } = textProj.config;

    const { additive, states } = await textProj.run((ctx, inputs) => {
      const out = unclipTextProj(ctx, textProj.config, {
        imageEmbeds: inputs.add('image_embeds', [n, width], image_embeddings),
        promptEmbeds: inputs.add('prompt_embeds', [text.n, width], text.embeds),
        textEncoderHiddenStates: inputs.add('text_encoder_hidden_states', [text.n, text.tokens, textEncoder.config.hidden_size], text.states),
      });
      // Without guidance the learned embedding is part of the checkpoint, too.
      return { additive: out.additiveClipTimeEmbeddings, states: out.encoderHiddenStates };
    });
    onRecord?.('text_proj.additive_clip_time_embeddings', additive);
    onRecord?.('text_proj.encoder_hidden_states', states);

    const { config } = decoder;
    const [height, width0] = this.sizeOf(decoder);
    const tokens = extra + text.tokens;
    // The image's tokens are always there.
    const mask = new Float32Array(text.n * tokens).fill(1);
    for (let i = 0; i < text.n; i++) mask.set(text.mask.subarray(i * text.tokens, (i + 1) * text.tokens), i * tokens + extra);
    const smallShape = [n, config.in_channels, height, width0] as const;
    const small = await decoder.use((weights) =>
      runStage({
        engine,
        call,
        prefix: 'decoder.',
        index: 1,
        program: createSampler(call.schedulers?.decoder ?? this.components.decoderScheduler, { numInferenceSteps: decoder_num_inference_steps }),
        shape: smallShape,
        guidanceScale,
        weights,
        progress,
        model: (ctx, sample, timestep, inputs) =>
          unet2dCondition(ctx, config, {
            sample,
            timestep,
            encoderHiddenStates: inputs.add('encoder_hidden_states', [text.n, tokens, cross], states),
            classLabels: inputs.add('class_labels', [text.n, time], additive),
            attentionMask: inputs.add('attention_mask', [text.n, tokens], mask),
          }),
      }),
    );

    const { config: sr } = superResFirst;
    check(sr.in_channels === 2 * config.in_channels && superResLast.config.in_channels === sr.in_channels, 'config', () => `${this.name}: the super-resolution models take ${sr.in_channels} and ${superResLast.config.in_channels} channels, not the ${2 * config.in_channels} of a sample and the enlarged image`);
    const size = this.sizeOf(superResFirst);
    const shape = [n, config.in_channels, ...size] as const;
    const { upscaled } = await runOnce(engine, undefined, (_, inputs) => {
      const image = clamp(inputs.add('image', smallShape, small), -1, 1);
      return { upscaled: transpose(interpolate(transpose(image, [0, 2, 3, 1]), size, { mode: 'bicubic', antialias: true }), [0, 3, 1, 2]) };
    });
    onRecord?.('super_res_upscaled', upscaled);
    const samples = await this.superResolve(call, createSampler(call.schedulers?.super_res ?? this.components.superResScheduler, { numInferenceSteps: super_res_num_inference_steps }), shape, upscaled, progress);
    const images = toImages(samples);
    onRecord?.('image', images);
    return { images, samples, shape: [...shape] };
  }

  /** All steps but the last by super_res_first, the last by super_res_last. */
  private async superResolve(call: DecodingCall, program: ReturnType<typeof createSampler>, shape: PipelineImages['shape'], upscaled: Float32Array, progress: Progress): Promise<Float32Array> {
    const { superResFirst, superResLast } = this.components;
    const last = program.steps.length - 1;
    check(last >= 1 && program.slots === 0 && program.steps[last]!.noiseIndex < 0, 'config', () => `${this.name}: ${program.className} cannot change models before its last step: it needs two steps, no history, and a last step without noise`);
    let drawn = call.generator?.randn(shape);
    for (const [component, from, to] of [[superResFirst, 0, last], [superResLast, last, last + 1]] as const) {
      const { config } = component;
      const part = { ...program, steps: program.steps.slice(from, to), noiseDraws: from === 0 ? program.noiseDraws : 0, ...(from > 0 && { initNoiseSigma: 1 }) };
      // Steps are numbered through; what the last model's first step is given is no start.
      const onRecord = call.onRecord && ((name: string, value: Float32Array): void => {
        const step = /^super_res\.latents\.(\d+)$/.exec(name)?.[1];
        if (step !== undefined) call.onRecord!(`super_res.latents.${Number(step) + from}`, value);
        else if (from === 0) call.onRecord!(name, value);
      });
      drawn = await component.use((weights) =>
        runStage({
          engine: this.engine,
          call: { ...call, ...(onRecord && { onRecord }) },
          prefix: 'super_res.',
          index: 2,
          program: part,
          shape,
          ...(drawn && { latents: drawn }),
          weights,
          progress,
          model: (ctx, x, timestep, inputs) => unet2d(ctx, config, { sample: concat([x, inputs.add('image', shape, upscaled)], 1), timestep }),
        }),
      );
    }
    return drawn!;
  }

  private sizeOf({ config, name }: Pick<Component<UNet2DConfig | UNet2DConditionConfig>, 'config' | 'name'>): readonly [number, number] {
    check(config.sample_size, 'config', () => `${this.name}: ${name}/config.json has no sample_size`);
    return config.sample_size;
  }
}

/** Text to image: the prior turns the text's embedding into an image's, the decoder that into a small image, super-resolution into the result. */
export class UnCLIPPipeline extends UnCLIPBase {
  private constructor(
    engine: Engine,
    components: Components,
    readonly prior: Component<PriorTransformerConfig>,
    readonly priorScheduler: SchedulerConfig,
  ) {
    super(engine, 'UnCLIPPipeline', components);
  }

  /** Reads the folder's configs; weights are loaded by calls, one component after another. */
  static async fromFolder(engine: Engine, folder: ModelFolder, loading: LoadingOptions = {}): Promise<UnCLIPPipeline> {
    const components = await openComponents(engine, folder, 'UnCLIPPipeline', loading);
    return new UnCLIPPipeline(engine, components, await Component.open(engine, folder, { name: 'prior', weights: 'diffusion_pytorch_model', parse: parsePriorTransformerConfig, declare: (ctx, config) => void priorTransformer(ctx, config, priorTransformerInputs(ctx, config, 1)) }, loading), await openScheduler(folder, 'prior_scheduler'));
  }

  async generate(call: UnCLIPCall): Promise<PipelineImages> {
    const { prompt, prior_guidance_scale = 4, decoder_guidance_scale = 8, prior_num_inference_steps = 25 } = call;
    check(prompt.length >= 1, 'input', () => 'UnCLIPPipeline: prompt is empty; give a text for each image');
    const progress = new Progress(prior_num_inference_steps + this.decodingSteps(call), call.onProgress);
    const { positive, negative } = await this.encodeBoth(prompt, guided(prior_guidance_scale) || guided(decoder_guidance_scale));
    const text = textBatch(positive, guided(prior_guidance_scale) ? negative : undefined);
    const { config } = this.prior;
    const n = prompt.length;
    const image = await this.prior.use(async (weights) => {
      // What the prior predicts is no image.
      const { onPreview: _, ...own } = call;
      const latents = await runStage({
        engine: this.engine,
        call: own,
        prefix: 'prior.',
        program: createSampler(call.schedulers?.prior ?? this.priorScheduler, { numInferenceSteps: prior_num_inference_steps }),
        shape: [n, config.embedding_dim, 1, 1],
        guidanceScale: prior_guidance_scale,
        weights,
        progress,
        model: (ctx, x, timestep, inputs) => {
          const embedding = priorTransformer(ctx, config, {
            hiddenStates: reshape(x, [text.n, config.embedding_dim]),
            timestep,
            projEmbedding: inputs.add('proj_embedding', [text.n, config.embedding_proj_dim], text.embeds),
            encoderHiddenStates: inputs.add('encoder_hidden_states', [text.n, text.tokens, this.components.textEncoder.config.hidden_size], text.states),
            attentionMask: inputs.add('attention_mask', [text.n, text.tokens], text.mask),
          });
          return reshape(embedding, [text.n, config.clip_embed_dim, 1, 1]);
        },
      });
      return (await runOnce(this.engine, weights, (ctx, inputs) => ({ embeds: priorPostProcess(ctx, config, inputs.add('latents', [n, config.clip_embed_dim], latents)) }))).embeds;
    });
    return this.decode(call, positive, negative, image, progress);
  }
}

/** Other images with the same CLIP embedding as an image. */
export class UnCLIPImageVariationPipeline extends UnCLIPBase {
  private constructor(
    engine: Engine,
    components: Components,
    readonly imageEncoder: Component<CLIPVisionConfig>,
    private readonly statistics: { readonly mean: readonly number[]; readonly std: readonly number[] },
  ) {
    super(engine, 'UnCLIPImageVariationPipeline', components);
  }

  static async fromFolder(engine: Engine, folder: ModelFolder, loading: LoadingOptions = {}): Promise<UnCLIPImageVariationPipeline> {
    const components = await openComponents(engine, folder, 'UnCLIPImageVariationPipeline', loading);
    const encoder = await Component.open(engine, folder, {
      name: 'image_encoder',
      weights: 'model',
      parse: parseCLIPVisionConfig,
      declare: (ctx, config) => void clipVision(ctx, config, ctx.graph.input('pixels', [1, config.num_channels, config.image_size, config.image_size]), { projection: true }),
    }, loading);
    return new UnCLIPImageVariationPipeline(engine, components, encoder, await imageStatistics(folder));
  }

  /**
   * CLIP's embedding of images [N, 3, h, w] in [0, 1] → [N, projection_dim]: the shorter edge is resized to the encoder's size (bicubic, antialias), the
   * middle cut out, and the channels normalised.
   */
  async encodeImage({ shape, data }: { readonly shape: Shape; readonly data: Float32Array }): Promise<Float32Array> {
    const { imageEncoder: encoder, statistics } = this;
    const { image_size: size, num_channels: channels } = encoder.config;
    const [n, c, h, w] = shape;
    check(shape.length === 4 && c === channels && data.length === numel(shape), 'input', () => `${this.name}: image ${showShape(shape)} must be [N, ${channels}, h, w]`);
    const short = Math.min(h!, w!);
    const [height, width] = [Math.floor((h! * size) / short), Math.floor((w! * size) / short)];
    const { embeds } = await encoder.run((ctx, inputs) => {
      const resized = clamp(interpolate(transpose(inputs.add('image', shape, data), [0, 2, 3, 1]), [height, width], { mode: 'bicubic', antialias: true }), 0, 1);
      const cut = slice(slice(resized, 1, Math.floor((height - size) / 2), size), 2, Math.floor((width - size) / 2), size);
      const constant = (name: string, values: readonly number[]): Tensor => ctx.graph.constant(name, [1, 1, 1, channels], Float32Array.from(values));
      const pixels = mul(add(cut, constant('mean', statistics.mean.map((m) => -m))), constant('std', statistics.std.map((s) => 1 / s)));
      return { embeds: clipVision(ctx, encoder.config, transpose(pixels, [0, 3, 1, 2]), { projection: true }).imageEmbeds! };
    });
    check(embeds.length === n! * encoder.config.projection_dim, 'shape', () => `${this.name}: ${embeds.length} numbers are no embeddings of ${n} images`);
    return embeds;
  }

  async generate(call: UnCLIPImageVariationCall): Promise<PipelineImages> {
    const { image, image_embeddings, num_images_per_prompt = 1, decoder_guidance_scale = 8 } = call;
    check((image === undefined) !== (image_embeddings === undefined), 'input', () => `${this.name}: give either image or image_embeddings`);
    const width = this.components.textProj.config.clip_embeddings_dim;
    const embeds = image_embeddings ?? (await this.encodeImage(image!));
    const images = embeds.length / width;
    check(Number.isInteger(images) && images >= 1, 'input', () => `${this.name}: ${embeds.length} numbers are no embeddings of ${width}, clip_embeddings_dim of text_proj's config`);
    check(Number.isInteger(num_images_per_prompt) && num_images_per_prompt >= 1, 'input', () => `${this.name}: num_images_per_prompt ${num_images_per_prompt} must be a whole number of at least 1`);
    const all = new Float32Array(embeds.length * num_images_per_prompt);
    for (let i = 0; i < images * num_images_per_prompt; i++) all.set(embeds.subarray(Math.floor(i / num_images_per_prompt) * width, (Math.floor(i / num_images_per_prompt) + 1) * width), i * width);
    const progress = new Progress(this.decodingSteps(call), call.onProgress);
    const { positive, negative } = await this.encodeBoth(Array.from({ length: images * num_images_per_prompt }, () => ''), guided(decoder_guidance_scale));
    return this.decode(call, positive, negative, all, progress);
  }
}

/** Mean and standard deviation by which CLIP's images are normalised: feature_extractor/preprocessor_config.json, OpenAI's without one. */
async function imageStatistics(folder: ModelFolder): Promise<{ mean: number[]; std: number[] }> {
  const file = 'feature_extractor/preprocessor_config.json';
  const json: unknown = (await folder.has(file)) ? await readJson(folder, file) : {};
  const list = (key: string, fallback: number[]): number[] => {
    const value = isJsonObject(json) ? (json[key] ?? fallback) : fallback;
    if (Array.isArray(value) && value.every((v) => typeof v === 'number')) return value;
    throw new BruitError('config', `${folder.name}/${file}: "${key}" must be a list of numbers, one for each channel`);
  };
  return { mean: list('image_mean', [0.48145466, 0.4578275, 0.40821073]), std: list('image_std', [0.26862954, 0.26130258, 0.27577711]) };
}
