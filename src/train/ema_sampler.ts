/** A sampler on the EMA weights of a run, for pictures of what it has learnt. */
import type { Engine } from '../engine/device';
import { Parameters } from '../model/parameters';
import { unet2d } from '../model/unet2d';
import type { SamplerProgram } from '../sampler/program';
import { createGpuSampler, type GpuSampler } from '../sampler/sample';
import { convertSchedulerConfig, createSampler } from '../sampler/scheduler_config';
import type { Trainer } from './trainer';

export interface EmaSampler {
  readonly sampler: GpuSampler;
  readonly program: SamplerProgram;
  /** [N,C,H,W] */
  readonly shape: readonly [number, number, number, number];
  /** The classes in turn, where the model has labels. */
  readonly labels: Int32Array | undefined;
}

/** DDIM with `steps` steps for `count` images of `classes` classes in turn. It reads the weights as they are when it runs; destroy it before the trainer. */
export async function emaSampler(engine: Engine, { config, step, imageShape }: Trainer, { count, classes, steps = 25, preview = false }: { count: number; classes: number; steps?: number; preview?: boolean }): Promise<EmaSampler> {
  const { model } = config;
  const labels = model.num_class_embeds === null ? undefined : Int32Array.from({ length: count }, (_, i) => i % Math.max(classes, 1));
  const shape = [count, ...imageShape] as const;
  const program = createSampler(convertSchedulerConfig(config.scheduler, 'DDIMScheduler'), { numInferenceSteps: Math.min(steps, config.scheduler.num_train_timesteps) });
  let parameters: Parameters | undefined;
  const sampler = await createGpuSampler(engine, {
    program,
    shape,
    model: (graph, sample, timestep, classLabels) => {
      parameters = new Parameters(graph);
      return unet2d({ graph, parameters }, model, classLabels ? { sample, timestep, classLabels } : { sample, timestep });
    },
    bindings: () => step.emaBindings(parameters!),
    ...(labels && { labels }),
    preview,
  });
  return { sampler, program, shape, labels };
}
