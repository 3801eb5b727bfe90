/**
 * UNet2DConditionModel: the text-conditioned denoiser of Stable Diffusion 1 and 2, SDXL, Karlo (unCLIP) and DeepFloyd IF, as diffusers defines it.
 * Built from diffusers' config.json as it is; weights go by diffusers' names.
 */
import { BruitError } from '../engine/errors';
import type { Tensor } from '../engine/graph';
import { concat, transpose } from '../engine/ops/copy';
import { add, cast, scale, shift, type PointwiseName } from '../engine/ops/pointwise';
import { gaussianFourierProjection, timestepEmbedding } from '../engine/ops/timestep_embedding';
import type { Shape } from '../engine/shape';
import { ConfigReader } from './config';
import { additionEmbedding, encoderProjection, parseAdditionConfig, type AddedConditions, type AdditionConfig } from './added_conditions';
import { isKType, kDownBlock, kDownTypes, kUpBlock, kUpTypes } from './k_blocks';
import { activation, activationName, checkInput, conv, embed, groupNorm, linear, module, recomputable, timestepMlp, type ModelContext } from './layers';
import { resnet } from './blocks';
import { addedKeysAttention, dualTransformer, featureTransformer, maskToBias, type Context, type FeatureTransformerOptions } from './transformer';
import { downBlock, downKinds, midBlock, takeResiduals, upBlock, upKinds, type AttentionKind, type Residual, type ResnetBase } from './unet_blocks';

const downTypes = ['DownBlock2D', 'ResnetDownsampleBlock2D', 'CrossAttnDownBlock2D', 'SimpleCrossAttnDownBlock2D', ...kDownTypes] as const;
const upTypes = ['UpBlock2D', 'ResnetUpsampleBlock2D', 'CrossAttnUpBlock2D', 'SimpleCrossAttnUpBlock2D', ...kUpTypes] as const;
const midTypes = ['UNetMidBlock2DCrossAttn', 'UNetMidBlock2DSimpleCrossAttn', 'UNetMidBlock2D'] as const;

/** What a ControlNet's config has in common with its U-Net's. Keys, names and defaults are diffusers'; lists have one entry per resolution. */
export interface ConditionedConfig extends AdditionConfig {
  readonly in_channels: number;
  readonly flip_sin_to_cos: boolean;
  readonly freq_shift: number;
  readonly down_block_types: readonly (typeof downTypes)[number][];
  readonly mid_block_type: (typeof midTypes)[number] | null;
  readonly only_cross_attention: readonly boolean[];
  readonly mid_block_only_cross_attention: boolean;
  readonly block_out_channels: readonly number[];
  readonly layers_per_block: readonly number[];
  readonly downsample_padding: number;
  readonly mid_block_scale_factor: number;
  readonly dropout: number;
  readonly act_fn: PointwiseName;
  /** `null`: no norm before conv_out, a quarter of the channels and at most 32 in the middle, and K blocks everywhere else, whose groups have 32 channels. */
  readonly norm_num_groups: number | null;
  readonly norm_eps: number;
  readonly cross_attention_dims: readonly number[];
  readonly transformer_layers_per_block: readonly number[];
  /** Number of heads in blocks with transformers. diffusers reads attention_head_dim for it, and cannot change that any more. */
  readonly num_attention_heads: readonly number[];
  /** Width of a head in the Simple blocks. */
  readonly attention_head_dim: readonly number[];
  readonly dual_cross_attention: boolean;
  readonly use_linear_projection: boolean;
  readonly class_embed_type: 'timestep' | 'identity' | 'projection' | 'simple_projection' | null;
  readonly num_class_embeds: number | null;
  readonly resnet_time_scale_shift: 'default' | 'scale_shift' | 'ada_group';
  readonly resnet_skip_time_act: boolean;
  readonly resnet_out_scale_factor: number;
  readonly time_embedding_type: 'positional' | 'fourier';
  readonly time_embed_dim: number;
  readonly time_embedding_act_fn: PointwiseName | null;
  readonly timestep_post_act: PointwiseName | null;
  readonly time_cond_proj_dim: number | null;
  readonly conv_in_kernel: number;
  readonly class_embeddings_concat: boolean;
  readonly cross_attention_norm: 'layer_norm' | 'group_norm' | null;
}

export interface UNet2DConditionConfig extends ConditionedConfig {
  readonly sample_size: readonly [number, number] | undefined;
  readonly out_channels: number;
  readonly center_input_sample: boolean;
  readonly up_block_types: readonly (typeof upTypes)[number][];
  readonly conv_out_kernel: number;
}

/** Entries of {@link ConditionedConfig} that a ControlNet's config has under the same names. */
export function parseShared(c: ConfigReader, { additions, simple }: { additions: readonly AdditionConfig['addition_embed_type'][]; simple: boolean }) {
  const channels = c.integers('block_out_channels', [320, 640, 1280, 1280]);
  const levels = channels.length;
  const types = simple ? downTypes : (['DownBlock2D', 'CrossAttnDownBlock2D'] as const);
  const down = c.choices('down_block_types', types, ['CrossAttnDownBlock2D', 'CrossAttnDownBlock2D', 'CrossAttnDownBlock2D', 'DownBlock2D'], { strip: 'UNetRes' });
  c.equalLengths({ down_block_types: down, block_out_channels: channels });
  const crossDims = c.integerPerLevel('cross_attention_dim', 1280, levels);
  const config = {
    in_channels: c.integer('in_channels', 4),
    flip_sin_to_cos: c.boolean('flip_sin_to_cos', true),
    freq_shift: c.number('freq_shift', 0),
    block_out_channels: channels,
    down_block_types: down,
    downsample_padding: c.integer('downsample_padding', 1, 0),
    mid_block_scale_factor: c.number('mid_block_scale_factor', 1),
    act_fn: activationName(c.string('act_fn', 'silu')),
    norm_num_groups: c.nullableInteger('norm_num_groups', 32),
    norm_eps: c.number('norm_eps', 1e-5),
    transformer_layers_per_block: c.integerPerLevel('transformer_layers_per_block', 1, levels),
    attention_head_dim: c.integerPerLevel('attention_head_dim', 8, levels),
    use_linear_projection: c.boolean('use_linear_projection', false),
    class_embed_type: c.nullableChoice('class_embed_type', ['timestep', 'identity', 'projection', 'simple_projection'] as const, null),
    num_class_embeds: c.nullableInteger('num_class_embeds', null),
    resnet_time_scale_shift: c.choice('resnet_time_scale_shift', ['default', 'scale_shift', 'ada_group'] as const, 'default'),
    ...parseAdditionConfig(c, crossDims, additions),
  };
  // Attention is f32 here whatever weights and activations are stored as, so there is nothing to raise.
  c.nullableBoolean('upcast_attention', false);
  if (config.norm_num_groups === null && !down.every(isKType)) c.fail('norm_num_groups is null, but not all blocks are K blocks, which alone do without it');
  if (config.class_embed_type && /projection/.test(config.class_embed_type) && config.projection_class_embeddings_input_dim === null) c.fail(`class_embed_type "${config.class_embed_type}" needs projection_class_embeddings_input_dim`);
  return config;
}

/** Reads diffusers' config.json; unknown or contradictory entries are errors that name them. */
export function parseUNet2DConditionConfig(json: unknown, file = 'config.json'): UNet2DConditionConfig {
  const c = new ConfigReader(json, file, 'UNet2DConditionModel');
  const shared = parseShared(c, { additions: ['text', 'text_image', 'text_time', 'image', 'image_hint'], simple: true });
  const levels = shared.block_out_channels.length;
  const optionalActivation = (key: string): PointwiseName | null => {
    const name = c.nullableString(key);
    return name === null ? null : activationName(name, key);
  };
  const onlyCross = c.booleanPerLevel('only_cross_attention', false, levels);
  const timeType = c.choice('time_embedding_type', ['positional', 'fourier'] as const, 'positional');
  const timeDim = c.nullableInteger('time_embedding_dim', null);
  const config: UNet2DConditionConfig = {
    ...shared,
    sample_size: c.size('sample_size'),
    out_channels: c.integer('out_channels', 4),
    center_input_sample: c.boolean('center_input_sample', false),
    mid_block_type: c.nullableChoice('mid_block_type', midTypes, 'UNetMidBlock2DCrossAttn'),
    up_block_types: c.choices('up_block_types', upTypes, ['UpBlock2D', 'CrossAttnUpBlock2D', 'CrossAttnUpBlock2D', 'CrossAttnUpBlock2D'], { strip: 'UNetRes' }),
    only_cross_attention: onlyCross,
    // Follows only_cross_attention where that is one value for all.
    mid_block_only_cross_attention: c.nullableBoolean('mid_block_only_cross_attention', null) ?? (c.isList('only_cross_attention') ? false : onlyCross[0]!),
    layers_per_block: c.integerPerLevel('layers_per_block', 2, levels),
    dropout: c.number('dropout', 0),
    num_attention_heads: shared.attention_head_dim,
    dual_cross_attention: c.boolean('dual_cross_attention', false),
    resnet_skip_time_act: c.boolean('resnet_skip_time_act', false),
    resnet_out_scale_factor: c.number('resnet_out_scale_factor', 1),
    time_embedding_type: timeType,
    time_embed_dim: timeDim ?? shared.block_out_channels[0]! * (timeType === 'fourier' ? 2 : 4),
    time_embedding_act_fn: optionalActivation('time_embedding_act_fn'),
    timestep_post_act: optionalActivation('timestep_post_act'),
    time_cond_proj_dim: c.nullableInteger('time_cond_proj_dim', null),
    conv_in_kernel: c.integer('conv_in_kernel', 3),
    conv_out_kernel: c.integer('conv_out_kernel', 3),
    class_embeddings_concat: c.boolean('class_embeddings_concat', false),
    cross_attention_norm: c.nullableChoice('cross_attention_norm', ['layer_norm', 'group_norm'] as const, null),
  };
  c.fixed('num_attention_heads', null, 'diffusers refuses it here, because attention_head_dim holds the number of heads for historical reasons: give that');
  c.fixed('attention_type', 'default', 'gated self-attention (GLIGEN) is not supported');
  c.fixed('reverse_transformer_layers_per_block', null, 'asymmetric transformer depths are not supported');
  c.finish();
  c.equalLengths({ down_block_types: config.down_block_types, up_block_types: config.up_block_types, block_out_channels: config.block_out_channels });
  if (config.norm_num_groups === null && !config.up_block_types.every(isKType)) c.fail('norm_num_groups is null, but not all blocks are K blocks, which alone do without it');
  if (config.dropout < 0 || config.dropout >= 1) c.fail(`dropout ${config.dropout} is not in [0, 1)`);
  for (const key of ['conv_in_kernel', 'conv_out_kernel'] as const) if (config[key] % 2 === 0) c.fail(`${key} ${config[key]} is even: the image would change its size`);
  if (timeType === 'fourier' && config.time_embed_dim % 2) c.fail(`time_embedding_dim ${config.time_embed_dim} is odd`);
  if (config.class_embeddings_concat && config.class_embed_type === null && config.num_class_embeds === null) c.fail('class_embeddings_concat needs class_embed_type or num_class_embeds');
  return config;
}

/** Residuals of a ControlNet, as NHWC tensors of the same graph. */
export interface ControlResiduals {
  /** One for each skip connection, in the order in which the down blocks make them; [N or 1,H,W,C], or [N,1,1,C] where they are pooled. */
  readonly down: readonly Tensor[];
  readonly mid: Tensor;
}

export interface ConditionInputs {
  /** Noisy images or latents [N, in_channels, H, W]; more channels carry masks, masked images or a small image. */
  readonly sample: Tensor;
  /** f32 [N], may be fractional. */
  readonly timestep: Tensor;
  /** Text [N, M, D], D = encoder_hid_dim or cross_attention_dim. Absent for encoder_hid_dim_type "image_proj". */
  readonly encoderHiddenStates?: Tensor | undefined;
  /** i32 [N] (num_class_embeds), f32 [N] (class_embed_type "timestep"), f32 [N, D] (the others). */
  readonly classLabels?: Tensor | undefined;
  /** [N, time_cond_proj_dim]. */
  readonly timestepCond?: Tensor | undefined;
  /** 1 keeps a token, 0 discards it. In Simple blocks [N, M] over the text (as unCLIP uses it), in transformers over what tokens the self-attention has. */
  readonly attentionMask?: Tensor | undefined;
  /** [N, M] over the text; 1 keeps, 0 discards. */
  readonly encoderAttentionMask?: Tensor | undefined;
  readonly added?: AddedConditions | undefined;
}

export interface UNet2DConditionInputs extends ConditionInputs {
  readonly control?: ControlResiduals | undefined;
}

/** A conditioned model between its inputs and its blocks. */
export interface Conditioned {
  /** NHWC, in the type of the activations. */
  readonly sample: Tensor;
  /** Time embedding before the blocks' activation. */
  readonly emb: Tensor;
  readonly text: Context | undefined;
  /** Bias of the self-attentions. */
  readonly selfMask: Tensor | undefined;
}

/** Channels of the sample; a hint's four join them inside. */
const sampleChannels = ({ in_channels: channels, addition_embed_type: addition }: ConditionedConfig): number => channels - (addition === 'image_hint' ? 4 : 0);

/** Time, class and added embeddings; the text as the blocks read it. Shared with ControlNet. */
export function condition(ctx: ModelContext, model: string, config: ConditionedConfig, inputs: ConditionInputs): Conditioned {
  const { sample, timestep, classLabels, timestepCond, added = {} } = inputs;
  checkInput(model, 'sample', sample, ['N', sampleChannels(config), 'H', 'W'], 'in_channels of its config');
  const [batch] = sample.shape as [number];
  const { act_fn: act, time_embed_dim: width, flip_sin_to_cos: flipSinToCos } = config;
  const first = config.block_out_channels[0]!;
  const type = ctx.computeType ?? 'f32';
  // Embeddings stay f32: they are small, and arguments of the sinusoids reach 1000.
  const project = (t: Tensor, dim = first): Tensor => timestepEmbedding(t, { dim, flipSinToCos, freqShift: config.freq_shift });
  const time = (t: Tensor): Tensor =>
    config.time_embedding_type === 'fourier' ? gaussianFourierProjection(t, ctx.parameters.get('time_proj.weight', [width / 2], 'plain', { kind: 'normal', std: 1 }, false), { flipSinToCos, log: false }) : project(t);

  if (timestepCond) {
    if (config.time_cond_proj_dim === null) throw new BruitError('input', `${model}: timestep_cond was given, but the config has no time_cond_proj_dim`);
    checkInput(model, 'timestep_cond', timestepCond, [batch, config.time_cond_proj_dim], 'time_cond_proj_dim of its config');
  }
  let emb = timestepMlp(ctx, 'time_embedding', module(ctx, 'time_proj', () => time(timestep)), { width, act, postAct: config.timestep_post_act ?? undefined, condition: timestepCond, conditionWidth: config.time_cond_proj_dim });
  const classes = classEmbedding(ctx, model, config, classLabels, time);
  if (classes) emb = config.class_embeddings_concat ? concat([emb, classes], 1) : add(emb, classes);
  const { embedding, hint } = additionEmbedding(ctx, model, config, { added, text: inputs.encoderHiddenStates, width, project });
  if (embedding) emb = add(emb, embedding);
  if (config.time_embedding_act_fn) emb = activation(emb, config.time_embedding_act_fn);

  let x = transpose(sample, [0, 2, 3, 1]);
  if (hint) x = concat([x, hint], 3);
  const states = encoderProjection(ctx, model, config, added, inputs.encoderHiddenStates);
  const bias = (name: string, mask: Tensor | undefined): Tensor | undefined => {
    if (mask) checkInput(model, name, mask, [batch, 'M']);
    return mask && maskToBias(mask);
  };
  return { sample: cast(x, type), emb, text: states && { states: cast(states, type), mask: bias('encoder_attention_mask', inputs.encoderAttentionMask) }, selfMask: bias('attention_mask', inputs.attentionMask) };
}

function classEmbedding(ctx: ModelContext, model: string, config: ConditionedConfig, labels: Tensor | undefined, time: (t: Tensor) => Tensor): Tensor | undefined {
  const { class_embed_type: kind, num_class_embeds: count, time_embed_dim: width } = config;
  if (kind === null && count === null) {
    if (labels) throw new BruitError('input', `${model}: class labels were given, but the config has neither class_embed_type nor num_class_embeds`);
    return undefined;
  }
  if (!labels) throw new BruitError('input', `${model}: the config has class embeddings, so class labels are needed`);
  checkInput(model, 'class_labels', labels, classLabelShape(config, 'N'), 'as its class_embed_type asks for');
  if (kind === 'timestep') return timestepMlp(ctx, 'class_embedding', time(labels), { width, act: config.act_fn });
  if (kind === 'identity') return labels;
  if (kind === 'projection') return timestepMlp(ctx, 'class_embedding', labels, { width });
  if (kind === 'simple_projection') return linear(ctx, 'class_embedding', labels, width);
  return embed(ctx, 'class_embedding', labels, count!, width);
}

const classLabelShape = <N>({ class_embed_type: kind, time_embed_dim: width, projection_class_embeddings_input_dim: input }: ConditionedConfig, n: N): (N | number)[] => (kind === 'identity' ? [n, width] : kind === 'projection' || kind === 'simple_projection' ? [n, input!] : [n]);

/** Residual blocks and attention of the blocks of one model. */
export class ConditionedBlocks {
  /** Residual blocks of plain and transformer blocks. */
  private readonly plain: ResnetBase;
  /** Those of the blocks that resample by residual blocks. */
  private readonly simple: ResnetBase;
  private readonly groups: number;

  constructor(
    private readonly ctx: ModelContext,
    private readonly config: ConditionedConfig,
    private readonly conditioned: Conditioned,
  ) {
    const { act_fn: act, resnet_time_scale_shift: timeScaleShift } = config;
    // Every residual block applies the activation to the same embedding: once is enough.
    const temb = timeScaleShift === 'ada_group' ? conditioned.emb : activation(conditioned.emb, act);
    // null where there are K blocks alone, whose groups are their own: these are the middle block's.
    this.groups = config.norm_num_groups ?? Math.min(Math.floor(config.block_out_channels[config.block_out_channels.length - 1]! / 4), 32);
    this.plain = { temb, timeScaleShift, groups: this.groups, eps: config.norm_eps, act, dropout: config.dropout };
    this.simple = { ...this.plain, temb: config.resnet_skip_time_act ? conditioned.emb : temb };
  }

  resnets(type: string): ResnetBase {
    return /^(Resnet|Simple)/.test(type) ? { ...this.simple, outputScale: this.config.resnet_out_scale_factor } : this.plain;
  }

  /** Attention of the blocks with `out` channels. `level` counts resolutions downwards; widths of heads in up blocks go by `headLevel`. */
  attend(out: number, level: number, headLevel = level): (kind: AttentionKind, name: string, h: Tensor) => Tensor {
    const { ctx, config } = this;
    return (kind, name, h) => {
      if (kind === 'transformer') return this.transformer(name, h, { out, level, onlyCross: config.only_cross_attention[level]! });
      const headDim = config.attention_head_dim[headLevel]!;
      return addedKeysAttention(ctx, name, h, this.addedKeys(out, headDim, config.only_cross_attention[level]!, config.cross_attention_dims[level]!));
    };
  }

  mid(h: Tensor): Tensor {
    const { ctx, config } = this;
    const level = config.block_out_channels.length - 1;
    const out = config.block_out_channels[level]!;
    const outputScale = config.mid_block_scale_factor;
    // One residual block, without attention.
    if (config.mid_block_type === 'UNetMidBlock2D') return resnet(ctx, 'resnets.0', h, { ...this.plain, outputScale, out });
    if (config.mid_block_type === 'UNetMidBlock2DCrossAttn') return midBlock(ctx, h, { resnet: { ...this.plain, outputScale }, attend: (name, x) => this.transformer(name, x, { out, level, onlyCross: false }) });
    return midBlock(ctx, h, {
      resnet: { ...this.simple, outputScale },
      attend: (name, x) => addedKeysAttention(ctx, name, x, this.addedKeys(out, config.attention_head_dim[level]!, config.mid_block_only_cross_attention, config.cross_attention_dims[level]!)),
    });
  }

  private transformer(name: string, h: Tensor, { out, level, onlyCross }: { out: number; level: number; onlyCross: boolean }): Tensor {
    const { ctx, config, conditioned } = this;
    const heads = config.num_attention_heads[level]!;
    const options: FeatureTransformerOptions = {
      heads,
      headDim: Math.floor(out / heads),
      layers: config.transformer_layers_per_block[level]!,
      groups: this.groups,
      linearProjection: config.use_linear_projection,
      activation: 'geglu',
      attentionBias: false,
      crossAttentionDim: config.cross_attention_dims[level]!,
      onlyCrossAttention: onlyCross,
      context: this.text(`${ctx.graph.path}.${name}`),
      mask: conditioned.selfMask,
    };
    return config.dual_cross_attention ? dualTransformer(ctx, name, h, options) : featureTransformer(ctx, name, h, options);
  }

  private addedKeys(out: number, headDim: number, onlyCrossAttention: boolean, dim: number) {
    const { config, conditioned } = this;
    const { states, mask } = this.text(this.ctx.graph.path);
    checkInput(this.ctx.graph.path, 'encoder_hidden_states', states, ['N', 'M', dim], 'cross_attention_dim');
    // unCLIP passes the text's mask as attention_mask; where that is absent, diffusers takes the other.
    return { heads: Math.floor(out / headDim), headDim, groups: this.groups, context: { states, mask: conditioned.selfMask ?? mask }, onlyCrossAttention, crossAttentionNorm: config.cross_attention_norm };
  }

  /** What K blocks need at `level`; widths of heads in up blocks go by `headLevel`. */
  k(level: number, headLevel: number) {
    const { config, conditioned } = this;
    const { block_out_channels: channels, norm_eps: eps, act_fn: act, dropout } = config;
    const dim = config.cross_attention_dims[level]!;
    const { emb, text: context, selfMask: mask } = conditioned;
    if (context) checkInput(this.ctx.graph.path, 'encoder_hidden_states', context.states, ['N', 'M', dim], 'cross_attention_dim');
    return { out: channels[level]!, layers: config.layers_per_block[level]!, emb, eps, act, dropout, headDim: config.attention_head_dim[headLevel]!, context, mask };
  }

  private text(path: string): Context {
    const { text } = this.conditioned;
    if (!text) throw new BruitError('input', `${path} attends to the text, but no encoder_hidden_states were given`);
    return text;
  }
}

/** Adds the down path, from conv_in on; returns the features and all skip connections. `h` is conv_in's output. */
export function downPath(ctx: ModelContext, config: ConditionedConfig, blocks: ConditionedBlocks, h: Tensor): { h: Tensor; residuals: Residual[] } {
  const residuals: Residual[] = [h];
  config.down_block_types.forEach((type, i) => {
    const out = config.block_out_channels[i]!;
    const last = i === config.block_out_channels.length - 1;
    h = module(ctx, `down_blocks.${i}`, () =>
      recomputable(ctx, () => isKType(type) ? kDownBlock(ctx, type, h, { ...blocks.k(i, i), last, residuals }) : downBlock(ctx, downKinds[type], h, { out, last, layers: config.layers_per_block[i]!, resnet: blocks.resnets(type), attend: blocks.attend(out, i), downsamplePadding: config.downsample_padding, residuals })),
    );
  });
  return { h, residuals };
}

/** Adds the U-Net's forward pass to the graph; returns the prediction [N, out_channels, H, W]. */
export function unet2dCondition(ctx: ModelContext, config: UNet2DConditionConfig, { control, ...inputs }: UNet2DConditionInputs): Tensor {
  const centered = config.center_input_sample ? { ...inputs, sample: shift(scale(inputs.sample, 2), -1) } : inputs;
  const conditioned = condition(ctx, 'UNet2DConditionModel', config, centered);
  const blocks = new ConditionedBlocks(ctx, config, conditioned);
  let { h, residuals } = downPath(ctx, config, blocks, conv(ctx, 'conv_in', conditioned.sample, config.block_out_channels[0]!, { kernel: config.conv_in_kernel }));
  if (control) {
    if (control.down.length !== residuals.length) throw new BruitError('shape', `UNet2DConditionModel: ${control.down.length} residuals of a ControlNet for ${residuals.length} skip connections: the two were not made for each other`);
    residuals = residuals.map((r, i) => r && add(r, control.down[i]!));
  }
  if (config.mid_block_type) h = module(ctx, 'mid_block', () => recomputable(ctx, () => blocks.mid(h)));
  if (control) h = add(h, control.mid);

  const levels = config.block_out_channels.length;
  config.up_block_types.forEach((type, i) => {
    const level = levels - 1 - i;
    const out = config.block_out_channels[level]!;
    const last = i === levels - 1;
    // K blocks have a residual block less.
    const skips = takeResiduals(residuals, config.layers_per_block[level]! + (isKType(type) ? 0 : 1));
    const next = config.block_out_channels[Math.max(level - 1, 0)]!;
    h = module(ctx, `up_blocks.${i}`, () =>
      // diffusers 0.21 reverses every per-resolution list for the up blocks but attention_head_dim.
      recomputable(ctx, () => isKType(type) ? kUpBlock(ctx, type, h, { ...blocks.k(level, i), last, next, ...skips }) : upBlock(ctx, upKinds[type], h, { out, last, resnet: blocks.resnets(type), attend: blocks.attend(out, level, i), ...skips })),
    );
  });
  const y = config.norm_num_groups === null ? h : groupNorm(ctx, 'conv_norm_out', h, { groups: config.norm_num_groups, eps: config.norm_eps, act: config.act_fn });
  return transpose(cast(conv(ctx, 'conv_out', y, config.out_channels, { kernel: config.conv_out_kernel }), 'f32'), [0, 3, 1, 2]);
}

/** What an input leaf of {@link conditionInputs} needs beside the config. */
export interface ConditionSizes {
  /** [N, H, W] of the sample. */
  readonly sample: readonly [number, number, number];
  /** Tokens of the text. */
  readonly tokens: number;
  /** Columns of an attention_mask, if there is one. */
  readonly attentionMask?: number;
  readonly encoderAttentionMask?: boolean;
  /** There is a timestep_cond. */
  readonly timestepCond?: boolean;
  /** Width of text_embeds (text_time), or of text_embeds in place of the text (text_image). */
  readonly textEmbeds?: number;
  /** Numbers in time_ids. */
  readonly timeIds?: number;
}

/** Fresh input leaves, called as in diffusers, for all that the config asks for but what is `given`. */
export function conditionInputs(ctx: ModelContext, config: ConditionedConfig, sizes: ConditionSizes, given: Partial<Pick<ConditionInputs, 'sample' | 'timestep'>> = {}): ConditionInputs {
  const { graph } = ctx;
  const [n, height, width] = sizes.sample;
  const { addition_embed_type: addition, encoder_hid_dim: hidden, encoder_hid_dim_type: projection } = config;
  const leaf = (wanted: unknown, name: string, shape: () => Shape, dtype: 'f32' | 'i32' = 'f32'): Tensor | undefined => (wanted ? graph.input(name, shape(), dtype) : undefined);
  const imageDim = projection === 'image_proj' || addition === 'image' || addition === 'image_hint' ? hidden! : config.cross_attention_dims[0]!;
  return {
    sample: given.sample ?? graph.input('sample', [n, sampleChannels(config), height, width]),
    timestep: given.timestep ?? graph.input('timestep', [n]),
    encoderHiddenStates: leaf(projection !== 'image_proj', 'encoder_hidden_states', () => [n, sizes.tokens, projection ? hidden! : config.cross_attention_dims[0]!]),
    classLabels: leaf(config.class_embed_type !== null || config.num_class_embeds !== null, 'class_labels', () => classLabelShape(config, n), config.class_embed_type === null ? 'i32' : 'f32'),
    timestepCond: leaf(sizes.timestepCond && config.time_cond_proj_dim, 'timestep_cond', () => [n, config.time_cond_proj_dim!]),
    attentionMask: leaf(sizes.attentionMask, 'attention_mask', () => [n, sizes.attentionMask!]),
    encoderAttentionMask: leaf(sizes.encoderAttentionMask, 'encoder_attention_mask', () => [n, sizes.tokens]),
    added: {
      textEmbeds: leaf(addition === 'text_time' || (addition === 'text_image' && sizes.textEmbeds), 'text_embeds', () => [n, sizes.textEmbeds!]),
      timeIds: leaf(addition === 'text_time', 'time_ids', () => [n, sizes.timeIds!]),
      imageEmbeds: leaf(addition === 'text_image' || addition === 'image' || addition === 'image_hint' || projection === 'text_image_proj' || projection === 'image_proj', 'image_embeds', () => [n, imageDim]),
      hint: leaf(addition === 'image_hint', 'hint', () => [n, 3, height * 8, width * 8]),
    },
  };
}
