import { isJsonObject } from '../../io/json';
import { parseSchedulerConfig } from '../../sampler/scheduler_config';
import { StableDiffusionPipeline, type StableDiffusionOptions } from '../../pipelines/stable_diffusion';
import { tensorArgument, type PipelineClass, type PipelineRun } from '../pipeline';
import type { Numbers } from '../report';

async function open({ engine, folder, lora }: PipelineRun): Promise<StableDiffusionPipeline> {
  const pipeline = await StableDiffusionPipeline.fromFolder(engine, folder);
  if (lora) pipeline.loadLoraWeights(lora);
  return pipeline;
}

/** The recorded arguments as they are, tensors and scheduler put in their places. */
function optionsOf(run: PipelineRun): StableDiffusionOptions {
  const { image: _, ...call } = run.call;
  const image = tensorArgument(run, 'image');
  const control = run.pipeline.includes('ControlNet');
  const scheduler = run.schedulers.scheduler;
  return {
    ...(call as unknown as StableDiffusionOptions),
    ...(image && (control ? { control_image: image } : { image })),
    ...(run.call.mask_image !== undefined && { mask_image: tensorArgument(run, 'mask_image') }),
    ...(isJsonObject(scheduler) && { scheduler: parseSchedulerConfig(scheduler, `${run.folder.name}: ${run.name}`) }),
    generator: run.draws,
  };
}

/** Token ids and states of the run's prompts, under `prefix`. */
async function textOf(run: PipelineRun, prefix: string): Promise<Record<string, Numbers>> {
  const pipeline = await open(run);
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

const stableDiffusion: PipelineClass = {
  names: ['StableDiffusionPipeline', 'StableDiffusionImg2ImgPipeline', 'StableDiffusionInpaintPipeline', 'StableDiffusionControlNetPipeline'],
  async run(run) {
    const values: Record<string, Numbers> = run.records('in.prompt_embeds') ? await textOf(run, 'in.') : {};
    const pipeline = await open(run);
    try {
      await pipeline.generate({ ...optionsOf(run), onRecord: (name, value) => (values[name] = value) });
      return values;
    } finally {
      pipeline.destroy();
    }
  },
  text: (run) => textOf(run, ''),
};

export const stableDiffusionPipelines: readonly PipelineClass[] = [stableDiffusion];
