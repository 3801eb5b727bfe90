/**
 * `bruit/sampling`: only what sampling a UNet2DModel takes, minified with its shaders to 60 kB gzipped. No training, gradients, profiles or image
 * files; of the schedulers, those of `schedulerNames`; kernels for GPUs, and `direct` ones for every other adapter. Objects that the classes here
 * hold keep only the methods that these call. `bruit` itself is whole and has its names: use it for debugging.
 */
export { Engine, type EngineOptions } from './engine/device';
export { BruitError } from './engine/errors';
export { urlFolder, type ModelFolder } from './io/folder';
export { DDPMPipeline, type GenerateOptions, type GeneratedImages } from './pipelines/ddpm';
