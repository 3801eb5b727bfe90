/** VQModel (van den Oord et al. 2017; Esser et al. 2021): an autoencoder whose latents are entries of a learned codebook. diffusers' names and numbers. */
import { BruitError } from '../engine/errors';
import type { Tensor } from '../engine/graph';
import { transpose } from '../engine/ops/copy';
import { embedding } from '../engine/ops/embedding';
import { nearestRow } from '../engine/ops/nearest_row';
import { cast } from '../engine/ops/pointwise';
import { showShape } from '../engine/shape';
import { decodeLatent, parseAutoencoder, type AutoencoderKLConfig } from './autoencoder_kl';
import { ConfigReader } from './config';
import { conv, type ModelContext } from './layers';

export interface VQModelConfig extends AutoencoderKLConfig {
  readonly num_vq_embeddings: number;
  readonly vq_embed_dim: number;
}

/** Reads diffusers' config.json; unknown or contradictory entries are errors that name them. */
export function parseVQModelConfig(json: unknown, file = 'config.json'): VQModelConfig {
  const c: ConfigReader = new ConfigReader(json, file, 'VQModel');
  const shared = parseAutoencoder(c, { latentChannels: 3 });
  const config = { ...shared, num_vq_embeddings: c.integer('num_vq_embeddings', 256), vq_embed_dim: c.nullableInteger('vq_embed_dim', null) ?? shared.latent_channels };
  c.fixed('norm_type', 'group', 'norms over the codes in space are not supported');
  c.fixed('lookup_from_codebook', false, 'decoding of indices is not supported');
  c.finish();
  return config;
}

/** Adds quantisation and decoder: `latent` [N,vq_embed_dim,h,w], unscaled, to an image [N,out_channels,H,W] of about [−1,1]. */
export function decodeQuantized(ctx: ModelContext, config: VQModelConfig, latent: Tensor): Tensor {
  const { shape } = latent;
  if (shape.length !== 4 || shape[1] !== config.vq_embed_dim) throw new BruitError('shape', `VQModel: latent ${showShape(shape)} must be [N, ${config.vq_embed_dim}, h, w] (vq_embed_dim of its config)`);
  const codebook = ctx.parameters.get('quantize.embedding.weight', [config.num_vq_embeddings, config.vq_embed_dim], 'plain', { kind: 'normal', std: 1 / config.num_vq_embeddings });
  const codes = transpose(latent, [0, 2, 3, 1]);
  const quantized = cast(embedding(codebook, nearestRow(cast(codes, codebook.dtype), codebook)), ctx.computeType ?? 'f32');
  const h = conv(ctx, 'post_quant_conv', quantized, config.latent_channels, { kernel: 1 });
  return decodeLatent(ctx, { ...config, use_post_quant_conv: false }, transpose(cast(h, 'f32'), [0, 3, 1, 2]));
}
