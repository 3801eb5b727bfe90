/** AutoencoderKL (Rombach et al. 2022): images to Gaussians over latents and back. diffusers' names and numbers. */
import { BruitError } from '../engine/errors';
import type { Tensor } from '../engine/graph';
import { split, transpose } from '../engine/ops/copy';
import { add, cast, clamp, exp, mul, scale, shift, type PointwiseName } from '../engine/ops/pointwise';
import { showShape } from '../engine/shape';
import { currentName } from '../io/names';
import { downsampleConv, resnet, selfAttention, upsampleConv, type ResnetOptions } from './blocks';
import { ConfigReader } from './config';
import { activationName, conv, groupNorm, module, recomputable, type ModelContext } from './layers';

const downTypes = ['DownEncoderBlock2D', 'AttnDownEncoderBlock2D'] as const;
const upTypes = ['UpDecoderBlock2D', 'AttnUpDecoderBlock2D'] as const;

export interface AutoencoderKLConfig {
  readonly in_channels: number;
  readonly out_channels: number;
  readonly down_block_types: readonly (typeof downTypes)[number][];
  readonly up_block_types: readonly (typeof upTypes)[number][];
  readonly block_out_channels: readonly number[];
  readonly layers_per_block: number;
  readonly act_fn: PointwiseName;
  readonly latent_channels: number;
  readonly norm_num_groups: number;
  readonly sample_size: readonly [number, number] | undefined;
  /** Diffusion works on (latent − shift_factor) · scaling_factor. */
  readonly scaling_factor: number;
  readonly shift_factor: number;
  /** The authors' warning that half precision overflows in this decoder (SDXL's: black images): {@link autoencoderType} heeds it. */
  readonly force_upcast: boolean;
  readonly use_quant_conv: boolean;
  readonly use_post_quant_conv: boolean;
  readonly mid_block_add_attention: boolean;
}

/** Entries that all autoencoders with this encoder and decoder have. */
export function parseAutoencoder(c: ConfigReader, { latentChannels = 4 } = {}): AutoencoderKLConfig {
  const config: AutoencoderKLConfig = {
    in_channels: c.integer('in_channels', 3),
    out_channels: c.integer('out_channels', 3),
    down_block_types: c.choices('down_block_types', downTypes, ['DownEncoderBlock2D']),
    up_block_types: c.choices('up_block_types', upTypes, ['UpDecoderBlock2D']),
    block_out_channels: c.integers('block_out_channels', [64]),
    layers_per_block: c.integer('layers_per_block', 1),
    act_fn: activationName(c.string('act_fn', 'silu')),
    latent_channels: c.integer('latent_channels', latentChannels),
    norm_num_groups: c.integer('norm_num_groups', 32),
    sample_size: c.size('sample_size'),
    scaling_factor: c.number('scaling_factor', 0.18215),
    shift_factor: c.number('shift_factor', 0),
    force_upcast: c.boolean('force_upcast', true),
    use_quant_conv: c.boolean('use_quant_conv', true),
    use_post_quant_conv: c.boolean('use_post_quant_conv', true),
    mid_block_add_attention: c.boolean('mid_block_add_attention', true),
  };
  c.equalLengths({ down_block_types: config.down_block_types, up_block_types: config.up_block_types, block_out_channels: config.block_out_channels });
  return config;
}

/** Reads diffusers' config.json; unknown or contradictory entries are errors that name them. */
export function parseAutoencoderKLConfig(json: unknown, file = 'config.json'): AutoencoderKLConfig {
  const c: ConfigReader = new ConfigReader(json, file, 'AutoencoderKL');
  const config = parseAutoencoder(c);
  c.absent('latents_mean', 'latents_std');
  c.finish();
  return config;
}

/** A name filter for `WeightStore.load`, for programs that build one half of an autoencoder only. */
export const autoencoderHalf = (half: 'encoder' | 'decoder') => (name: string): string | null => ((half === 'encoder') === /^(encoder|quant_conv)\./.test(name) ? currentName(name) : null);

/** Type of the activations where `wanted` is asked for: f16 only for autoencoders whose config has `force_upcast` false. diffusers' default is true. */
export const autoencoderType = ({ force_upcast }: Pick<AutoencoderKLConfig, 'force_upcast'>, wanted: 'f32' | 'f16' = 'f32'): 'f32' | 'f16' => (force_upcast ? 'f32' : wanted);

/** Pixels of an image for one of its latent, along each axis. */
export const latentFactor = ({ block_out_channels }: Pick<AutoencoderKLConfig, 'block_out_channels'>): number => 2 ** (block_out_channels.length - 1);

const base = (config: AutoencoderKLConfig): Omit<ResnetOptions, 'out'> => ({ temb: undefined, timeScaleShift: 'default', groups: config.norm_num_groups, eps: 1e-6, act: config.act_fn, dropout: 0 });

const attentionBlock = (ctx: ModelContext, name: string, x: Tensor, config: AutoencoderKLConfig): Tensor =>
  selfAttention(ctx, name, x, { heads: 1, headDim: x.shape[3]!, groups: config.norm_num_groups, eps: 1e-6 });

const midBlock = (ctx: ModelContext, x: Tensor, config: AutoencoderKLConfig): Tensor =>
  module(ctx, 'mid_block', () => recomputable(ctx, () => {
    const out = x.shape[3]!;
    let h = resnet(ctx, 'resnets.0', x, { ...base(config), out });
    if (config.mid_block_add_attention) h = attentionBlock(ctx, 'attentions.0', h, config);
    return resnet(ctx, 'resnets.1', h, { ...base(config), out });
  }));

const normOut = (ctx: ModelContext, x: Tensor, config: AutoencoderKLConfig): Tensor => groupNorm(ctx, 'conv_norm_out', x, { groups: config.norm_num_groups, eps: 1e-6, act: 'silu' });

/** A Gaussian over latents, [N,latent_channels,h,w] each. */
export interface LatentDistribution {
  readonly mean: Tensor;
  /** Limited to [−30, 20]. */
  readonly logvar: Tensor;
}

/** Adds the encoder: `image` [N,in_channels,H,W] in [−1,1], H and W multiples of {@link latentFactor}. */
export function encodeImage(ctx: ModelContext, config: AutoencoderKLConfig, image: Tensor): LatentDistribution {
  const { shape } = image;
  const factor = latentFactor(config);
  if (shape.length !== 4 || shape[1] !== config.in_channels || shape[2]! % factor || shape[3]! % factor) {
    throw new BruitError('shape', `AutoencoderKL: image ${showShape(shape)} must be [N, ${config.in_channels}, H, W] with H and W multiples of ${factor}`);
  }
  let h = ctx.graph.scope('encoder', () => {
    const channels = config.block_out_channels;
    let x = conv(ctx, 'conv_in', cast(transpose(image, [0, 2, 3, 1]), autoencoderType(config, ctx.computeType)), channels[0]!);
    config.down_block_types.forEach((type, i) => {
      x = module(ctx, `down_blocks.${i}`, () => recomputable(ctx, () => {
        let y = x;
        for (let j = 0; j < config.layers_per_block; j++) {
          y = resnet(ctx, `resnets.${j}`, y, { ...base(config), out: channels[i]! });
          if (type === 'AttnDownEncoderBlock2D') y = attentionBlock(ctx, `attentions.${j}`, y, config);
        }
        return i === channels.length - 1 ? y : downsampleConv(ctx, 'downsamplers.0', y, 0);
      }));
    });
    return conv(ctx, 'conv_out', normOut(ctx, midBlock(ctx, x, config), config), 2 * config.latent_channels);
  });
  if (config.use_quant_conv) h = conv(ctx, 'quant_conv', h, 2 * config.latent_channels, { kernel: 1 });
  const [mean, logvar] = split(transpose(cast(h, 'f32'), [0, 3, 1, 2]), 1, [config.latent_channels, config.latent_channels]) as [Tensor, Tensor];
  return { mean, logvar: clamp(logvar, -30, 20) };
}

/** mean + e^(logvar/2) · noise: a sample of the Gaussian, given standard normal `noise` of its shape. */
export const sampleLatent = ({ mean, logvar }: LatentDistribution, noise: Tensor): Tensor => add(mean, mul(exp(scale(logvar, 0.5)), noise));

/** Latents of the autoencoder as diffusion models see them. */
export const scaleLatent = (config: AutoencoderKLConfig, latent: Tensor): Tensor => scale(shift(latent, -config.shift_factor), config.scaling_factor);

/** Back from what diffusion models see. */
export const unscaleLatent = (config: AutoencoderKLConfig, latent: Tensor): Tensor => shift(scale(latent, 1 / config.scaling_factor), config.shift_factor);

/** Adds the decoder: `latent` [N,latent_channels,h,w], unscaled, to an image [N,out_channels,H,W] of about [−1,1]. */
export const decodeLatent = (ctx: ModelContext, config: AutoencoderKLConfig, latent: Tensor): Tensor => decodeRest(ctx, config, decodeStart(ctx, config, latent, 0), 0);

/** The decoder up to its first `blocks` up blocks: what works at the latent's size and sees all of it, then growing. [N,h',w',C]. */
export function decodeStart(ctx: ModelContext, config: AutoencoderKLConfig, latent: Tensor, blocks: number): Tensor {
  const { shape } = latent;
  if (shape.length !== 4 || shape[1] !== config.latent_channels) throw new BruitError('shape', `AutoencoderKL: latent ${showShape(shape)} must be [N, ${config.latent_channels}, h, w] (latent_channels of its config)`);
  let h = cast(transpose(latent, [0, 2, 3, 1]), autoencoderType(config, ctx.computeType));
  if (config.use_post_quant_conv) h = conv(ctx, 'post_quant_conv', h, config.latent_channels, { kernel: 1 });
  return ctx.graph.scope('decoder', () => {
    let x = midBlock(ctx, conv(ctx, 'conv_in', h, config.block_out_channels[config.block_out_channels.length - 1]!), config);
    for (let i = 0; i < blocks; i++) x = upBlock(ctx, x, config, i);
    return x;
  });
}

/** The decoder behind {@link decodeStart}, to the image [N,out_channels,H,W]. */
export const decodeRest = (ctx: ModelContext, config: AutoencoderKLConfig, features: Tensor, from: number): Tensor =>
  ctx.graph.scope('decoder', () => {
    let x = features;
    for (let i = from; i < config.up_block_types.length; i++) x = upBlock(ctx, x, config, i);
    return transpose(cast(conv(ctx, 'conv_out', normOut(ctx, x, config), config.out_channels), 'f32'), [0, 3, 1, 2]);
  });

const upBlock = (ctx: ModelContext, x: Tensor, config: AutoencoderKLConfig, i: number): Tensor =>
  module(ctx, `up_blocks.${i}`, () => recomputable(ctx, () => {
    const last = config.block_out_channels.length - 1;
    for (let j = 0; j <= config.layers_per_block; j++) {
      x = resnet(ctx, `resnets.${j}`, x, { ...base(config), out: config.block_out_channels[last - i]! });
      if (config.up_block_types[i] === 'AttnUpDecoderBlock2D') x = attentionBlock(ctx, `attentions.${j}`, x, config);
    }
    return i === last ? x : upsampleConv(ctx, 'upsamplers.0', x, [x.shape[1]! * 2, x.shape[2]! * 2]);
  }));
