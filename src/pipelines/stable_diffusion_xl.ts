/**
 * SDXL (Podell et al. 2023) from a folder in diffusers' layout: two text encoders whose states stand side by side, the second one's pooled text, and the sizes
 * that images of the training data had. Text to image and image to image; the refiner, which has the second encoder only and may be told an
 * aesthetic score. Everything else is Stable Diffusion's.
 */
import type { Engine } from '../engine/device';
import { BruitError, check } from '../engine/errors';
import { readJson, type ModelFolder } from '../io/folder';
import { loadTokenizer } from '../text/tokenizer';
import { Component, pipelineClass } from './component';
import { clipTextEncoder } from './declarations';
import { encodePrompts, joinRows, type EncodedPrompts, type PromptEncoder } from './encode_prompts';
import { list, openStableDiffusion, StableDiffusionBase, type DenoisingPart, type PromptBatch, type StableDiffusionComponents, type StableDiffusionOptions, type StableDiffusionPipelineOptions, type TextConditions } from './stable_diffusion';

type Pair = readonly [number, number];

/** Arguments under diffusers' names. */
export interface StableDiffusionXLOptions extends StableDiffusionOptions {
  /** For the second encoder; `prompt` by default. */
  readonly prompt_2?: string | readonly string[] | undefined;
  readonly negative_prompt_2?: string | readonly string[] | undefined;
  /** More than 0 and less than 1: stop after this part of the schedule, for another model to go on (`output_type: 'latent'` keeps what is needed for that). */
  readonly denoising_end?: number | undefined;
  /** The same: begin there, with an `image` that another model's `denoising_end` left noisy. In place of `strength`. */
  readonly denoising_start?: number | undefined;
  /** [height, width] that the image is said to have had before it was scaled; its own size by default, as for `target_size`. */
  readonly original_size?: Pair | undefined;
  /** [top, left] of the cut that the image is said to be. */
  readonly crops_coords_top_left?: Pair | undefined;
  readonly target_size?: Pair | undefined;
  /** The same for what guidance leads away from; `original_size` and `target_size` only together in text to image. */
  readonly negative_original_size?: Pair | undefined;
  readonly negative_crops_coords_top_left?: Pair | undefined;
  readonly negative_target_size?: Pair | undefined;
  /** Of models with requires_aesthetics_score: 6 by default. */
  readonly aesthetic_score?: number | undefined;
  /** 2.5 by default. */
  readonly negative_aesthetic_score?: number | undefined;
}

/** Classes of model_index.json that {@link StableDiffusionXLPipeline} runs. */
export const stableDiffusionXLClass = /^StableDiffusionXL(Img2Img|Inpaint|ControlNet(Img2Img|Inpaint)?)?Pipeline$/;

export class StableDiffusionXLPipeline extends StableDiffusionBase<StableDiffusionXLOptions> {
  private constructor(
    components: StableDiffusionComponents,
    /** The second one last; the refiner has it only. */
    protected readonly textEncoders: readonly PromptEncoder[],
    /** Guide away from zeros where no negative prompt is given. */
    readonly forceZerosForEmptyPrompt: boolean,
    readonly requiresAestheticsScore: boolean,
  ) {
    super(components, { guidance_scale: 5, num_inference_steps: 50, strength: [0.3, 0.9999] });
  }

  /** Opens a folder. All configs are checked here, weights are read when they are used. */
  static async fromFolder(engine: Engine, folder: ModelFolder, options: StableDiffusionPipelineOptions = {}): Promise<StableDiffusionXLPipeline> {
    const kind = await pipelineClass(folder);
    if (!stableDiffusionXLClass.test(kind)) throw new BruitError('config', `${folder.name}: model_index.json names ${kind}, which is not an SDXL pipeline`);
    const index = await readJson(folder, 'model_index.json');
    const components = await openStableDiffusion(engine, folder, options);
    const { addition_embed_type: addition } = components.unet.config;
    check(addition === 'text_time', 'config', () => `${folder.name}/unet: addition_embed_type is ${JSON.stringify(addition)}; SDXL needs "text_time"`);
    const has = (name: string): boolean => Array.isArray(index[name]) && index[name][1] !== null;
    check(has('text_encoder_2'), 'config', () => `${folder.name}: model_index.json names no text_encoder_2, which makes SDXL's pooled text`);
    const open = async (suffix: '' | '_2'): Promise<PromptEncoder> => ({
      encoder: await Component.open(engine, folder, clipTextEncoder({ name: `text_encoder${suffix}`, projection: suffix === '_2' }), options),
      tokenizer: await loadTokenizer(folder, `tokenizer${suffix}`),
    });
    const encoders = [...(has('text_encoder') ? [await open('')] : []), await open('_2')];
    const zeros = index.force_zeros_for_empty_prompt;
    return new StableDiffusionXLPipeline(components, encoders, typeof zeros === 'boolean' ? zeros : true, index.requires_aesthetics_score === true);
  }

  /** States of both encoders and the second one's pooled text, for texts that both or each read. Pooled: [N, projection_dim]. */
  async encodePrompt(prompts: readonly string[], prompts2: readonly string[], options: StableDiffusionXLOptions): Promise<{ readonly states: readonly EncodedPrompts[]; readonly pooled: Float32Array }> {
    const states: EncodedPrompts[] = [];
    const last = this.textEncoders.length - 1;
    for (const [i, text] of this.textEncoders.entries()) {
      states.push(
        await encodePrompts(text, i === last ? prompts2 : prompts, {
          ...options,
          // One layer before the last to begin with, without the final norm.
          states: ({ hiddenStates }, skip) => {
            const layer = hiddenStates[hiddenStates.length - 2 - skip];
            if (!layer) throw new BruitError('input', `clip_skip ${skip} must be an integer from 0 to ${hiddenStates.length - 2}, the layers of text_encoder${i === last ? '_2' : ''} but one`);
            return layer;
          },
          projection: i === last,
          loras: this.scaledLoras(options),
        }),
      );
    }
    return { states, pooled: states[last]!.pooled! };
  }

  protected async conditions(options: StableDiffusionXLOptions, { prompts, negative, guided, size }: PromptBatch): Promise<TextConditions> {
    const n = prompts.length;
    const second = (text: string | readonly string[] | undefined, first: readonly string[], name: string): readonly string[] => {
      const given = text === undefined ? first : list(text);
      check(given.length === n || given.length === 1, 'input', () => `${name}: ${given.length} texts for ${n} prompts`);
      return given.length === n ? given : prompts.map(() => given[0]!);
    };
    const zeros = guided && negative === undefined && this.forceZerosForEmptyPrompt;
    const encodesNegative = guided && !zeros;
    const unwanted = negative ?? prompts.map(() => '');
    const texts = second(options.prompt_2, prompts, 'prompt_2');
    const { states, pooled } = await this.encodePrompt(
      encodesNegative ? [...unwanted, ...prompts] : prompts,
      encodesNegative ? [...second(options.negative_prompt_2, unwanted, 'negative_prompt_2'), ...texts] : texts,
      options,
    );
    const tokens = Math.max(...states.map(({ shape }) => shape[1]));
    check(states.every(({ shape }) => shape[1] === tokens), 'input', () => `the two encoders need ${states.map(({ shape }) => shape[1]).join(' and ')} tokens for these prompts; make them of like length`);
    const rows = states[0]!.shape[0];
    const width = states.reduce((sum, { shape }) => sum + shape[2], 0);
    const embeds = new Float32Array(rows * tokens * width);
    let column = 0;
    for (const { embeds: skipped, unskipped, shape } of states) {
      // clip_skip is for what is asked for, not for what is to be avoided.
      for (let row = 0; row < rows * tokens; row++) embeds.set((encodesNegative && row < (rows * tokens) / 2 ? unskipped : skipped).subarray(row * shape[2], (row + 1) * shape[2]), row * width + column);
      column += shape[2];
    }
    const padded = (positive: Float32Array): Float32Array => (zeros ? joinRows(new Float32Array(positive.length), positive) : positive);
    return { embeds: padded(embeds), shape: [tokens, width], added: { text_embeds: padded(pooled), time_ids: this.timeIds(options, { n, guided, size }) } };
  }

  protected override denoisingPart({ denoising_start: start, denoising_end: end, image }: StableDiffusionXLOptions): DenoisingPart {
    for (const [name, value] of [['denoising_start', start], ['denoising_end', end]] as const) check(value === undefined || (value > 0 && value < 1), 'input', () => `${name} ${value} must be more than 0 and less than 1`);
    check(start === undefined || image, 'input', () => 'denoising_start was given without the image that is to be denoised from there');
    check(start === undefined || end === undefined || start < end, 'input', () => `denoising_start ${start} must be less than denoising_end ${end}`);
    return { start, end };
  }

  /** [rows, 6]: original height and width, cut from top and left, target height and width; [rows, 5] with the score in place of the target. */
  private timeIds(o: StableDiffusionXLOptions, { n, guided, size }: { n: number; guided: boolean; size: Pair }): Float32Array {
    const original = o.original_size ?? size;
    const target = o.target_size ?? size;
    const crop = o.crops_coords_top_left ?? [0, 0];
    const { addition_time_embed_dim: each, projection_class_embeddings_input_dim: all } = this.unet.config;
    const scored = this.requiresAestheticsScore;
    const count = scored ? 5 : 6;
    const projection = this.textEncoders[this.textEncoders.length - 1]!.encoder.config.projection_dim;
    check(projection + count * each! === all, 'config', () => `${this.name}/unet: projection_class_embeddings_input_dim ${all} is not ${projection} (projection_dim of text_encoder_2) and ${count} times ${each} (addition_time_embed_dim): requires_aesthetics_score of model_index.json, now ${scored}, may be wrong`);
    check(scored || (o.aesthetic_score === undefined && o.negative_aesthetic_score === undefined), 'input', () => `${this.name} is told no aesthetic_score (requires_aesthetics_score of model_index.json)`);
    const positive = [...original, ...crop, ...(scored ? [o.aesthetic_score ?? 6] : target)];
    let negative = positive;
    if (o.image) {
      // diffusers' image to image takes the crop of the prompt, but not where there is a score.
      const cropped = scored ? (o.negative_crops_coords_top_left ?? [0, 0]) : crop;
      negative = [...(o.negative_original_size ?? original), ...cropped, ...(scored ? [o.negative_aesthetic_score ?? 2.5] : (o.negative_target_size ?? target))];
    } else if (o.negative_original_size && o.negative_target_size) {
      negative = [...o.negative_original_size, ...(o.negative_crops_coords_top_left ?? [0, 0]), ...(scored ? [o.negative_aesthetic_score ?? 2.5] : o.negative_target_size)];
    }
    const repeat = (row: readonly number[]): number[] => Array.from({ length: n }, () => row).flat();
    return Float32Array.from(guided ? [...repeat(negative), ...repeat(positive)] : repeat(positive));
  }
}
