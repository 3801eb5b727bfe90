/** Classes of pipelines, by diffusers' names. Another one is another declaration in this list. */
import type { PipelineClass } from '../pipeline';

export const pipelineClasses: readonly PipelineClass[] = [];
