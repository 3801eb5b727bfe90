import { decodeLatent, encodeImage, parseAutoencoderKLConfig } from '../../model/autoencoder_kl';
import { decodeLatentTiny, encodeImageTiny, parseAutoencoderTinyConfig } from '../../model/autoencoder_tiny';
import type { ModelClass } from '../model';

/** A record may hold one half only; the other is built on what it computes, so that the weights have their places. */
const autoencoderKL: ModelClass = {
  names: ['AutoencoderKL'],
  weights: 'diffusion_pytorch_model',
  inputs: ['image', 'latent'],
  open(json, file) {
    const config = parseAutoencoderKLConfig(json, file);
    return {
      forward(ctx, io) {
        const latent = io.has('latent') ? ctx.graph.input('latent', io.shape('latent', 4)) : undefined;
        const image = io.has('image') ? ctx.graph.input('image', io.shape('image', 4)) : decodeLatent(ctx, config, latent!);
        const { mean, logvar } = encodeImage(ctx, config, image);
        return { mean, logvar, decoded: decodeLatent(ctx, config, latent ?? mean) };
      },
    };
  },
};

const autoencoderTiny: ModelClass = {
  names: ['AutoencoderTiny'],
  weights: 'diffusion_pytorch_model',
  inputs: ['image', 'latent'],
  open(json, file) {
    const config = parseAutoencoderTinyConfig(json, file);
    return {
      forward(ctx, io) {
        const latent = io.has('latent') ? ctx.graph.input('latent', io.shape('latent', 4)) : undefined;
        const image = io.has('image') ? ctx.graph.input('image', io.shape('image', 4)) : decodeLatentTiny(ctx, config, latent!);
        const latents = encodeImageTiny(ctx, config, image);
        return { latents, decoded: decodeLatentTiny(ctx, config, latent ?? latents) };
      },
    };
  },
};

export const autoencoderModels: readonly ModelClass[] = [autoencoderKL, autoencoderTiny];
