import { parseUNet2DConfig, unet2d, unet2dInputs } from '../../model/unet2d';
import type { ModelClass } from '../model';

export const unet2dModel: ModelClass = {
  names: ['UNet2DModel'],
  weights: 'diffusion_pytorch_model',
  inputs: ['sample'],
  open(json, file) {
    const config = parseUNet2DConfig(json, file);
    return {
      forward(ctx, io) {
        const [n, , height, width] = io.shape('sample', 4) as [number, number, number, number];
        return { output: unet2d(ctx, config, unet2dInputs(ctx, config, [n, height, width])) };
      },
      denoise(ctx, _, sample, timestep) {
        const [n, , height, width] = sample.shape as [number, number, number, number];
        return unet2d(ctx, config, unet2dInputs(ctx, config, [n, height, width], { sample, timestep }));
      },
      training: {
        labelled: config.num_class_embeds !== null,
        buildModel: (ctx, sample, timestep, classLabels) => unet2d(ctx, config, classLabels ? { sample, timestep, classLabels } : { sample, timestep }),
      },
    };
  },
};
