/** AutoencoderTiny, "TAESD" (Bohan 2023): a small autoencoder over Stable Diffusion's latents, for previews. diffusers' names and numbers. */
import { BruitError } from '../engine/errors';
import type { Tensor } from '../engine/graph';
import { transpose } from '../engine/ops/copy';
import { add, cast, relu, scale, shift, tanh, type PointwiseName } from '../engine/ops/pointwise';
import { upsampleNearest } from '../engine/ops/upsample_nearest';
import { showShape } from '../engine/shape';
import { ConfigReader } from './config';
import { activation, activationName, conv, module, type ModelContext } from './layers';

export interface AutoencoderTinyConfig {
  readonly in_channels: number;
  readonly out_channels: number;
  readonly encoder_block_out_channels: readonly number[];
  readonly decoder_block_out_channels: readonly number[];
  readonly act_fn: PointwiseName;
  readonly latent_channels: number;
  readonly upsampling_scaling_factor: number;
  readonly num_encoder_blocks: readonly number[];
  readonly num_decoder_blocks: readonly number[];
  readonly scaling_factor: number;
  readonly shift_factor: number;
}

/** Reads diffusers' config.json; unknown or contradictory entries are errors that name them. */
export function parseAutoencoderTinyConfig(json: unknown, file = 'config.json'): AutoencoderTinyConfig {
  const c: ConfigReader = new ConfigReader(json, file, 'AutoencoderTiny');
  const config = {
    in_channels: c.integer('in_channels', 3),
    out_channels: c.integer('out_channels', 3),
    encoder_block_out_channels: c.integers('encoder_block_out_channels', [64, 64, 64, 64]),
    decoder_block_out_channels: c.integers('decoder_block_out_channels', [64, 64, 64, 64]),
    act_fn: activationName(c.string('act_fn', 'relu')),
    latent_channels: c.integer('latent_channels', 4),
    upsampling_scaling_factor: c.integer('upsampling_scaling_factor', 2),
    num_encoder_blocks: c.integers('num_encoder_blocks', [1, 3, 3, 3]),
    num_decoder_blocks: c.integers('num_decoder_blocks', [3, 3, 3, 1]),
    scaling_factor: c.number('scaling_factor', 1),
    shift_factor: c.number('shift_factor', 0),
  };
  c.choice('upsample_fn', ['nearest'], 'nearest');
  // Of latents stored as bytes, which the network itself knows nothing of; and a copy of the encoder's widths.
  c.ignore('latent_magnitude', 'latent_shift', 'force_upcast', 'block_out_channels');
  c.finish();
  c.equalLengths({ encoder_block_out_channels: config.encoder_block_out_channels, num_encoder_blocks: config.num_encoder_blocks });
  c.equalLengths({ decoder_block_out_channels: config.decoder_block_out_channels, num_decoder_blocks: config.num_decoder_blocks });
  // Both halves change the number of channels nowhere but at their ends.
  for (const key of ['encoder_block_out_channels', 'decoder_block_out_channels'] as const) if (new Set(config[key]).size > 1) c.fail(`"${key}" is [${config[key].join(', ')}], but must be one number throughout`);
  return config;
}

function checkInput(what: string, { shape }: Tensor, channels: number): void {
  if (shape.length !== 4 || shape[1] !== channels) throw new BruitError('shape', `AutoencoderTiny: ${what} ${showShape(shape)} must be [N, ${channels}, H, W]`);
}

/** A torch.nn.Sequential called "layers": appends one layer a call under the next number. */
function sequence(): (x: Tensor, layer: (name: string, x: Tensor) => Tensor) => Tensor {
  let next = 0;
  return (x, layer) => layer(`layers.${next++}`, x);
}

/** AutoencoderTinyBlock: three convolutions and the input, through a ReLU. */
const block = (ctx: ModelContext, name: string, x: Tensor, act: PointwiseName): Tensor =>
  module(ctx, name, () => {
    const width = x.shape[3]!;
    const first = activation(conv(ctx, 'conv.0', x, width), act);
    return relu(add(conv(ctx, 'conv.4', activation(conv(ctx, 'conv.2', first, width), act), width), x));
  });

/** Adds the encoder: `image` [N,in_channels,H,W] in [−1,1] to latents as diffusion models see them, [N,latent_channels,h,w]. */
export function encodeImageTiny(ctx: ModelContext, config: AutoencoderTinyConfig, image: Tensor): Tensor {
  checkInput('image', image, config.in_channels);
  return ctx.graph.scope('encoder', () => {
    const next = sequence();
    let x = cast(scale(shift(transpose(image, [0, 2, 3, 1]), 1), 0.5), ctx.computeType ?? 'f32');
    config.num_encoder_blocks.forEach((blocks, i) => {
      const width = config.encoder_block_out_channels[i]!;
      x = next(x, (name, y) => conv(ctx, name, y, width, i === 0 ? {} : { stride: 2, bias: false }));
      for (let j = 0; j < blocks; j++) x = next(x, (name, y) => block(ctx, name, y, config.act_fn));
    });
    return transpose(cast(next(x, (name, y) => conv(ctx, name, y, config.latent_channels)), 'f32'), [0, 3, 1, 2]);
  });
}

/** Adds the decoder: latents as diffusion models see them [N,latent_channels,h,w] to an image [N,out_channels,H,W] of about [−1,1]. */
export function decodeLatentTiny(ctx: ModelContext, config: AutoencoderTinyConfig, latent: Tensor): Tensor {
  checkInput('latent', latent, config.latent_channels);
  const factor = config.upsampling_scaling_factor;
  return ctx.graph.scope('decoder', () => {
    const next = sequence();
    // A soft limit of ±3.
    let x = cast(scale(tanh(scale(transpose(latent, [0, 2, 3, 1]), 1 / 3)), 3), ctx.computeType ?? 'f32');
    x = next(x, (name, y) => conv(ctx, name, y, config.decoder_block_out_channels[0]!));
    x = next(x, (_, y) => activation(y, config.act_fn));
    config.num_decoder_blocks.forEach((blocks, i) => {
      const last = i === config.num_decoder_blocks.length - 1;
      for (let j = 0; j < blocks; j++) x = next(x, (name, y) => block(ctx, name, y, config.act_fn));
      if (!last) x = next(x, (_, y) => upsampleNearest(y, [y.shape[1]! * factor, y.shape[2]! * factor]));
      x = next(x, (name, y) => conv(ctx, name, y, last ? config.out_channels : y.shape[3]!, { bias: last }));
    });
    return shift(scale(transpose(cast(x, 'f32'), [0, 3, 1, 2]), 2), -1);
  });
}
