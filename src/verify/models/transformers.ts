import { parsePriorTransformerConfig, priorPostProcess, priorTransformer, priorTransformerInputs } from '../../model/prior_transformer';
import { parseTransformer2DConfig, transformer2d, transformer2dInputs } from '../../model/transformer2d';
import type { ModelClass } from '../model';

export const transformer2dModel: ModelClass = {
  names: ['Transformer2DModel'],
  weights: 'diffusion_pytorch_model',
  inputs: ['sample'],
  open(json, file) {
    const config = parseTransformer2DConfig(json, file);
    return {
      forward(ctx, io) {
        const [n, , height, width] = io.shape('sample', 4) as [number, number, number, number];
        const tokens = io.has('encoder_hidden_states') ? io.shape('encoder_hidden_states', 3)[1]! : 0;
        return { output: transformer2d(ctx, config, transformer2dInputs(ctx, config, [n, height, width], tokens)) };
      },
    };
  },
};

export const priorTransformerModel: ModelClass = {
  names: ['PriorTransformer'],
  weights: 'diffusion_pytorch_model',
  inputs: ['proj_embedding'],
  open(json, file) {
    const config = parsePriorTransformerConfig(json, file);
    return {
      forward(ctx, io) {
        const [n] = io.shape('hidden_states', 2) as [number, number];
        const tokens = io.has('encoder_hidden_states') ? io.shape('encoder_hidden_states', 3)[1]! : 0;
        const output = priorTransformer(ctx, config, priorTransformerInputs(ctx, config, n, { masked: io.has('attention_mask'), tokens }));
        return { output, post_processed: priorPostProcess(ctx, config, output) };
      },
    };
  },
};
