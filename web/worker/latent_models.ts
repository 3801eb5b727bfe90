/** Latent models of the Sample tab, whatever conditions them: one interface over their pipelines. */
import type { Engine } from '../../src/engine/device';
import type { ModelFolder } from '../../src/io/folder';
import { DiTPipeline } from '../../src/pipelines/dit';
import { LDMPipeline } from '../../src/pipelines/ldm';
import { StableDiffusionPipeline } from '../../src/pipelines/stable_diffusion';
import type { GpuSampler } from '../../src/sampler/sample';
import type { SchedulerConfig } from '../../src/sampler/scheduler_config';
import type { ModelInfo, SampleSettings } from './sample';

type Shape = readonly [number, number, number, number];

export interface LatentRun {
  readonly settings: SampleSettings;
  /** Class of each image, of models with classes. */
  readonly labels: readonly number[];
  readonly scheduler: SchedulerConfig;
  readonly latents: Float32Array | undefined;
  readonly signal: AbortSignal;
  readonly onQueued: (sampler: GpuSampler, step: number) => void;
  readonly onDecode: (done: number, total: number) => void;
}

export interface LatentModel {
  readonly info: Pick<ModelInfo, 'condition' | 'classes' | 'size' | 'guidance'>;
  readonly scheduler: SchedulerConfig;
  /** [N, C, h, w] of the latents of `count` images. */
  readonly shape: (count: number) => Shape;
  /** Decoded images in [0, 1]. */
  readonly generate: (run: LatentRun) => Promise<{ readonly data: Float32Array; readonly shape: readonly number[] }>;
  readonly destroy: () => void;
}

const keep = { keep: true };

/** Classes of model_index.json that {@link openLatentModel} opens. */
export const latentPipelines = ['StableDiffusionPipeline', 'DiTPipeline', 'LDMPipeline'] as const;

/** Reads a folder's configs; weights are loaded by the first run and stay. */
export async function openLatentModel(engine: Engine, folder: ModelFolder, pipelineClass: (typeof latentPipelines)[number]): Promise<LatentModel> {
  if (pipelineClass === 'DiTPipeline') {
    const pipeline = await DiTPipeline.fromFolder(engine, folder, keep);
    const { in_channels: channels, sample_size: side, num_embeds_ada_norm: classes } = pipeline.transformer.config;
    const { factor } = pipeline.latentDecoder;
    return {
      info: { condition: 'labels', classes: Array.from({ length: classes! }, (_, i) => String(i)), size: [side! * factor, side! * factor], guidance: 4 },
      scheduler: pipeline.scheduler,
      shape: (count) => [count, channels, side!, side!],
      async generate({ settings: { steps, guidance, seed }, labels, latents, ...rest }) {
        const { images, shape } = await pipeline.generate({ class_labels: labels, num_inference_steps: steps, guidance_scale: guidance, seed, ...(latents && { latents }), ...rest });
        return { data: images, shape };
      },
      destroy() {
        pipeline.transformer.destroy();
        pipeline.vae.destroy();
      },
    };
  }
  if (pipelineClass === 'LDMPipeline') {
    const pipeline = await LDMPipeline.fromFolder(engine, folder, keep);
    const [h, w] = pipeline.unet.config.sample_size ?? [64, 64];
    const { channels, factor } = pipeline.latentDecoder;
    return {
      info: { condition: 'none', classes: [], size: [h * factor, w * factor], guidance: undefined },
      scheduler: pipeline.scheduler,
      shape: (count) => [count, channels, h, w],
      async generate({ settings: { steps, count, seed }, labels: _, latents, ...rest }) {
        const { images, shape } = await pipeline.generate({ batch_size: count, num_inference_steps: steps, seed, size: [h * factor, w * factor], ...(latents && { latents }), ...rest });
        return { data: images, shape };
      },
      destroy() {
        pipeline.unet.destroy();
        pipeline.vqvae.destroy();
      },
    };
  }
  const pipeline = await StableDiffusionPipeline.fromFolder(engine, folder, keep);
  const factor = 2 ** (pipeline.vae.config.block_out_channels.length - 1);
  const [h, w] = pipeline.unet.config.sample_size ?? [64, 64];
  const [height, width] = [h * factor, w * factor];
  return {
    info: { condition: 'prompt', classes: [], size: [height, width], guidance: pipeline.defaults.guidance_scale },
    scheduler: pipeline.scheduler,
    shape: (count) => [count, pipeline.vae.config.latent_channels, h, w],
    generate: ({ settings: { prompt, negativePrompt, count, steps, guidance, seed }, labels: _, latents, ...rest }) =>
      pipeline.generate({ prompt, negative_prompt: negativePrompt, num_images_per_prompt: count, num_inference_steps: steps, guidance_scale: guidance, height, width, seed, ...(latents && { latents }), ...rest }),
    destroy: () => pipeline.destroy(),
  };
}
