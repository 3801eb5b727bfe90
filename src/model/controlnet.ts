/**
 * ControlNetModel (Zhang et al. 2023): a copy of a U-Net's down path that reads an image of edges, depth, poses, … and gives residuals for the
 * U-Net's skip connections, as diffusers defines it. Built from diffusers' config.json as it is; weights go by diffusers' names.
 */
import { check } from '../engine/errors';
import type { Tensor } from '../engine/graph';
import { concat, pad, slice, transpose } from '../engine/ops/copy';
import { add, cast, mul, scale, silu } from '../engine/ops/pointwise';
import { mean } from '../engine/ops/sum';
import { ConfigReader } from './config';
import { checkInput, conv, module, recomputable, type ModelContext } from './layers';
import { condition, ConditionedBlocks, conditionInputs, downPath, parseShared, type ConditionedConfig, type ConditionInputs, type ConditionSizes, type ControlResiduals } from './unet2d_condition';

export interface ControlNetConfig extends ConditionedConfig {
  readonly conditioning_channels: number;
  readonly controlnet_conditioning_channel_order: 'rgb' | 'bgr';
  readonly conditioning_embedding_out_channels: readonly number[];
  /** Residuals are means over the image. */
  readonly global_pool_conditions: boolean;
}

/** Reads diffusers' config.json; unknown or contradictory entries are errors that name them. */
export function parseControlNetConfig(json: unknown, file = 'config.json'): ControlNetConfig {
  const c = new ConfigReader(json, file, 'ControlNetModel');
  const shared = parseShared(c, { additions: ['text', 'text_time'], simple: false });
  const levels = shared.block_out_channels.length;
  const layers = c.integer('layers_per_block', 2);
  const config: ControlNetConfig = {
    ...shared,
    layers_per_block: new Array<number>(levels).fill(layers),
    only_cross_attention: c.booleanPerLevel('only_cross_attention', false, levels),
    num_attention_heads: c.integerPerLevel('num_attention_heads', shared.attention_head_dim, levels),
    conditioning_channels: c.integer('conditioning_channels', 3),
    controlnet_conditioning_channel_order: c.choice('controlnet_conditioning_channel_order', ['rgb', 'bgr'], 'rgb'),
    conditioning_embedding_out_channels: c.integers('conditioning_embedding_out_channels', [16, 32, 96, 256]),
    global_pool_conditions: c.boolean('global_pool_conditions', false),
    mid_block_type: c.choice('mid_block_type', ['UNetMidBlock2DCrossAttn', 'UNetMidBlock2D'] as const, 'UNetMidBlock2DCrossAttn'),
    // What ControlNetModel has no choice in.
    mid_block_only_cross_attention: false,
    dropout: 0,
    dual_cross_attention: false,
    resnet_skip_time_act: false,
    resnet_out_scale_factor: 1,
    time_embedding_type: 'positional',
    time_embed_dim: shared.block_out_channels[0]! * 4,
    time_embedding_act_fn: null,
    timestep_post_act: null,
    time_cond_proj_dim: null,
    conv_in_kernel: 3,
    class_embeddings_concat: false,
    cross_attention_norm: null,
  };
  c.finish();
  if (config.encoder_hid_dim !== null) c.fail('encoder_hid_dim is not supported: diffusers stores that projection in a ControlNet, but never applies it');
  if (config.class_embed_type === 'simple_projection') c.fail('class_embed_type "simple_projection" does not exist in a ControlNet');
  return config;
}

export interface ControlNetInputs extends ConditionInputs {
  /** The control image [N, conditioning_channels, 8·H, 8·W] in [0,1] (8 for the usual four widths of conditioning_embedding_out_channels). */
  readonly controlnetCond: Tensor;
  /** Factor on all residuals; a tensor [1] f32 where it changes from step to step (control_guidance_start and _end). */
  readonly conditioningScale?: number | Tensor;
  /** Residuals from a tenth at full resolution to the whole in the middle: follow the image even with an empty prompt. */
  readonly guessMode?: boolean;
}

/** Adds the forward pass to the graph. */
export function controlNet(ctx: ModelContext, config: ControlNetConfig, { controlnetCond, conditioningScale = 1, guessMode = false, ...inputs }: ControlNetInputs): ControlResiduals {
  const model = 'ControlNetModel';
  const conditioned = condition(ctx, model, config, inputs);
  const blocks = new ConditionedBlocks(ctx, config, conditioned);
  const widths = config.conditioning_embedding_out_channels;
  const factor = 2 ** (widths.length - 1);
  const [batch, , height, width] = inputs.sample.shape as [number, number, number, number];
  checkInput(model, 'controlnet_cond', controlnetCond, [batch, config.conditioning_channels, height * factor, width * factor], `${factor} times the sample's height and width`);

  let image = cast(transpose(controlnetCond, [0, 2, 3, 1]), ctx.computeType ?? 'f32');
  if (config.controlnet_conditioning_channel_order === 'bgr') image = concat(Array.from({ length: config.conditioning_channels }, (_, i) => slice(image, 3, config.conditioning_channels - 1 - i, 1)), 3);
  const embedding = module(ctx, 'controlnet_cond_embedding', () => {
    let h = silu(conv(ctx, 'conv_in', image, widths[0]!));
    widths.slice(1).forEach((next, i) => {
      h = silu(conv(ctx, `blocks.${2 * i}`, h, widths[i]!));
      h = silu(conv(ctx, `blocks.${2 * i + 1}`, h, next, { stride: 2 }));
    });
    return conv(ctx, 'conv_out', h, config.block_out_channels[0]!);
  });
  const { h, residuals } = downPath(ctx, config, blocks, add(conv(ctx, 'conv_in', conditioned.sample, config.block_out_channels[0]!), embedding));
  const middle = module(ctx, 'mid_block', () => recomputable(ctx, () => blocks.mid(h)));

  const count = residuals.length;
  const finish = (name: string, residual: Tensor, i: number): Tensor => {
    let y = conv(ctx, name, residual, residual.shape[3]!, { kernel: 1 });
    // torch.logspace(-1, 0): from 0.1 to 1.
    if (guessMode && !config.global_pool_conditions) y = scale(y, 10 ** (i / count - 1));
    y = typeof conditioningScale === 'number' ? scale(y, conditioningScale) : mul(y, conditioningScale);
    return config.global_pool_conditions ? mean(y, [1, 2]) : y;
  };
  return { down: residuals.map((r, i) => finish(`controlnet_down_blocks.${i}`, r!, i)), mid: finish('controlnet_mid_block', middle, count) };
}

/** Several ControlNets on one U-Net: the sum of their residuals. */
export function sumResiduals(all: readonly ControlResiduals[]): ControlResiduals {
  check(all.length > 0, 'input', () => 'there are no residuals to be added');
  return all.reduce((a, b) => {
    check(a.down.length === b.down.length, 'shape', () => `ControlNets with ${a.down.length} and ${b.down.length} residuals cannot be used together`);
    return { down: a.down.map((t, i) => add(t, b.down[i]!)), mid: add(a.mid, b.mid) };
  });
}

/** Residuals of a batch of conditional images for a doubled batch [negative; positive]: none for the negative half (guess mode with guidance). */
export function forPositiveHalf({ down, mid }: ControlResiduals): ControlResiduals {
  const padded = (t: Tensor): Tensor => pad(t, 0, t.shape[0]!, 0);
  return { down: down.map(padded), mid: padded(mid) };
}

/** Fresh input leaves, called as in diffusers. */
export function controlNetInputs(ctx: ModelContext, config: ControlNetConfig, sizes: ConditionSizes): ControlNetInputs {
  const [n, height, width] = sizes.sample;
  const factor = 2 ** (config.conditioning_embedding_out_channels.length - 1);
  return { ...conditionInputs(ctx, config, sizes), controlnetCond: ctx.graph.input('controlnet_cond', [n, config.conditioning_channels, height * factor, width * factor]) };
}
