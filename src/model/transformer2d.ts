/**
 * Transformer2DModel as a denoiser of its own: DiT (Peebles & Xie 2023), over patches with adaLN-Zero, or the transformer of the U-Nets over a
 * feature map. Built from diffusers' config.json as it is; weights go by diffusers' names.
 */
import { BruitError } from '../engine/errors';
import type { Tensor } from '../engine/graph';
import { split, transpose } from '../engine/ops/copy';
import { add, cast, silu } from '../engine/ops/pointwise';
import { reshape } from '../engine/ops/reshape';
import { timestepEmbedding } from '../engine/ops/timestep_embedding';
import { ConfigReader } from './config';
import { checkInput, conv, embed, hoistable, layerNorm, linear, module, recomputable, timestepMlp, type ModelContext } from './layers';
import { featureTransformerLayers, feedForwardActivations, maskToBias, modulate, transformerBlock, type FeedForwardActivation, type TransformerBlockOptions } from './transformer';

/** Keys, names and defaults are diffusers'. */
export interface Transformer2DConfig {
  readonly num_attention_heads: number;
  readonly attention_head_dim: number;
  readonly in_channels: number;
  readonly out_channels: number;
  readonly num_layers: number;
  readonly dropout: number;
  readonly norm_num_groups: number;
  readonly cross_attention_dim: number | null;
  readonly attention_bias: boolean;
  /** Height and width that a model over patches has positions for. */
  readonly sample_size: number | null;
  /** `null`: works on feature maps instead of patches. */
  readonly patch_size: number | null;
  readonly activation_fn: FeedForwardActivation;
  /** Number of classes; one more, the last, stands for "none". */
  readonly num_embeds_ada_norm: number | null;
  readonly use_linear_projection: boolean;
  readonly only_cross_attention: boolean;
  readonly double_self_attention: boolean;
  readonly norm_type: 'layer_norm' | 'ada_norm_zero';
  readonly norm_elementwise_affine: boolean;
}

/** Reads diffusers' config.json; unknown or contradictory entries are errors that name them. */
export function parseTransformer2DConfig(json: unknown, file = 'config.json'): Transformer2DConfig {
  const c = new ConfigReader(json, file, 'Transformer2DModel');
  const inChannels = c.nullableInteger('in_channels', null);
  if (inChannels === null) return c.fail('"in_channels" is missing; models over discrete images (num_vector_embeds) are not supported');
  const config: Transformer2DConfig = {
    num_attention_heads: c.integer('num_attention_heads', 16),
    attention_head_dim: c.integer('attention_head_dim', 88),
    in_channels: inChannels,
    out_channels: c.nullableInteger('out_channels', null) ?? inChannels,
    num_layers: c.integer('num_layers', 1),
    dropout: c.number('dropout', 0),
    norm_num_groups: c.integer('norm_num_groups', 32),
    cross_attention_dim: c.nullableInteger('cross_attention_dim', null),
    attention_bias: c.boolean('attention_bias', false),
    sample_size: c.nullableInteger('sample_size', null),
    patch_size: c.nullableInteger('patch_size', null),
    activation_fn: c.choice('activation_fn', feedForwardActivations, 'geglu'),
    num_embeds_ada_norm: c.nullableInteger('num_embeds_ada_norm', null),
    use_linear_projection: c.boolean('use_linear_projection', false),
    only_cross_attention: c.boolean('only_cross_attention', false),
    double_self_attention: c.boolean('double_self_attention', false),
    norm_type: c.choice('norm_type', ['layer_norm', 'ada_norm_zero'], 'layer_norm'),
    norm_elementwise_affine: c.boolean('norm_elementwise_affine', true),
  };
  c.fixed('num_vector_embeds', null, 'models over discrete images are not supported');
  c.fixed('attention_type', 'default', 'gated self-attention (GLIGEN) is not supported');
  c.nullableBoolean('upcast_attention', false); // attention is f32 here in any case
  c.finish();
  if (config.dropout < 0 || config.dropout >= 1) c.fail(`dropout ${config.dropout} is not in [0, 1)`);
  if (config.norm_type === 'ada_norm_zero' && config.num_embeds_ada_norm === null) c.fail('norm_type "ada_norm_zero" needs num_embeds_ada_norm');
  if (config.norm_type === 'layer_norm' && config.num_embeds_ada_norm !== null) c.fail('num_embeds_ada_norm without norm_type "ada_norm_zero" means "ada_norm" in diffusers, which is not supported');
  if (config.patch_size !== null) {
    if (config.norm_type !== 'ada_norm_zero') c.fail('a model over patches needs norm_type "ada_norm_zero": its last layer reads that embedding');
    if (config.sample_size === null) return c.fail('a model over patches needs sample_size');
    if (config.sample_size % config.patch_size) c.fail(`sample_size ${config.sample_size} does not divide into patches of ${config.patch_size}`);
    if ((config.num_attention_heads * config.attention_head_dim) % 4) c.fail('num_attention_heads · attention_head_dim must be divisible by 4, for sines and cosines of two coordinates');
  }
  return config;
}

export interface Transformer2DInputs {
  /** [N, in_channels, H, W]. */
  readonly sample: Tensor;
  /** f32 [N]; for norm_type "ada_norm_zero". */
  readonly timestep?: Tensor | undefined;
  /** i32 [N]; for norm_type "ada_norm_zero". num_embeds_ada_norm is the class "none". */
  readonly classLabels?: Tensor | undefined;
  /** [N, M, cross_attention_dim]. */
  readonly encoderHiddenStates?: Tensor | undefined;
  /** [N, T] and [N, M]; 1 keeps a token, 0 discards it. */
  readonly attentionMask?: Tensor | undefined;
  readonly encoderAttentionMask?: Tensor | undefined;
}

/** Adds the forward pass to the graph; returns [N, out_channels, H, W]. */
export function transformer2d(ctx: ModelContext, config: Transformer2DConfig, inputs: Transformer2DInputs): Tensor {
  const { sample, timestep, classLabels, encoderHiddenStates: text, attentionMask, encoderAttentionMask } = inputs;
  const model = 'Transformer2DModel';
  const { patch_size: patch, num_attention_heads: heads, attention_head_dim: headDim } = config;
  const size = patch === null ? undefined : config.sample_size!;
  checkInput(model, 'sample', sample, ['N', config.in_channels, size ?? 'H', size ?? 'W'], `in_channels${size === undefined ? '' : ' and sample_size'} of its config`);
  const [batch] = sample.shape as [number];
  const type = ctx.computeType ?? 'f32';
  for (const [name, mask] of [['attention_mask', attentionMask], ['encoder_attention_mask', encoderAttentionMask]] as const) if (mask) checkInput(model, name, mask, [batch, 'M']);

  const adaptive = config.norm_type === 'ada_norm_zero';
  if (adaptive && (!timestep || !classLabels)) throw new BruitError('input', `${model}: norm_type "ada_norm_zero" needs a timestep and class labels`);
  // Each block embeds time step and class by weights of its own.
  const embedding = (width: number): Tensor =>
    module(ctx, 'emb', () => {
      const time = timestepMlp(ctx, 'timestep_embedder', timestepEmbedding(timestep!, { dim: 256, flipSinToCos: true, freqShift: 1 }), { width });
      return add(time, embed(ctx, 'class_embedder.embedding_table', classLabels!, config.num_embeds_ada_norm! + 1, width));
    });
  const block: TransformerBlockOptions = {
    heads,
    headDim,
    activation: config.activation_fn,
    attentionBias: config.attention_bias,
    dropout: config.dropout,
    crossAttentionDim: config.cross_attention_dim,
    onlyCrossAttention: config.only_cross_attention,
    doubleSelfAttention: config.double_self_attention,
    context: text && { states: cast(text, type), mask: encoderAttentionMask && maskToBias(encoderAttentionMask) },
    mask: attentionMask && maskToBias(attentionMask),
    affine: config.norm_elementwise_affine,
    ...(adaptive && { modulation: (width: number) => linear(ctx, 'linear', silu(embedding(width)), 6 * width) }),
  };
  const x = cast(transpose(sample, [0, 2, 3, 1]), type);
  if (patch === null) {
    const y = featureTransformerLayers(ctx, x, { ...block, layers: config.num_layers, groups: config.norm_num_groups, linearProjection: config.use_linear_projection });
    return transpose(cast(y, 'f32'), [0, 3, 1, 2]);
  }

  const width = heads * headDim;
  const side = size! / patch;
  let h = module(ctx, 'pos_embed', () => {
    const patches = conv(ctx, 'proj', x, width, { kernel: patch, stride: patch });
    return add(reshape(patches, [batch, side * side, width]), ctx.graph.constant('positions', [1, side * side, width], sinCosPositions(width, side)));
  });
  for (let i = 0; i < config.num_layers; i++) h = recomputable(ctx, () => transformerBlock(ctx, `transformer_blocks.${i}`, h, block));
  const gates = hoistable(ctx, 'proj_out_1', 'time', () => linear(ctx, 'proj_out_1', silu(ctx.graph.scope('transformer_blocks.0.norm1', () => embedding(width))), 2 * width));
  const [offset, factor] = split(reshape(gates, [-1, 1, 2 * width]), 2, [width, width]) as [Tensor, Tensor];
  h = modulate(layerNorm(ctx, 'norm_out', h, { eps: 1e-6, affine: false }), offset, factor);
  const y = cast(linear(ctx, 'proj_out_2', h, patch * patch * config.out_channels), 'f32');
  const pixels = transpose(reshape(y, [batch, side, side, patch, patch, config.out_channels]), [0, 5, 1, 3, 2, 4]);
  return reshape(pixels, [batch, config.out_channels, size!, size!]);
}

/** Sines and cosines of the column, then of the row (diffusers' get_2d_sincos_pos_embed), [side², width], computed in float64. */
function sinCosPositions(width: number, side: number): Float32Array {
  const quarter = width / 4;
  const out = new Float32Array(side * side * width);
  for (let p = 0; p < side * side; p++) {
    [p % side, Math.floor(p / side)].forEach((position, half) => {
      for (let i = 0; i < quarter; i++) {
        const angle = position / 10000 ** (i / quarter);
        out[p * width + half * 2 * quarter + i] = Math.sin(angle);
        out[p * width + half * 2 * quarter + quarter + i] = Math.cos(angle);
      }
    });
  }
  return out;
}

/** Fresh input leaves `sample`, `timestep`, `class_labels` and `encoder_hidden_states`, as the config asks for. */
export function transformer2dInputs({ graph }: ModelContext, config: Transformer2DConfig, [n, height, width]: readonly [number, number, number], tokens = 0): Transformer2DInputs {
  const adaptive = config.norm_type === 'ada_norm_zero';
  return {
    sample: graph.input('sample', [n, config.in_channels, height, width]),
    timestep: adaptive ? graph.input('timestep', [n]) : undefined,
    classLabels: adaptive ? graph.input('class_labels', [n], 'i32') : undefined,
    encoderHiddenStates: tokens > 0 ? graph.input('encoder_hidden_states', [n, tokens, config.cross_attention_dim ?? config.num_attention_heads * config.attention_head_dim]) : undefined,
  };
}
