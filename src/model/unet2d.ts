/**
 * UNet2DModel: the unconditional or class-conditional denoiser of DDPM (Ho et al. 2020) and its successors, as diffusers defines it.
 * Built from diffusers' config.json as it is; weights go by diffusers' names.
 */
import { BruitError } from '../engine/errors';
import type { Tensor } from '../engine/graph';
import { transpose } from '../engine/ops/copy';
import { add, cast, div, scale, shift, type PointwiseName } from '../engine/ops/pointwise';
import { reshape } from '../engine/ops/reshape';
import { gaussianFourierProjection, timestepEmbedding } from '../engine/ops/timestep_embedding';
import { showShape } from '../engine/shape';
import { firDownsample, firUpsample, resnet, selfAttention, type AttentionOptions } from './blocks';
import { ConfigReader } from './config';
import { isKType, kDownBlock, kDownTypes, kUpBlock, kUpTypes } from './k_blocks';
import { activation, activationName, conv, embed, groupNorm, module, recomputable, timestepMlp, type ModelContext } from './layers';
import { downBlock, downKinds, midBlock, takeResiduals, upBlock, upKinds, withResidual, type Residual, type ResnetBase } from './unet_blocks';

const downTypes = ['DownBlock2D', 'AttnDownBlock2D', 'ResnetDownsampleBlock2D', 'SkipDownBlock2D', 'AttnSkipDownBlock2D', ...kDownTypes] as const;
const upTypes = ['UpBlock2D', 'AttnUpBlock2D', 'ResnetUpsampleBlock2D', 'SkipUpBlock2D', 'AttnSkipUpBlock2D', ...kUpTypes] as const;
type DownType = (typeof downTypes)[number];
type UpType = (typeof upTypes)[number];

/** Keys, names and defaults are diffusers'. */
export interface UNet2DConfig {
  readonly sample_size: readonly [number, number] | undefined;
  readonly in_channels: number;
  readonly out_channels: number;
  readonly center_input_sample: boolean;
  readonly time_embedding_type: 'positional' | 'fourier' | 'learned';
  readonly freq_shift: number;
  readonly flip_sin_to_cos: boolean;
  readonly down_block_types: readonly DownType[];
  readonly up_block_types: readonly UpType[];
  readonly block_out_channels: readonly number[];
  readonly layers_per_block: number;
  readonly mid_block_type: 'UNetMidBlock2D' | null;
  readonly mid_block_scale_factor: number;
  readonly downsample_padding: number;
  readonly downsample_type: 'conv' | 'resnet';
  readonly upsample_type: 'conv' | 'resnet';
  readonly dropout: number;
  readonly act_fn: PointwiseName;
  readonly attention_head_dim: number | null;
  /** `null`: a quarter of the channels, at most 32, where a block does not choose its own. */
  readonly norm_num_groups: number | null;
  readonly attn_norm_num_groups: number | null;
  readonly norm_eps: number;
  readonly resnet_time_scale_shift: 'default' | 'scale_shift' | 'ada_group';
  readonly add_attention: boolean;
  readonly class_embed_type: 'timestep' | 'identity' | null;
  readonly num_class_embeds: number | null;
  readonly num_train_timesteps: number | null;
}

/** Reads diffusers' config.json; unknown or contradictory entries are errors that name them. */
export function parseUNet2DConfig(json: unknown, file = 'config.json'): UNet2DConfig {
  const c = new ConfigReader(json, file, 'UNet2DModel');
  const channels = c.integers('block_out_channels', [224, 448, 672, 896]);
  const config: UNet2DConfig = {
    sample_size: c.size('sample_size'),
    in_channels: c.integer('in_channels', 3),
    out_channels: c.integer('out_channels', 3),
    center_input_sample: c.boolean('center_input_sample', false),
    time_embedding_type: c.choice('time_embedding_type', ['positional', 'fourier', 'learned'], 'positional'),
    freq_shift: c.number('freq_shift', 0),
    flip_sin_to_cos: c.boolean('flip_sin_to_cos', true),
    down_block_types: c.choices('down_block_types', downTypes, ['DownBlock2D', 'AttnDownBlock2D', 'AttnDownBlock2D', 'AttnDownBlock2D'], { strip: 'UNetRes' }),
    up_block_types: c.choices('up_block_types', upTypes, ['AttnUpBlock2D', 'AttnUpBlock2D', 'AttnUpBlock2D', 'UpBlock2D'], { strip: 'UNetRes' }),
    block_out_channels: channels,
    layers_per_block: c.integer('layers_per_block', 2),
    mid_block_type: c.nullableChoice('mid_block_type', ['UNetMidBlock2D'], 'UNetMidBlock2D'),
    mid_block_scale_factor: c.number('mid_block_scale_factor', 1),
    downsample_padding: c.integer('downsample_padding', 1, 0),
    downsample_type: c.choice('downsample_type', ['conv', 'resnet'], 'conv'),
    upsample_type: c.choice('upsample_type', ['conv', 'resnet'], 'conv'),
    dropout: c.number('dropout', 0),
    act_fn: activationName(c.string('act_fn', 'silu')),
    attention_head_dim: c.nullableInteger('attention_head_dim', 8),
    norm_num_groups: c.nullableInteger('norm_num_groups', 32),
    attn_norm_num_groups: c.nullableInteger('attn_norm_num_groups', null),
    norm_eps: c.number('norm_eps', 1e-5),
    resnet_time_scale_shift: c.choice('resnet_time_scale_shift', ['default', 'scale_shift', 'ada_group'], 'default'),
    add_attention: c.boolean('add_attention', true),
    class_embed_type: c.nullableChoice('class_embed_type', ['timestep', 'identity'], null),
    num_class_embeds: c.nullableInteger('num_class_embeds', null),
    num_train_timesteps: c.nullableInteger('num_train_timesteps', null),
  };
  c.absent('time_embedding_dim');
  c.finish();
  c.equalLengths({ down_block_types: config.down_block_types, up_block_types: config.up_block_types, block_out_channels: channels });
  if (config.time_embedding_type === 'learned' && config.num_train_timesteps === null) c.fail('time_embedding_type "learned" needs num_train_timesteps');
  if (config.dropout < 0 || config.dropout >= 1) c.fail(`dropout ${config.dropout} is not in [0, 1)`);
  return config;
}

export interface UNet2DInputs {
  /** Noisy images [N, in_channels, H, W]. */
  readonly sample: Tensor;
  /** f32 [N], may be fractional; i32 [N] for time_embedding_type "learned". */
  readonly timestep: Tensor;
  /** i32 [N], or f32 [N] for class_embed_type "timestep", or f32 [N, D] for "identity". */
  readonly classLabels?: Tensor;
}

/** What the skip blocks of score-SDE hand on beside the features. */
interface Flow {
  h: Tensor;
  /** Image pyramid of the skip blocks. */
  skip: Tensor | undefined;
}

/** Adds the U-Net's forward pass to the graph; returns the prediction [N, out_channels, H, W]. */
export function unet2d(ctx: ModelContext, config: UNet2DConfig, { sample, timestep, classLabels }: UNet2DInputs): Tensor {
  const { graph } = ctx;
  const { block_out_channels: channels, norm_eps: eps, act_fn: act } = config;
  if (sample.shape.length !== 4 || sample.shape[1] !== config.in_channels) {
    throw new BruitError('shape', `UNet2DModel: sample ${showShape(sample.shape)} must be [N, ${config.in_channels}, H, W] (in_channels of its config)`);
  }
  const [batch] = sample.shape as [number];
  const first = channels[0]!;
  const timeWidth = first * 4;

  let x = transpose(sample, [0, 2, 3, 1]);
  if (config.center_input_sample) x = shift(scale(x, 2), -1);
  // The time embedding stays f32: it is small, and its arguments reach 1000.
  x = cast(x, ctx.computeType ?? 'f32');

  const project = (t: Tensor): Tensor =>
    config.time_embedding_type === 'fourier'
      ? gaussianFourierProjection(t, ctx.parameters.get('time_proj.weight', [first], 'plain', { kind: 'normal', std: 16 }, false), { flipSinToCos: false, log: true })
      : config.time_embedding_type === 'learned'
        ? embed(ctx, 'time_proj', t, config.num_train_timesteps!, first)
        : timestepEmbedding(t, { dim: first, flipSinToCos: config.flip_sin_to_cos, freqShift: config.freq_shift });
  const time = module(ctx, 'time_proj', () => project(timestep));
  let emb = timestepMlp(ctx, 'time_embedding', time, { width: timeWidth });
  const classes = classEmbedding(ctx, config, classLabels, project, timeWidth);
  if (classes) emb = add(emb, classes);
  // Every residual block applies the activation to the same embedding: once is enough.
  const temb = config.resnet_time_scale_shift === 'ada_group' ? emb : activation(emb, act);

  const groupsOf = (width: number): number => config.norm_num_groups ?? Math.min(Math.floor(width / 4), 32);
  const base = { temb, timeScaleShift: config.resnet_time_scale_shift, eps, act, dropout: config.dropout };
  const headsOf = (width: number): Heads => {
    const dim = config.attention_head_dim ?? width;
    return { heads: Math.floor(width / dim), headDim: dim };
  };

  const flow: Flow = { h: conv(ctx, 'conv_in', x, first), skip: x };
  const residuals: Residual[] = [flow.h];
  const shared = (out: number, last: boolean) => {
    const heads = headsOf(out);
    const groups = groupsOf(out);
    const attend = (_: string, name: string, h: Tensor): Tensor => selfAttention(ctx, name, h, { ...heads, groups, eps });
    return { out, last, resnet: { ...base, groups }, attend, heads, layers: config.layers_per_block };
  };
  const k = (headDim: number) => ({ emb, eps, act, dropout: config.dropout, headDim });
  config.down_block_types.forEach((type, i) => {
    const o = { ...shared(channels[i]!, i === channels.length - 1), residuals };
    graph.scope(`down_blocks.${i}`, () =>
      recomputable(ctx, () => {
        if (isSkip(type)) Object.assign(flow, skipDownBlock(ctx, type, flow, o));
        else if (isKType(type)) flow.h = kDownBlock(ctx, type, flow.h, { ...o, ...k(o.heads.headDim) });
        else flow.h = downBlock(ctx, downKinds[type], flow.h, { ...o, downsamplePadding: config.downsample_padding, ...(type === 'AttnDownBlock2D' && { resample: config.downsample_type }) });
      }),
    );
    ctx.tap?.(`down_blocks.${i}`, flow.h);
  });

  if (config.mid_block_type) {
    const outputScale = config.mid_block_scale_factor;
    const heads = headsOf(channels[channels.length - 1]!);
    const groups = groupsOf(channels[channels.length - 1]!);
    // diffusers gives the mid block's attention no norm of its own where the time embedding scales and shifts.
    const midGroups = config.attn_norm_num_groups ?? (config.resnet_time_scale_shift === 'default' ? groups : undefined);
    const attend = config.add_attention ? (name: string, h: Tensor): Tensor => selfAttention(ctx, name, h, { ...heads, groups: midGroups, eps, outputScale }) : undefined;
    flow.h = module(ctx, 'mid_block', () => recomputable(ctx, () => midBlock(ctx, flow.h, { resnet: { ...base, groups, outputScale }, attend })));
  }

  const reversed = [...channels].reverse();
  flow.skip = undefined;
  config.up_block_types.forEach((type, i) => {
    // K blocks have a residual block less.
    const o = { ...shared(reversed[i]!, i === channels.length - 1), ...takeResiduals(residuals, config.layers_per_block + (isKType(type) ? 0 : 1)) };
    graph.scope(`up_blocks.${i}`, () =>
      recomputable(ctx, () => {
        if (isSkip(type)) Object.assign(flow, skipUpBlock(ctx, type, flow, o));
        else if (isKType(type)) flow.h = kUpBlock(ctx, type, flow.h, { ...o, ...k(o.heads.headDim), next: reversed[Math.min(i + 1, reversed.length - 1)]! });
        else flow.h = upBlock(ctx, upKinds[type], flow.h, { ...o, ...(type === 'AttnUpBlock2D' && { resample: config.upsample_type }) });
      }),
    );
    ctx.tap?.(`up_blocks.${i}`, flow.h);
  });

  let y = groupNorm(ctx, 'conv_norm_out', flow.h, { groups: groupsOf(channels[0]!), eps, act: 'silu' });
  y = cast(conv(ctx, 'conv_out', y, config.out_channels), 'f32');
  if (flow.skip) y = add(y, flow.skip);
  // Score networks divide by the noise level that the Fourier embedding was given (Song et al. 2021).
  if (config.time_embedding_type === 'fourier') y = div(y, reshape(timestep, [batch, 1, 1, 1]));
  return transpose(y, [0, 3, 1, 2]);
}

function classEmbedding(ctx: ModelContext, config: UNet2DConfig, labels: Tensor | undefined, project: (t: Tensor) => Tensor, width: number): Tensor | undefined {
  const wanted = config.class_embed_type !== null || config.num_class_embeds !== null;
  if (!wanted) {
    if (labels) throw new BruitError('input', 'UNet2DModel: class labels were given, but the config has neither class_embed_type nor num_class_embeds');
    return undefined;
  }
  if (!labels) throw new BruitError('input', 'UNet2DModel: the config has class embeddings, so class labels are needed');
  if (config.class_embed_type === 'timestep') return timestepMlp(ctx, 'class_embedding', project(labels), { width });
  if (config.class_embed_type === 'identity') return labels;
  return embed(ctx, 'class_embedding', labels, config.num_class_embeds!, width);
}

type Heads = Pick<AttentionOptions, 'heads' | 'headDim'>;
type SkipDown = 'SkipDownBlock2D' | 'AttnSkipDownBlock2D';
type SkipUp = 'SkipUpBlock2D' | 'AttnSkipUpBlock2D';

function isSkip(type: DownType): type is SkipDown;
function isSkip(type: UpType): type is SkipUp;
function isSkip(type: DownType | UpType): boolean {
  return type.includes('Skip');
}

interface SkipBlockOptions {
  readonly out: number;
  readonly last: boolean;
  readonly resnet: ResnetBase;
  readonly heads: Heads;
}

/** score-SDE's skip blocks choose their own group counts and divide by √2. */
const skipGroups = (channels: number): number => Math.min(Math.floor(channels / 4), 32);

const skipAttention = (ctx: ModelContext, name: string, h: Tensor, o: SkipBlockOptions): Tensor => selfAttention(ctx, name, h, { ...o.heads, groups: 32, eps: o.resnet.eps, outputScale: Math.SQRT2 });

function skipDownBlock(ctx: ModelContext, type: SkipDown, { h, skip }: Flow, o: SkipBlockOptions & { layers: number; residuals: Residual[] }): Flow {
  const { out, resnet: base, residuals } = o;
  for (let j = 0; j < o.layers; j++) {
    h = resnet(ctx, `resnets.${j}`, h, { ...base, out, groups: skipGroups(h.shape[3]!), groupsOut: skipGroups(out), outputScale: Math.SQRT2 });
    if (type === 'AttnSkipDownBlock2D') h = skipAttention(ctx, `attentions.${j}`, h, o);
    residuals.push(h);
  }
  if (o.last) return { h, skip };
  h = resnet(ctx, 'resnet_down', h, { ...base, out, groups: skipGroups(out), outputScale: Math.SQRT2, resample: firDownsample, forceShortcut: true });
  skip = module(ctx, 'downsamplers.0', () => firDownsample(skip!));
  if (skip.shape[3] !== 3) throw new BruitError('config', `${ctx.graph.path}: ${type} works on images of 3 channels (diffusers fixes its skip_conv to 3); in_channels is ${skip.shape[3]}`);
  h = add(conv(ctx, 'skip_conv', skip, out, { kernel: 1 }), h);
  residuals.push(h);
  return { h, skip };
}

function skipUpBlock(ctx: ModelContext, type: SkipUp, { h, skip }: Flow, o: SkipBlockOptions & { residuals: readonly Residual[] }): Flow {
  const { out, resnet: base, last } = o;
  const residuals = [...o.residuals];
  for (let j = 0; residuals.length; j++) {
    const features = h.shape[3]!;
    h = withResidual(ctx, h, residuals.pop());
    // AttnSkipUpBlock2D lacks a pair of brackets in diffusers; checkpoints were trained with what that computes.
    const groups = type === 'AttnSkipUpBlock2D' ? Math.min(features + Math.floor((h.shape[3]! - features) / 4), 32) : skipGroups(h.shape[3]!);
    h = resnet(ctx, `resnets.${j}`, h, { ...base, out, groups, groupsOut: skipGroups(out), outputScale: Math.SQRT2 });
  }
  if (type === 'AttnSkipUpBlock2D') h = skipAttention(ctx, 'attentions.0', h, o);
  skip = skip && module(ctx, 'upsampler', () => firUpsample(skip!));
  if (last) return { h, skip };
  let image = groupNorm(ctx, 'skip_norm', h, { groups: skipGroups(out), eps: base.eps, act: 'silu' });
  image = conv(ctx, 'skip_conv', image, 3);
  skip = skip ? add(skip, image) : image;
  h = resnet(ctx, 'resnet_up', h, { ...base, out, groups: skipGroups(out), groupsOut: skipGroups(out), outputScale: Math.SQRT2, resample: firUpsample, forceShortcut: true });
  return { h, skip };
}

/** Fresh input leaves `sample`, `timestep` and, where the config has classes, `class_labels` for images of [n, height, width], but for what is `given`. */
export function unet2dInputs(ctx: ModelContext, config: UNet2DConfig, [n, height, width]: readonly [number, number, number], given: Partial<UNet2DInputs> = {}): UNet2DInputs {
  const { graph } = ctx;
  const sample = given.sample ?? graph.input('sample', [n, config.in_channels, height, width]);
  const timestep = given.timestep ?? graph.input('timestep', [n], config.time_embedding_type === 'learned' ? 'i32' : 'f32');
  const width4 = config.block_out_channels[0]! * 4;
  if (config.class_embed_type === 'identity') return { sample, timestep, classLabels: graph.input('class_labels', [n, width4]) };
  if (config.class_embed_type === 'timestep') return { sample, timestep, classLabels: graph.input('class_labels', [n]) };
  return config.num_class_embeds === null ? { sample, timestep } : { sample, timestep, classLabels: graph.input('class_labels', [n], 'i32') };
}
