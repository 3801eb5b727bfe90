/** Conditions beside text and time: pooled text, image embeddings, sizes (diffusers' encoder_hid_proj and add_embedding). */
import { BruitError } from '../engine/errors';
import type { Tensor } from '../engine/graph';
import { attention } from '../engine/ops/attention';
import { concat, transpose } from '../engine/ops/copy';
import { add, silu } from '../engine/ops/pointwise';
import { reshape } from '../engine/ops/reshape';
import { mean } from '../engine/ops/sum';
import type { ConfigReader } from './config';
import { checkInput, conv, layerNorm, linear, module, ownWeight, timestepMlp, type ModelContext } from './layers';

/** Keys, names and defaults are diffusers'. */
export interface AdditionConfig {
  readonly encoder_hid_dim: number | null;
  /** `text_proj` (IF), `text_image_proj` (Kandinsky 2.1), `image_proj` (Kandinsky 2.2). */
  readonly encoder_hid_dim_type: 'text_proj' | 'text_image_proj' | 'image_proj' | null;
  /** `text` (IF), `text_time` (SDXL), `text_image`, `image`, `image_hint` (Kandinsky). */
  readonly addition_embed_type: 'text' | 'text_image' | 'text_time' | 'image' | 'image_hint' | null;
  readonly addition_embed_type_num_heads: number;
  readonly addition_time_embed_dim: number | null;
  readonly projection_class_embeddings_input_dim: number | null;
  readonly cross_attention_dims: readonly number[];
}

/** diffusers' added_cond_kwargs. */
export interface AddedConditions {
  /** Pooled text [N, D]. */
  readonly textEmbeds?: Tensor | undefined;
  /** SDXL's sizes [N, 6]: original height and width, crop from top and left, target height and width. */
  readonly timeIds?: Tensor | undefined;
  /** [N, D]. */
  readonly imageEmbeds?: Tensor | undefined;
  /** [N, 3, 8·H, 8·W]. */
  readonly hint?: Tensor | undefined;
}

export function parseAdditionConfig(c: ConfigReader, crossDims: readonly number[], additions: readonly AdditionConfig['addition_embed_type'][]): AdditionConfig {
  const hidden = c.nullableInteger('encoder_hid_dim', null);
  const named = c.nullableChoice('encoder_hid_dim_type', ['text_proj', 'text_image_proj', 'image_proj'] as const, null);
  const config: AdditionConfig = {
    encoder_hid_dim: hidden,
    encoder_hid_dim_type: named ?? (hidden === null ? null : 'text_proj'),
    addition_embed_type: c.nullableChoice('addition_embed_type', additions.filter((a) => a !== null), null),
    addition_embed_type_num_heads: c.integer('addition_embed_type_num_heads', 64),
    addition_time_embed_dim: c.nullableInteger('addition_time_embed_dim', null),
    projection_class_embeddings_input_dim: c.nullableInteger('projection_class_embeddings_input_dim', null),
    cross_attention_dims: crossDims,
  };
  const { addition_embed_type: addition } = config;
  if (named && hidden === null) c.fail(`encoder_hid_dim_type "${named}" needs encoder_hid_dim`);
  if ((addition === 'image' || addition === 'image_hint') && hidden === null) c.fail(`addition_embed_type "${addition}" needs encoder_hid_dim`);
  if (addition === 'text_time') for (const key of ['addition_time_embed_dim', 'projection_class_embeddings_input_dim'] as const) if (config[key] === null) c.fail(`addition_embed_type "text_time" needs ${key}`);
  if (addition === 'text') {
    const width = hidden ?? crossDims[0]!;
    if (width % config.addition_embed_type_num_heads) c.fail(`addition_embed_type_num_heads ${config.addition_embed_type_num_heads} does not divide the text's ${width} channels`);
  }
  // diffusers builds these projections from cross_attention_dim as a number.
  if ((config.encoder_hid_dim_type ?? (addition === 'text_image' || (addition === 'text' && hidden === null))) && crossDims.some((d) => d !== crossDims[0])) c.fail('cross_attention_dim must be one number where the text is projected or added');
  return config;
}

const missing = (model: string, key: string, value: string, input: string): BruitError => new BruitError('input', `${model}: ${key} is "${value}", which needs ${input}`);

export interface AdditionInputs {
  readonly added: AddedConditions;
  /** encoder_hidden_states as given. */
  readonly text: Tensor | undefined;
  /** Width of the time embedding. */
  readonly width: number;
  /** Sinusoids of [N] of the given width. */
  readonly project: (t: Tensor, dim: number) => Tensor;
}

/** What is added to the time embedding [N, width], and the hint's features [N,H,W,4] that join the image. */
export function additionEmbedding(ctx: ModelContext, model: string, config: AdditionConfig, { added, text, width, project }: AdditionInputs): { embedding?: Tensor; hint?: Tensor } {
  const { addition_embed_type: addition } = config;
  if (addition === null) return {};
  const need = (t: Tensor | undefined, input: string): Tensor => {
    if (!t) throw missing(model, 'addition_embed_type', addition, input);
    return t;
  };
  if (addition === 'text') return { embedding: textTimeEmbedding(ctx, need(text, 'encoder_hidden_states'), width, config.addition_embed_type_num_heads) };
  if (addition === 'text_time') {
    const [pooled, ids] = [need(added.textEmbeds, 'text_embeds'), need(added.timeIds, 'time_ids')];
    const [n] = pooled.shape as [number];
    checkInput(model, 'time_ids', ids, [n, 'K']);
    const sizes = reshape(project(reshape(ids, [-1]), config.addition_time_embed_dim!), [n, -1]);
    const input = concat([pooled, sizes], 1);
    checkInput(model, 'text_embeds with time_ids', input, [n, config.projection_class_embeddings_input_dim!], 'projection_class_embeddings_input_dim');
    return { embedding: timestepMlp(ctx, 'add_embedding', input, { width }) };
  }
  const image = need(added.imageEmbeds, 'image_embeds');
  if (addition === 'text_image') {
    const pooled = need(added.textEmbeds ?? text, 'text_embeds');
    return {
      embedding: module(ctx, 'add_embedding', () => add(linear(ctx, 'image_proj', image, width), layerNorm(ctx, 'text_norm', linear(ctx, 'text_proj', pooled, width)))),
    };
  }
  return {
    embedding: module(ctx, 'add_embedding', () => layerNorm(ctx, 'image_norm', linear(ctx, 'image_proj', image, width))),
    ...(addition === 'image_hint' && { hint: ctx.graph.scope('add_embedding', () => hintEncoder(ctx, need(added.hint, 'a hint'))) }),
  };
}

/** Attention pooling of the text (IF): a token that is the mean attends to itself and all others. text [N,M,D] → [N,width]. */
function textTimeEmbedding(ctx: ModelContext, text: Tensor, width: number, heads: number): Tensor {
  return module(ctx, 'add_embedding', () => {
    const [n, , channels] = text.shape as [number, number, number];
    const x = layerNorm(ctx, 'norm1', text);
    const pooled = module(ctx, 'pool', () => {
      const position = ownWeight(ctx, 'positional_embedding', [1, channels], { kind: 'normal', std: 1 / Math.sqrt(channels) });
      const token = add(reshape(mean(x, [1]), [n, 1, channels]), position);
      const tokens = concat([token, x], 1);
      const project = (name: string, t: Tensor): Tensor => linear(ctx, name, t, channels);
      return reshape(attention(project('q_proj', token), project('k_proj', tokens), project('v_proj', tokens), { heads }), [n, channels]);
    });
    return layerNorm(ctx, 'norm2', linear(ctx, 'proj', pooled, width));
  });
}

/** Kandinsky 2.2's depth hint [N,3,8H,8W] → [N,H,W,4]. */
function hintEncoder(ctx: ModelContext, hint: Tensor): Tensor {
  const layers = [[16, 1], [16, 1], [32, 2], [32, 1], [96, 2], [96, 1], [256, 2], [4, 1]] as const;
  // In an nn.Sequential with an activation after each convolution but the last.
  return layers.reduce((h, [out, stride], i) => {
    const y = conv(ctx, `input_hint_block.${2 * i}`, h, out, { stride });
    return i < layers.length - 1 ? silu(y) : y;
  }, transpose(hint, [0, 2, 3, 1]));
}

/** Tokens that an image embedding becomes. */
const imageTokens = { text_image_proj: 10, image_proj: 32 } as const;

/** encoder_hidden_states as the blocks attend to them: [N, M, cross_attention_dim]. */
export function encoderProjection(ctx: ModelContext, model: string, config: AdditionConfig, added: AddedConditions, text: Tensor | undefined): Tensor | undefined {
  const { encoder_hid_dim_type: kind, encoder_hid_dim: hidden } = config;
  const width = config.cross_attention_dims[0]!;
  if (kind === null) return text;
  const need = (t: Tensor | undefined, input: string): Tensor => {
    if (!t) throw missing(model, 'encoder_hid_dim_type', kind, input);
    return t;
  };
  if (kind !== 'image_proj') checkInput(model, 'encoder_hidden_states', need(text, 'encoder_hidden_states'), ['N', 'M', hidden!], 'encoder_hid_dim');
  if (kind === 'text_proj') return linear(ctx, 'encoder_hid_proj', text!, width);
  const image = need(added.imageEmbeds, 'image_embeds');
  const count = imageTokens[kind];
  return module(ctx, 'encoder_hid_proj', () => {
    const tokens = reshape(linear(ctx, 'image_embeds', image, count * width), [image.shape[0]!, count, width]);
    return kind === 'image_proj' ? layerNorm(ctx, 'norm', tokens) : concat([tokens, linear(ctx, 'text_proj', text!, width)], 1);
  });
}
