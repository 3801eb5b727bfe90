/** Classes of pipelines, by diffusers' names. Another one is another declaration in this list. */
import type { PipelineClass } from '../pipeline';
import { pixelPipelines } from './pixels';
import { stableDiffusionPipelines } from './stable_diffusion';

export const pipelineClasses: readonly PipelineClass[] = [...stableDiffusionPipelines, ...pixelPipelines];
