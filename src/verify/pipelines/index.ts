/** Classes of pipelines, by diffusers' names. Another one is another declaration in this list. */
import type { PipelineClass } from '../pipeline';
import { pixelPipelines } from './pixels';

export const pipelineClasses: readonly PipelineClass[] = [...pixelPipelines];
