import { isJsonObject } from '../../io/json';
import { parseSchedulerConfig } from '../../sampler/scheduler_config';
import { StableDiffusionPipeline, type StableDiffusionOptions } from '../../pipelines/stable_diffusion';
import { StableDiffusionXLPipeline, type StableDiffusionXLOptions } from '../../pipelines/stable_diffusion_xl';
import { tensorArgument, type PipelineClass, type PipelineRun } from '../pipeline';
import type { Numbers } from '../report';

type Kind<P> = { fromFolder(engine: PipelineRun['engine'], folder: PipelineRun['folder']): Promise<P> };

async function open<P extends StableDiffusionPipeline | StableDiffusionXLPipeline>(kind: Kind<P>, { engine, folder, lora }: PipelineRun): Promise<P> {
  const pipeline = await kind.fromFolder(engine, folder);
  if (lora) pipeline.loadLoraWeights(lora);
  return pipeline;
}

/** The recorded arguments as they are, tensors and scheduler put in their places. */
function optionsOf(run: PipelineRun): StableDiffusionOptions {
  const { image: _, ...call } = run.call;
  const image = tensorArgument(run, 'image');
  // Where there is but a condition, diffusers calls it the image.
  const control = run.pipeline.includes('ControlNet') && run.call.control_image === undefined;
  const scheduler = run.schedulers.scheduler;
  return {
    ...(call as unknown as StableDiffusionOptions),
    ...(image && (control ? { control_image: image } : { image })),
    ...(run.call.control_image !== undefined && { control_image: tensorArgument(run, 'control_image') }),
    ...(run.call.mask_image !== undefined && { mask_image: tensorArgument(run, 'mask_image') }),
    ...(isJsonObject(scheduler) && { scheduler: parseSchedulerConfig(scheduler, `${run.folder.name}: ${run.name}`) }),
    generator: run.draws,
  };
}

/** Token ids and states of the run's prompts, under `prefix`. */
async function textOf(run: PipelineRun, prefix: string): Promise<Record<string, Numbers>> {
  const pipeline = await open(StableDiffusionPipeline, run);
  try {
    const { prompt, negative_prompt: negative = '', ...options } = optionsOf(run);
    const values: Record<string, Numbers> = {};
    for (const [name, texts] of [['', prompt], ['negative_', negative]] as const) {
      const { inputIds, embeds } = await pipeline.encodePrompt(typeof texts === 'string' ? [texts] : texts, options);
      values[`${prefix}${name}input_ids`] = inputIds;
      values[`${prefix}${name}prompt_embeds`] = embeds;
    }
    return values;
  } finally {
    pipeline.destroy();
  }
}

/** Runs the call and collects what it records. */
async function generate(kind: Kind<StableDiffusionPipeline | StableDiffusionXLPipeline>, run: PipelineRun): Promise<Record<string, Numbers>> {
  const values: Record<string, Numbers> = {};
  const pipeline = await open(kind, run);
  try {
    await pipeline.generate({ ...optionsOf(run), onRecord: (name, value) => (values[name] = value) });
    return values;
  } finally {
    pipeline.destroy();
  }
}

const stableDiffusion: PipelineClass = {
  names: ['StableDiffusionPipeline', 'StableDiffusionImg2ImgPipeline', 'StableDiffusionInpaintPipeline', 'StableDiffusionControlNetPipeline', 'StableDiffusionControlNetImg2ImgPipeline', 'StableDiffusionControlNetInpaintPipeline', 'LatentConsistencyModelPipeline'],
  run: async (run) => ({ ...(run.records('in.prompt_embeds') && (await textOf(run, 'in.'))), ...(await generate(StableDiffusionPipeline, run)) }),
  text: (run) => textOf(run, ''),
};

/** Both encoders' states side by side, as the run's prompts give them. */
async function textOfXL(run: PipelineRun): Promise<Record<string, Numbers>> {
  const pipeline = await open(StableDiffusionXLPipeline, run);
  try {
    const options = optionsOf(run) as StableDiffusionXLOptions;
    const texts = (text: string | readonly string[] | undefined, fallback: readonly string[]): readonly string[] => (text === undefined ? fallback : typeof text === 'string' ? [text] : text);
    const values: Record<string, Numbers> = {};
    const prompt = texts(options.prompt, []);
    const negative = options.negative_prompt === undefined && pipeline.forceZerosForEmptyPrompt ? undefined : texts(options.negative_prompt, prompt.map(() => ''));
    for (const [name, first, second] of [['', prompt, options.prompt_2], ['negative_', negative, options.negative_prompt_2]] as const) {
      if (!first) continue;
      const { states, pooled } = await pipeline.encodePrompt(first, texts(second, first), options);
      const rows = states[0]!.shape[0] * states[0]!.shape[1];
      values[`in.${name}prompt_embeds`] = Array.from({ length: rows }, (_, row) => states.flatMap(({ embeds, unskipped, shape: [, , width] }) => [...(name ? unskipped : embeds).subarray(row * width, (row + 1) * width)])).flat();
      values[`in.${name}pooled_prompt_embeds`] = pooled;
    }
    return values;
  } finally {
    pipeline.destroy();
  }
}

const stableDiffusionXL: PipelineClass = {
  names: ['StableDiffusionXLPipeline', 'StableDiffusionXLImg2ImgPipeline', 'StableDiffusionXLInpaintPipeline', 'StableDiffusionXLControlNetPipeline', 'StableDiffusionXLControlNetImg2ImgPipeline', 'StableDiffusionXLControlNetInpaintPipeline'],
  run: async (run) => ({ ...(run.records('in.prompt_embeds') && (await textOfXL(run))), ...(await generate(StableDiffusionXLPipeline, run)) }),
};

export const stableDiffusionPipelines: readonly PipelineClass[] = [stableDiffusion, stableDiffusionXL];
