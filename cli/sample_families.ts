/** What `bruit sample` runs: a family of pipelines for each class that model_index.json may name. */
import type { Engine } from '../src/engine/device';
import { BruitError } from '../src/engine/errors';
import type { NormalSource } from '../src/engine/torch_rng';
import type { ModelFolder } from '../src/io/folder';
import type { TensorStore } from '../src/io/safetensors';
import type { ImageBatch } from '../src/io/png';
import { openTensorFile } from '../src/node/file_source';
import { readImages } from '../src/node/image_file';
import { openNamedModel } from './model';
import { DDPMPipeline, schedulerNames } from '../src/pipelines/ddpm';
import type { StorageReport } from '../src/model/weight_error';
import type { LoadingOptions } from '../src/pipelines/component';
import { IFPipeline, IFSuperResolutionPipeline, type PromptEmbeds } from '../src/pipelines/deepfloyd_if';
import { DiTPipeline } from '../src/pipelines/dit';
import { LDMPipeline } from '../src/pipelines/ldm';
import { linearPreview, pixelPreview, tinyPreview, type LatentDecoder, type PreviewDecoder } from '../src/pipelines/preview';
import { stageSeed, type LatentCall } from '../src/pipelines/stage';
import { stableDiffusionClass, StableDiffusionPipeline, type StableDiffusionOptions } from '../src/pipelines/stable_diffusion';
import { stableDiffusionXLClass, StableDiffusionXLPipeline, type StableDiffusionXLOptions } from '../src/pipelines/stable_diffusion_xl';
import { UnCLIPImageVariationPipeline, UnCLIPPipeline } from '../src/pipelines/unclip';
import type { SamplerPreview } from '../src/sampler/sample';
import { convertSchedulerConfig, type SchedulerConfig } from '../src/sampler/scheduler_config';
import type { OptionName, SampleOptions } from './sample_options';

/** Images `first` … `first + count − 1` of the job, computed at once. */
export interface Part {
  readonly first: number;
  readonly count: number;
  readonly seed: number;
  /** Number of image `first` for the random numbers. */
  readonly sampleOffset: number;
  readonly generator: NormalSource | undefined;
  readonly signal: AbortSignal;
  readonly onProgress: (done: number, total: number) => void;
  /** Images or tiles that the autoencoder has decoded. */
  readonly onDecode: (done: number, total: number) => void;
  readonly onPreview: ((preview: SamplerPreview) => void) | undefined;
}

export interface PartImages {
  readonly images: Float32Array;
  readonly shape: readonly [number, number, number, number];
  readonly labels?: Int32Array | undefined;
}

/** A pipeline with the options of the command line. */
export interface OpenFamily {
  /** Images of the job, where --n does not say. */
  readonly count: number;
  /** Images at once, where --batch does not say. */
  readonly batch: number;
  run(part: Part): Promise<PartImages>;
  /** Decoder of the previews. */
  preview(): Promise<PreviewDecoder>;
  /** How weights lie in GPU memory, where they stay there. */
  storage?(): readonly StorageReport[];
  destroy(): void | Promise<void>;
}

export interface Family {
  readonly classes: RegExp;
  /** Options beside the common ones. */
  readonly takes: readonly OptionName[];
  /** Contradictions and files are found before a device is asked for. */
  prepare(options: SampleOptions): Promise<(engine: Engine, folder: ModelFolder) => Promise<OpenFamily>>;
}

const given = <K extends string, T>(key: K, value: T | undefined): Partial<Record<K, T>> => (value === undefined ? {} : ({ [key]: value } as Record<K, T>));
const callOf = ({ seed, sampleOffset, generator, signal, onProgress, onDecode, onPreview }: Part): LatentCall => ({ seed, sampleOffset, signal, onProgress, onDecode, ...given('generator', generator), ...given('onPreview', onPreview) });
const scheduled = ({ scheduler }: SampleOptions, own: SchedulerConfig): Partial<Record<'scheduler', SchedulerConfig>> => (scheduler === undefined ? {} : { scheduler: convertSchedulerConfig(own, schedulerNames[scheduler]) });
const loadingOf = ({ keep, weights, vaeTiling = false }: SampleOptions): LoadingOptions => ({ keep: keep === true, weights, vaeTiling });
/** Entries of `list` for the images of a part; the list is repeated. */
const forPart = <T>(list: readonly T[], { first, count }: Part): T[] => Array.from({ length: count }, (_, i) => list[(first + i) % list.length]!);

function need<T>(value: readonly T[] | undefined, kind: string, option: string): readonly T[] {
  if (value === undefined || value.length === 0) throw new BruitError('input', `${kind} needs ${option}`);
  return value;
}

function sizeOf({ height, width }: SampleOptions): { size?: readonly [number, number] } {
  if ((height === undefined) !== (width === undefined)) throw new BruitError('input', `give --height and --width together, or neither`);
  return height === undefined ? {} : { size: [height, width!] };
}

/** One negative prompt for each prompt, if there are any. */
function negatives(prompts: readonly string[], negative: readonly string[] | undefined): readonly string[] | undefined {
  if (negative && negative.length !== 1 && negative.length !== prompts.length) throw new BruitError('input', `--negative-prompt was given ${negative.length} times for ${prompts.length} prompts: give one, or one for each`);
  return negative && prompts.map((_, i) => negative[i % negative.length]!);
}

const latentPreview = async (engine: Engine, decoder: LatentDecoder, { previewDecoder }: SampleOptions): Promise<PreviewDecoder> => (previewDecoder === undefined ? linearPreview(decoder) : tinyPreview(engine, openNamedModel(previewDecoder)));

const ddpm: Family = {
  classes: /^(DDPM|DDIM|PNDM|ScoreSdeVe)Pipeline$/,
  takes: ['component', 'labels', 'numInferenceSteps', 'scheduler', 'eta', 'guidanceScale', 'height', 'width'],
  prepare: async (o) => {
    const size = sizeOf(o);
    return async (engine, folder) => {
      const pipeline = await DDPMPipeline.fromFolder(engine, folder, { component: o.component ?? 'unet', weights: o.weights });
      const labels = o.labels;
      return {
        count: labels?.length ?? 1,
        batch: 32,
        preview: async () => pixelPreview,
        storage: () => pipeline.weights.storageReport(),
        destroy: () => pipeline.destroy(),
        async run(part) {
          const { seed, sampleOffset, generator, signal, onProgress, onPreview } = part;
          return pipeline.generate({
            count: part.count,
            batchSize: part.count,
            ...(labels && { labels: forPart(labels, part) }),
            ...given('steps', o.numInferenceSteps),
            ...given('scheduler', o.scheduler),
            ...(o.eta !== undefined && { schedulerOptions: { eta: o.eta } }),
            ...given('guidanceScale', o.guidanceScale),
            ...size,
            seed,
            sampleOffset,
            signal,
            onProgress,
            ...given('onPreview', onPreview),
            ...given('generator', generator),
          });
        },
      };
    };
  },
};

const ldm: Family = {
  classes: /^LDMPipeline$/,
  takes: ['numInferenceSteps', 'scheduler', 'eta', 'height', 'width', 'previewDecoder'],
  prepare: async (o) => {
    const size = sizeOf(o);
    return async (engine, folder) => {
      const pipeline = await LDMPipeline.fromFolder(engine, folder, loadingOf(o));
      return {
        count: 1,
        batch: 8,
        preview: () => latentPreview(engine, pipeline.latentDecoder, o),
        destroy: () => undefined,
        run: (part) =>
          pipeline.generate({
            ...callOf(part),
            batch_size: part.count,
            ...given('num_inference_steps', o.numInferenceSteps),
            ...scheduled(o, pipeline.scheduler),
            ...(o.eta !== undefined && { schedulerOptions: { eta: o.eta } }),
            ...size,
          }),
      };
    };
  },
};

const dit: Family = {
  classes: /^DiTPipeline$/,
  takes: ['labels', 'numInferenceSteps', 'scheduler', 'eta', 'guidanceScale', 'previewDecoder', 'vaeTiling'],
  prepare: async (o) => {
    const labels = need(o.labels, 'DiTPipeline', '--labels');
    return async (engine, folder) => {
      const pipeline = await DiTPipeline.fromFolder(engine, folder, loadingOf(o));
      return {
        count: labels.length,
        batch: 4,
        preview: () => latentPreview(engine, pipeline.latentDecoder, o),
        destroy: () => undefined,
        async run(part) {
          const class_labels = forPart(labels, part);
          const result = await pipeline.generate({
            ...callOf(part),
            class_labels,
            ...given('num_inference_steps', o.numInferenceSteps),
            ...given('guidance_scale', o.guidanceScale),
            ...scheduled(o, pipeline.scheduler),
            ...(o.eta !== undefined && { schedulerOptions: { eta: o.eta } }),
          });
          return { ...result, labels: Int32Array.from(class_labels) };
        },
      };
    };
  },
};

const stableDiffusionOptions: readonly OptionName[] = ['keep', 'vaeTiling', 'previewDecoder', 'numInferenceSteps', 'scheduler', 'guidanceScale', 'guidanceRescale', 'eta', 'height', 'width', 'prompt', 'negativePrompt', 'promptWeighting', 'longPrompts', 'clipSkip', 'image', 'maskImage', 'strength', 'outputType', 'controlnet', 'controlImage', 'controlnetConditioningScale', 'controlGuidanceStart', 'controlGuidanceEnd', 'guessMode', 'lora', 'originalInferenceSteps'];

/** What the files of a call hold: images are resized to the size asked for, or to the first one's. */
interface Pictures {
  readonly image?: ImageBatch;
  readonly mask_image?: ImageBatch;
  readonly control_image?: readonly ImageBatch[];
}

async function picturesOf(o: SampleOptions): Promise<Pictures> {
  const { image, maskImage, controlImage } = o;
  if (maskImage && !image) throw new BruitError('input', '--mask needs the --image that it belongs to');
  if (maskImage && maskImage.length !== 1 && maskImage.length !== image!.length) throw new BruitError('input', `--mask was given ${maskImage.length} times for ${image!.length} images: give one, or one for each`);
  if (o.strength !== undefined && !image) throw new BruitError('input', '--strength needs an --image');
  if (controlImage?.length !== o.controlnet?.length && o.controlnet) throw new BruitError('input', `--control-image was given ${controlImage?.length ?? 0} times for ${o.controlnet.length} times --controlnet: give one for each`);
  for (const [name, values] of [['--controlnet-conditioning-scale', o.controlnetConditioningScale], ['--control-guidance-start', o.controlGuidanceStart], ['--control-guidance-end', o.controlGuidanceEnd]] as const) {
    if (values && !controlImage) throw new BruitError('input', `${name} needs a --control-image`);
    if (values && values.length > 1 && values.length !== controlImage!.length) throw new BruitError('input', `${name} was given ${values.length} times for ${controlImage!.length} control images: give one, or one for each`);
  }
  if (o.guessMode && !controlImage) throw new BruitError('input', '--guess-mode needs a --control-image');
  const first = image ?? controlImage;
  if (!first) return {};
  let size = sizeOf(o).size;
  if (image?.some((file) => file.endsWith('.safetensors'))) {
    if (image.length > 1 || maskImage || controlImage) throw new BruitError('input', `--image ${image.join(', ')}: latents are given as one file, without --mask and --control-image`);
    return { image: await readLatents(image[0]!) };
  }
  if (!size) {
    // As diffusers does, but that the autoencoder's factor is not known yet: eight is everybody's.
    const { shape } = await readImages(first.slice(0, 1));
    size = [Math.floor(shape[2] / 8) * 8, Math.floor(shape[3] / 8) * 8];
    if (size.some((side) => side < 8)) throw new BruitError('input', `${first[0]!} is ${shape[3]}x${shape[2]}: too small; give --height and --width`);
  }
  return {
    ...(image && { image: await readImages(image, { size }) }),
    ...(maskImage && { mask_image: await readImages(maskImage, { size, channels: 1 }) }),
    ...(controlImage && { control_image: await Promise.all(controlImage.map((file) => readImages([file], { size }))) }),
  };
}

/** What `--output-type latent` wrote. */
async function readLatents(file: string): Promise<ImageBatch> {
  const store = await openTensorFile(file);
  try {
    const shape = store.tensors.get('latents')?.shape;
    if (shape?.length !== 4) throw new BruitError('input', `--image ${file} has no tensor "latents" [N,C,h,w], as --output-type latent writes it`);
    return { data: await store.readF32('latents'), shape: shape as ImageBatch['shape'] };
  } finally {
    await store.close();
  }
}

/** `FILE`, or `FILE:0.8`. */
function loraOf(text: string): { file: string; scale: number } {
  const match = /^(.+):(-?\d+(?:\.\d+)?)$/.exec(text);
  return match ? { file: match[1]!, scale: Number(match[2]) } : { file: text, scale: 1 };
}

/** Images of a part out of those of the job, which are repeated. */
function slicePart(batch: ImageBatch | undefined, part: Part): ImageBatch | undefined {
  if (!batch) return undefined;
  const [n, ...rest] = batch.shape;
  const each = batch.data.length / n;
  const data = new Float32Array(part.count * each);
  for (let i = 0; i < part.count; i++) data.set(batch.data.subarray(((part.first + i) % n) * each, (((part.first + i) % n) + 1) * each), i * each);
  return { data, shape: [part.count, ...rest] };
}

const one = <T>(values: readonly T[] | undefined): T | readonly T[] | undefined => (values?.length === 1 ? values[0] : values);

/** Stable Diffusion of either kind; `extra` are the arguments that only one has. */
function stableDiffusion(kind: typeof StableDiffusionPipeline | typeof StableDiffusionXLPipeline, classes: RegExp, takes: readonly OptionName[], extra: (o: SampleOptions, part: Part) => object): Family {
  type Call = StableDiffusionOptions & Partial<Pick<StableDiffusionXLOptions, 'denoising_start' | 'denoising_end' | 'aesthetic_score' | 'negative_aesthetic_score'>>;
  return {
    classes,
    takes,
    prepare: async (o) => {
      const prompts = need(o.prompt, 'this pipeline', '--prompt');
      const negative = negatives(prompts, o.negativePrompt);
      const pictures = await picturesOf(o);
      const loras = (o.lora ?? []).map(loraOf);
      for (const { file } of loras) await (await openTensorFile(file)).close();
      sizeOf(o);
      if (o.denoisingStart !== undefined && !o.image) throw new BruitError('input', '--denoising-start needs an --image');
      if (o.outputType && !o.out.endsWith('.safetensors')) throw new BruitError('input', `--output-type ${o.outputType} needs an --out that ends in .safetensors`);
      return async (engine, folder) => {
        const stores: TensorStore[] = [];
        const close = async (): Promise<void> => {
          for (const store of stores) await store.close();
        };
        const pipeline = await kind.fromFolder(engine, folder, { ...loadingOf(o), ...(o.controlnet && { controlnets: o.controlnet.map((name) => openNamedModel(name)) }) });
        let refiner: StableDiffusionXLPipeline | undefined;
        try {
          if (o.refiner !== undefined) refiner = await StableDiffusionXLPipeline.fromFolder(engine, openNamedModel(o.refiner), loadingOf(o));
          for (const { file, scale } of loras) {
            stores.push(await openTensorFile(file));
            pipeline.loadLoraWeights(stores[stores.length - 1]!, scale);
          }
        } catch (error) {
          pipeline.destroy();
          refiner?.destroy();
          await close();
          throw error;
        }
        // With a refiner, the first model stops early; scores are the refiner's.
        const baseOnly = { denoising_end: o.denoisingEnd ?? 0.8, aesthetic_score: undefined, negative_aesthetic_score: undefined };
        return {
          count: Math.max(prompts.length, pictures.image?.shape[0] ?? 1),
          batch: 1,
          preview: () => latentPreview(engine, pipeline.latentDecoder, o),
          async destroy() {
            pipeline.destroy();
            refiner?.destroy();
            await close();
          },
          async run(part) {
            const call: Call = {
              ...callOf(part),
              prompt: forPart(prompts, part),
              ...(negative && { negative_prompt: forPart(negative, part) }),
              height: o.height,
              width: o.width,
              num_inference_steps: o.numInferenceSteps,
              guidance_scale: o.guidanceScale,
              guidance_rescale: o.guidanceRescale,
              eta: o.eta,
              clip_skip: o.clipSkip,
              promptWeighting: o.promptWeighting,
              longPrompts: o.longPrompts,
              strength: o.strength,
              output_type: o.outputType,
              image: slicePart(pictures.image, part),
              mask_image: slicePart(pictures.mask_image, part),
              control_image: pictures.control_image,
              controlnet_conditioning_scale: one(o.controlnetConditioningScale),
              control_guidance_start: one(o.controlGuidanceStart),
              control_guidance_end: one(o.controlGuidanceEnd),
              guess_mode: o.guessMode,
              original_inference_steps: o.originalInferenceSteps,
              ...scheduled(o, pipeline.scheduler),
              ...extra(o, part),
            };
            let result = await pipeline.generate(refiner ? { ...call, ...baseOnly, output_type: 'latent' } : call);
            if (refiner) {
              const { mask_image: _, control_image: __, strength: ___, height: ____, width: _____, clip_skip: ______, ...rest } = call;
              result = await refiner.generate({ ...rest, seed: stageSeed(part.seed, 0), image: result, denoising_start: baseOnly.denoising_end, denoising_end: undefined, ...scheduled(o, refiner.scheduler) });
            }
            const { data, shape } = result;
            return { images: data, shape: shape as PartImages['shape'] };
          },
        };
      };
    },
  };
}

const sd = stableDiffusion(StableDiffusionPipeline, stableDiffusionClass, stableDiffusionOptions, () => ({}));

const sdxl = stableDiffusion(
  StableDiffusionXLPipeline,
  stableDiffusionXLClass,
  [...stableDiffusionOptions, 'refiner', 'denoisingStart', 'denoisingEnd', 'prompt_2', 'negativePrompt_2', 'originalSize', 'cropsCoordsTopLeft', 'targetSize', 'negativeOriginalSize', 'negativeCropsCoordsTopLeft', 'negativeTargetSize', 'aestheticScore', 'negativeAestheticScore'],
  (o, part) => ({
    ...(o.prompt_2 && { prompt_2: forPart(o.prompt_2, part) }),
    ...(o.negativePrompt_2 && { negative_prompt_2: forPart(o.negativePrompt_2, part) }),
    denoising_start: o.denoisingStart,
    denoising_end: o.denoisingEnd,
    original_size: o.originalSize,
    crops_coords_top_left: o.cropsCoordsTopLeft,
    target_size: o.targetSize,
    negative_original_size: o.negativeOriginalSize,
    negative_crops_coords_top_left: o.negativeCropsCoordsTopLeft,
    negative_target_size: o.negativeTargetSize,
    aesthetic_score: o.aestheticScore,
    negative_aesthetic_score: o.negativeAestheticScore,
  }),
);

const deepfloydIF: Family = {
  classes: /^IFPipeline$/,
  takes: ['prompt', 'negativePrompt', 'numInferenceSteps', 'scheduler', 'guidanceScale', 'height', 'width', 'superResolution', 'noiseLevel', 'superResGuidanceScale', 'superResNumInferenceSteps'],
  prepare: async (o) => {
    const prompts = need(o.prompt, 'IFPipeline', '--prompt');
    const negative = negatives(prompts, o.negativePrompt) ?? prompts.map(() => '');
    const size = sizeOf(o);
    for (const [name, value] of [['--noise-level', o.noiseLevel], ['--super-res-guidance-scale', o.superResGuidanceScale], ['--super-res-num-inference-steps', o.superResNumInferenceSteps]] as const) {
      if (value !== undefined && !o.superResolution) throw new BruitError('input', `${name} needs a --super-resolution`);
    }
    return async (engine, folder) => {
      const first = await IFPipeline.fromFolder(engine, folder, loadingOf(o));
      const stages: IFSuperResolutionPipeline[] = [];
      for (const stage of o.superResolution ?? []) stages.push(await IFSuperResolutionPipeline.fromFolder(engine, openNamedModel(stage), loadingOf(o)));
      return {
        count: prompts.length,
        batch: 1,
        preview: async () => pixelPreview,
        destroy: () => undefined,
        async run(part) {
          const call = callOf(part);
          // T5 is the largest model of all: once for all stages.
          const embeds: { prompt_embeds: PromptEmbeds; negative_prompt_embeds: PromptEmbeds } = { prompt_embeds: await first.encodePrompt(forPart(prompts, part)), negative_prompt_embeds: await first.encodePrompt(forPart(negative, part)) };
          let result = await first.generate({ ...call, ...embeds, ...given('guidance_scale', o.guidanceScale), ...given('num_inference_steps', o.numInferenceSteps), ...scheduled(o, first.scheduler), ...size });
          for (const [i, stage] of stages.entries()) {
            result = await stage.generate({
              ...call,
              ...embeds,
              seed: stageSeed(part.seed, i),
              image: { data: result.samples, shape: result.shape },
              ...given('noise_level', o.noiseLevel),
              ...given('guidance_scale', o.superResGuidanceScale),
              ...given('num_inference_steps', o.superResNumInferenceSteps),
            });
          }
          return result;
        },
      };
    };
  },
};

const decoding = (o: SampleOptions) => ({
  ...given('decoder_guidance_scale', o.decoderGuidanceScale),
  ...given('decoder_num_inference_steps', o.decoderNumInferenceSteps),
  ...given('super_res_num_inference_steps', o.superResNumInferenceSteps),
});
const decodingOptions: readonly OptionName[] = ['decoderGuidanceScale', 'decoderNumInferenceSteps', 'superResNumInferenceSteps'];

const unclip: Family = {
  classes: /^UnCLIPPipeline$/,
  takes: ['prompt', 'priorGuidanceScale', 'priorNumInferenceSteps', ...decodingOptions],
  prepare: async (o) => {
    const prompts = need(o.prompt, 'UnCLIPPipeline', '--prompt');
    return async (engine, folder) => {
      const pipeline = await UnCLIPPipeline.fromFolder(engine, folder, loadingOf(o));
      return {
        count: prompts.length,
        batch: 1,
        preview: async () => pixelPreview,
        destroy: () => undefined,
        run: (part) => pipeline.generate({ ...callOf(part), prompt: forPart(prompts, part), ...given('prior_guidance_scale', o.priorGuidanceScale), ...given('prior_num_inference_steps', o.priorNumInferenceSteps), ...decoding(o) }),
      };
    };
  },
};

const unclipVariation: Family = {
  classes: /^UnCLIPImageVariationPipeline$/,
  takes: ['image', ...decodingOptions],
  prepare: async (o) => {
    const files = need(o.image, 'UnCLIPImageVariationPipeline', '--image');
    for (const file of files) await readImages([file]);
    return async (engine, folder) => {
      const pipeline = await UnCLIPImageVariationPipeline.fromFolder(engine, folder, loadingOf(o));
      return {
        count: files.length,
        batch: 1,
        preview: async () => pixelPreview,
        destroy: () => undefined,
        run: async (part) => pipeline.generate({ ...callOf(part), image: await readImages(forPart(files, part)), ...decoding(o) }),
      };
    };
  },
};

export const families: readonly Family[] = [ddpm, ldm, sd, sdxl, dit, deepfloydIF, unclip, unclipVariation];
