/** `bruit/sampling`: only what sampling a UNet2DModel takes, minified with its shaders. No training, gradients, profiles or image files. */
export { Engine, type EngineOptions } from './engine/device';
export { BruitError } from './engine/errors';
export { urlFolder, type ModelFolder } from './io/folder';
export { DDPMPipeline, type GenerateOptions, type GeneratedImages } from './pipelines/ddpm';
