/** Pipelines in pixel space, and class-conditional latent diffusion. */
import { DDPMPipeline } from '../../pipelines/ddpm';
import { IFPipeline, IFSuperResolutionPipeline, type IFCall } from '../../pipelines/deepfloyd_if';
import { LDMPipeline } from '../../pipelines/ldm';
import { DiTPipeline } from '../../pipelines/dit';
import { UnCLIPImageVariationPipeline, UnCLIPPipeline } from '../../pipelines/unclip';
import { BruitError, check } from '../../engine/errors';
import { parseSchedulerConfig, type SamplerOptions, type SchedulerConfig } from '../../sampler/scheduler_config';
import { tensorArgument, type PipelineClass, type PipelineRun } from '../pipeline';
import type { Numbers } from '../report';

/** Collects what a call records. */
class Records {
  readonly values: Record<string, Numbers> = {};
  readonly record = (name: string, value: Float32Array): void => void (this.values[name] = value);
}

const numberArgument = ({ name, call }: PipelineRun, key: string): number | undefined => {
  const value = call[key];
  if (value === undefined || value === null) return undefined;
  check(typeof value === 'number', 'input', () => `${name}: the argument ${key} is ${JSON.stringify(value)}, but must be a number`);
  return value;
};

const listArgument = <T extends string | number>({ name, call }: PipelineRun, key: string, type: 'string' | 'number'): readonly T[] | undefined => {
  const value = call[key];
  if (value === undefined || value === null) return undefined;
  const list: unknown[] = Array.isArray(value) ? value : [value];
  if (list.every((item) => typeof item === type)) return list as T[];
  throw new BruitError('input', `${name}: the argument ${key} is ${JSON.stringify(value)}, but must be a list of ${type}s`);
};

const given = <K extends string, T>(key: K, value: T | undefined): Partial<Record<K, T>> => (value === undefined ? {} : ({ [key]: value } as Record<K, T>));

const schedulerOf = ({ name, schedulers }: PipelineRun, key: string): SchedulerConfig | undefined => schedulers[key] && parseSchedulerConfig(schedulers[key], `${name}: schedulers.${key}`);

/** Arguments of a call that go to the scheduler. */
const schedulerOptions = (run: PipelineRun): Omit<SamplerOptions, 'numInferenceSteps'> => ({
  ...given('eta', numberArgument(run, 'eta')),
  ...(typeof run.call.use_clipped_model_output === 'boolean' && { use_clipped_model_output: run.call.use_clipped_model_output }),
  ...given('timesteps', listArgument<number>(run, 'timesteps', 'number')),
});

const ddpm: PipelineClass = {
  names: ['DDPMPipeline', 'DDIMPipeline'],
  async run(run) {
    const records = new Records();
    const pipeline = await DDPMPipeline.fromFolder(run.engine, run.folder);
    try {
      await pipeline.generate({
        count: numberArgument(run, 'batch_size') ?? 1,
        steps: numberArgument(run, 'num_inference_steps') ?? (run.pipeline === 'DDPMPipeline' ? 1000 : 50),
        // DDIMPipeline takes DDIM whatever its folder names.
        scheduler: schedulerOf(run, 'scheduler') ?? (run.pipeline === 'DDPMPipeline' ? pipeline.scheduler : 'ddim'),
        schedulerOptions: schedulerOptions(run),
        generator: run.draws,
        onRecord: records.record,
      });
    } finally {
      pipeline.destroy();
    }
    return records.values;
  },
};

const ldm: PipelineClass = {
  names: ['LDMPipeline'],
  async run(run) {
    const records = new Records();
    const pipeline = await LDMPipeline.fromFolder(run.engine, run.folder);
    await pipeline.generate({
      ...given('batch_size', numberArgument(run, 'batch_size')),
      ...given('num_inference_steps', numberArgument(run, 'num_inference_steps')),
      ...given('scheduler', schedulerOf(run, 'scheduler')),
      schedulerOptions: schedulerOptions(run),
      generator: run.draws,
      onRecord: records.record,
    });
    return records.values;
  },
};

const dit: PipelineClass = {
  names: ['DiTPipeline'],
  async run(run) {
    const records = new Records();
    const pipeline = await DiTPipeline.fromFolder(run.engine, run.folder);
    const guidance = numberArgument(run, 'guidance_scale') ?? 4;
    await pipeline.generate({
      class_labels: listArgument<number>(run, 'class_labels', 'number') ?? [],
      guidance_scale: guidance,
      schedulerOptions: schedulerOptions(run),
      ...given('num_inference_steps', numberArgument(run, 'num_inference_steps')),
      ...given('scheduler', schedulerOf(run, 'scheduler')),
      generator: run.draws,
      onRecord: records.record,
    });
    // diffusers carries the same latents in both halves of a guided batch.
    const doubled = (name: string): boolean => guidance > 1 && /^(latents|step_sample|model_output)\./.test(name);
    return Object.fromEntries(Object.entries(records.values).map(([name, value]) => [name, doubled(name) ? [...value, ...value] : value]));
  },
};

const ifCall = (run: PipelineRun): Omit<IFCall, 'onRecord'> => {
  const embeds = (key: string) => {
    const tensor = tensorArgument(run, key);
    return tensor && { shape: tensor.shape as unknown as readonly [number, number, number], data: tensor.data };
  };
  const [height, width] = [numberArgument(run, 'height'), numberArgument(run, 'width')];
  return {
    ...given('prompt', listArgument<string>(run, 'prompt', 'string')),
    ...given('negative_prompt', listArgument<string>(run, 'negative_prompt', 'string')),
    ...given('prompt_embeds', embeds('prompt_embeds')),
    ...given('negative_prompt_embeds', embeds('negative_prompt_embeds')),
    ...given('guidance_scale', numberArgument(run, 'guidance_scale')),
    ...given('num_inference_steps', numberArgument(run, 'num_inference_steps')),
    ...given('scheduler', schedulerOf(run, 'scheduler')),
    ...(height !== undefined && width !== undefined && { size: [height, width] as const }),
    schedulerOptions: schedulerOptions(run),
    generator: run.draws,
  };
};

/** With output_type "pt" IF's images stay in [−1, 1], as the next stage wants them. */
const ifImage = ({ call }: PipelineRun, images: { readonly images: Float32Array; readonly samples: Float32Array }): Float32Array => (call.output_type === 'pt' ? images.samples : images.images);

const deepfloydIF: PipelineClass = {
  names: ['IFPipeline'],
  async run(run) {
    const records = new Records();
    const pipeline = await IFPipeline.fromFolder(run.engine, run.folder);
    const result = await pipeline.generate({ ...ifCall(run), onRecord: records.record });
    return { ...records.values, image: ifImage(run, result) };
  },
  async text(run) {
    const pipeline = await IFPipeline.fromFolder(run.engine, run.folder);
    const values: Record<string, Numbers> = {};
    const prompt = listArgument<string>(run, 'prompt', 'string');
    for (const [prefix, texts] of [['', prompt], ['negative_', listArgument<string>(run, 'negative_prompt', 'string') ?? prompt?.map(() => '')]] as const) {
      if (!texts) continue;
      const { inputIds, attentionMask } = pipeline.tokenize(texts);
      Object.assign(values, { [`${prefix}input_ids`]: inputIds, [`${prefix}attention_mask`]: attentionMask, [`${prefix}prompt_embeds`]: (await pipeline.encodePrompt(texts)).data });
    }
    return values;
  },
};

const deepfloydIFSuperResolution: PipelineClass = {
  names: ['IFSuperResolutionPipeline'],
  async run(run) {
    const records = new Records();
    const pipeline = await IFSuperResolutionPipeline.fromFolder(run.engine, run.folder);
    const image = tensorArgument(run, 'image');
    check(image, 'input', () => `${run.name}: IFSuperResolutionPipeline was recorded without its image`);
    const result = await pipeline.generate({ ...ifCall(run), image, ...given('noise_level', numberArgument(run, 'noise_level')), onRecord: records.record });
    return { ...records.values, image: ifImage(run, result) };
  },
};

const unclipCall = (run: PipelineRun) => {
  const stages = ['prior', 'decoder', 'super_res'].map((key) => [key, schedulerOf(run, key)] as const);
  return {
    ...given('decoder_guidance_scale', numberArgument(run, 'decoder_guidance_scale')),
    ...given('decoder_num_inference_steps', numberArgument(run, 'decoder_num_inference_steps')),
    ...given('super_res_num_inference_steps', numberArgument(run, 'super_res_num_inference_steps')),
    schedulers: Object.fromEntries(stages.filter(([, config]) => config)),
    generator: run.draws,
  };
};

const unclip: PipelineClass = {
  names: ['UnCLIPPipeline'],
  async run(run) {
    const records = new Records();
    const pipeline = await UnCLIPPipeline.fromFolder(run.engine, run.folder);
    await pipeline.generate({
      ...unclipCall(run),
      prompt: listArgument<string>(run, 'prompt', 'string') ?? [],
      ...given('prior_guidance_scale', numberArgument(run, 'prior_guidance_scale')),
      ...given('prior_num_inference_steps', numberArgument(run, 'prior_num_inference_steps')),
      onRecord: records.record,
    });
    return records.values;
  },
  async text(run) {
    const pipeline = await UnCLIPPipeline.fromFolder(run.engine, run.folder);
    const prompt = listArgument<string>(run, 'prompt', 'string') ?? [];
    const values: Record<string, Numbers> = {};
    for (const [prefix, texts] of [['', prompt], ['negative_', prompt.map(() => '')]] as const) {
      const { inputIds, attentionMask, embeds, states } = await pipeline.encodePrompt(texts);
      Object.assign(values, { [`${prefix}input_ids`]: inputIds, [`${prefix}attention_mask`]: attentionMask, [`${prefix}text_embeds`]: embeds, [`${prefix}last_hidden_state`]: states });
    }
    return values;
  },
};

const unclipVariations: PipelineClass = {
  names: ['UnCLIPImageVariationPipeline'],
  async run(run) {
    const records = new Records();
    const pipeline = await UnCLIPImageVariationPipeline.fromFolder(run.engine, run.folder);
    await pipeline.generate({
      ...unclipCall(run),
      ...given('image', tensorArgument(run, 'image')),
      ...given('image_embeddings', tensorArgument(run, 'image_embeddings')?.data),
      ...given('num_images_per_prompt', numberArgument(run, 'num_images_per_prompt')),
      onRecord: records.record,
    });
    return records.values;
  },
};

export const pixelPipelines: readonly PipelineClass[] = [ddpm, ldm, dit, deepfloydIF, deepfloydIFSuperResolution, unclip, unclipVariations];
