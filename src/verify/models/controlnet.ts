import { transpose } from '../../engine/ops/copy';
import { controlNet, parseControlNetConfig } from '../../model/controlnet';
import type { ModelClass } from '../model';
import { recordedConditions } from './unet2d_condition';

export const controlNetModel: ModelClass = {
  names: ['ControlNetModel'],
  weights: 'diffusion_pytorch_model',
  inputs: ['controlnet_cond'],
  open(json, file) {
    const config = parseControlNetConfig(json, file);
    return {
      forward(ctx, io) {
        const controlnetCond = ctx.graph.input('controlnet_cond', io.shape('controlnet_cond', 4));
        const { down, mid } = controlNet(ctx, config, { ...recordedConditions(ctx, config, io), controlnetCond });
        const image = (t: typeof mid) => transpose(t, [0, 3, 1, 2]);
        return { ...Object.fromEntries(down.map((t, i) => [`down_block_res_samples.${i}`, image(t)])), mid_block_res_sample: image(mid) };
      },
    };
  },
};
