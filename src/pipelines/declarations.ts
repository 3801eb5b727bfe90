/** Models that several pipelines have, as components: how their configs are read and their weights named. */
import { currentName } from '../io/names';
import { autoencoderHalf, decodeLatent, encodeImage, latentFactor, parseAutoencoderKLConfig, type AutoencoderKLConfig } from '../model/autoencoder_kl';
import type { AdditionConfig } from '../model/added_conditions';
import { clipText, parseCLIPTextConfig, type CLIPTextConfig } from '../model/clip';
import { conditionInputs, parseUNet2DConditionConfig, unet2dCondition, type UNet2DConditionConfig } from '../model/unet2d_condition';
import { parseUNet2DConfig, unet2d, unet2dInputs, type UNet2DConfig } from '../model/unet2d';
import type { ComponentOptions } from './component';

export const clipTextEncoder = ({ projection = false, name = 'text_encoder' } = {}): ComponentOptions<CLIPTextConfig> => ({
  name,
  weights: 'model',
  parse: parseCLIPTextConfig,
  declare: (ctx, config) => void clipText(ctx, config, { inputIds: ctx.graph.input('input_ids', [1, 1], 'i32') }, { projection }),
  // transformers 5 writes a CLIPTextModel without the prefix.
  load: { rename: (key) => currentName(key.replace(/^(?=(embeddings|encoder|final_layer_norm)\.)/, 'text_model.')) },
});

/** Widths of text_embeds and time_ids, where a config has a `text_time` condition; it says only what the two take together. */
export function addedSizes({ addition_embed_type: type, addition_time_embed_dim: each, projection_class_embeddings_input_dim: all }: AdditionConfig, timeIds = 6): { textEmbeds?: number; timeIds?: number } {
  return type === 'text_time' ? { textEmbeds: all! - timeIds * each!, timeIds } : {};
}

export const conditionUNet = (name: string): ComponentOptions<UNet2DConditionConfig> => ({
  name,
  weights: 'diffusion_pytorch_model',
  parse: parseUNet2DConditionConfig,
  declare(ctx, config) {
    const side = 2 ** config.block_out_channels.length;
    unet2dCondition(ctx, config, conditionInputs(ctx, config, { sample: [1, side, side], tokens: 1, timestepCond: true, ...addedSizes(config) }));
  },
  layersPerBlock: (config) => config.layers_per_block[0]!,
});

export const pixelUNet = (name: string): ComponentOptions<UNet2DConfig> => ({
  name,
  weights: 'diffusion_pytorch_model',
  parse: parseUNet2DConfig,
  declare(ctx, config) {
    const side = 2 ** config.block_out_channels.length;
    unet2d(ctx, config, unet2dInputs(ctx, config, [1, side, side]));
  },
});

export const autoencoder: ComponentOptions<AutoencoderKLConfig> = {
  name: 'vae',
  weights: 'diffusion_pytorch_model',
  parse: parseAutoencoderKLConfig,
  declare(ctx, config) {
    const side = latentFactor(config);
    decodeLatent(ctx, config, encodeImage(ctx, config, ctx.graph.input('image', [1, config.in_channels, side, side])).mean);
  },
};

/** The decoder alone. */
export const latentDecoder: ComponentOptions<AutoencoderKLConfig> = {
  ...autoencoder,
  declare: (ctx, config) => void decodeLatent(ctx, config, ctx.graph.input('latent', [1, config.latent_channels, 1, 1])),
  load: { rename: autoencoderHalf('decoder') },
};
