/** Transformer blocks of the denoisers (diffusers' Attention, FeedForward, BasicTransformerBlock, Transformer2DModel on feature maps). Tokens are [N,T,C]. */
import { BruitError } from '../engine/errors';
import type { Tensor } from '../engine/graph';
import { attention as attentionOp } from '../engine/ops/attention';
import { concat, pad, split } from '../engine/ops/copy';
import { add, gelu, geluTanh, mul, quickGelu, scale, shift } from '../engine/ops/pointwise';
import { reshape } from '../engine/ops/reshape';
import { showShape } from '../engine/shape';
import { conv, groupNorm, hoistable, layerNorm, linear, module, type ModelContext } from './layers';

/** What tokens attend to beside themselves. */
export interface Context {
  /** [N,M,D]: text, image tokens, … */
  readonly states: Tensor;
  /** Added to the scores, broadcastable to [N,heads,T,M]. */
  readonly mask?: Tensor | undefined;
}

/** diffusers' masks: 1 keeps a token, 0 adds −10000 to its score. [N,M] of any type → [N,1,1,M]. */
export function maskToBias(mask: Tensor): Tensor {
  const [n, m] = mask.shape as [number, number];
  return reshape(scale(shift(mask, -1), 10000), [n, 1, 1, m]);
}

export type ContextNorm = 'layer_norm' | 'group_norm' | null;

export interface AttentionLayerOptions {
  readonly heads: number;
  /** Width of a head. */
  readonly headDim: number;
  /** Biases of to_q, to_k and to_v. */
  readonly bias: boolean;
  /** Keys and values; the tokens themselves by default. */
  readonly context?: Context | undefined;
  /** Norm of the context before its projections; in the checkpoint, and without effect, where there is no context. */
  readonly contextNorm?: ContextNorm;
  /** Added to the scores where the tokens attend to themselves, broadcastable to [N,heads,T,T]. */
  readonly mask?: Tensor | undefined;
  readonly dropout?: number;
}

/** diffusers' Attention without norm or residual. x [N,T,C] → [N,T,C]. */
export function attentionLayer(ctx: ModelContext, name: string, x: Tensor, o: AttentionLayerOptions): Tensor {
  return module(ctx, name, () => {
    const inner = o.heads * o.headDim;
    if (inner === 0) throw new BruitError('config', `${ctx.graph.path}: ${o.heads} heads of ${o.headDim} channels: the config divides the block's ${x.shape[2]} channels into nothing`);
    const project = (part: string, input: Tensor): Tensor => linear(ctx, part, input, inner, { bias: o.bias });
    let normed: Tensor | undefined;
    const fromContext = (part: string, { states }: Context): Tensor => hoistable(ctx, part, 'text', () => project(part, (normed ??= normContext(ctx, states, o.contextNorm ?? null))));
    const q = project('to_q', x);
    const [k, v] = o.context ? [fromContext('to_k', o.context), fromContext('to_v', o.context)] : [project('to_k', x), project('to_v', x)];
    if (!o.context) normContext(ctx, x, o.contextNorm ?? null);
    const mask = o.context ? o.context.mask : o.mask;
    const y = linear(ctx, 'to_out.0', attentionOp(q, k, v, { heads: o.heads, ...(mask && { mask }) }), x.shape[2]!);
    return o.dropout && ctx.dropout ? ctx.dropout(y, o.dropout) : y;
  });
}

export const feedForwardActivations = ['geglu', 'gelu', 'gelu-approximate', 'geglu-approximate'] as const;
export type FeedForwardActivation = (typeof feedForwardActivations)[number];

/** diffusers' FeedForward: to four times the width and back. "geglu" is value · gelu(gate) (Shazeer 2020); "geglu-approximate" is in truth x·sigmoid(1.702x). */
export function feedForward(ctx: ModelContext, name: string, x: Tensor, { activation, dropout = 0 }: { activation: FeedForwardActivation; dropout?: number }): Tensor {
  return module(ctx, name, () => {
    const width = x.shape[x.shape.length - 1]!;
    const inner = 4 * width;
    let h = module(ctx, 'net.0', () => {
      if (activation === 'geglu') {
        const [value, gate] = split(linear(ctx, 'proj', x, 2 * inner), x.shape.length - 1, [inner, inner]) as [Tensor, Tensor];
        return mul(value, gelu(gate));
      }
      const projected = linear(ctx, 'proj', x, inner);
      return activation === 'gelu' ? gelu(projected) : activation === 'gelu-approximate' ? geluTanh(projected) : quickGelu(projected);
    });
    if (dropout > 0 && ctx.dropout) h = ctx.dropout(h, dropout);
    return linear(ctx, 'net.2', h, width);
  });
}

export interface TransformerBlockOptions {
  readonly heads: number;
  readonly headDim: number;
  readonly activation: FeedForwardActivation;
  readonly attentionBias: boolean;
  readonly dropout?: number;
  /** Width of the context in the config; `null`: the block has self-attention alone. */
  readonly crossAttentionDim: number | null;
  /** The first attention reads the context, too. */
  readonly onlyCrossAttention?: boolean;
  /** The second attention has the weights of a self-attention. */
  readonly doubleSelfAttention?: boolean;
  readonly context?: Context | undefined;
  /** Mask of the self-attention. */
  readonly mask?: Tensor | undefined;
  /** LayerNorms have weights. */
  readonly affine?: boolean;
  /**
   * adaLN-Zero (Peebles & Xie 2023): builds, under `norm1`, the modulation [N,6·C] (shift, scale and gate of the attention, then of the
   * feed-forward part) from the time step and the class.
   */
  readonly modulation?: (width: number) => Tensor;
}

/** diffusers' BasicTransformerBlock: self-attention, cross-attention, feed-forward, each after a norm and with a residual. x [N,T,C]. */
export function transformerBlock(ctx: ModelContext, name: string, x: Tensor, o: TransformerBlockOptions): Tensor {
  return module(ctx, name, () => {
    const width = x.shape[2]!;
    const { heads, headDim, context, mask, affine = true, dropout = 0 } = o;
    if (context && !o.doubleSelfAttention && o.crossAttentionDim !== null && context.states.shape[2] !== o.crossAttentionDim) {
      throw new BruitError('shape', `${ctx.graph.path}: encoder_hidden_states ${showShape(context.states.shape)} must have cross_attention_dim = ${o.crossAttentionDim} channels`);
    }
    const attend = { heads, headDim, bias: o.attentionBias, dropout };
    const gates = o.modulation && split(reshape(hoistable(ctx, 'norm1.linear', 'time', () => ctx.graph.scope('norm1', () => o.modulation!(width))), [-1, 1, 6 * width]), 2, Array<number>(6).fill(width));
    const [shift1, scale1, gate1, shift2, scale2, gate2] = gates ?? [];

    let h = gates ? modulate(layerNorm(ctx, 'norm1.norm', x, { eps: 1e-6, affine: false }), shift1!, scale1!) : layerNorm(ctx, 'norm1', x, { affine });
    // Its mask is the self-attention's even where it reads the text.
    h = attentionLayer(ctx, 'attn1', h, { ...attend, mask, context: o.onlyCrossAttention && context ? { states: context.states, mask } : undefined });
    x = add(gates ? mul(h, gate1!) : h, x);
    if (o.crossAttentionDim !== null || o.doubleSelfAttention) x = add(attentionLayer(ctx, 'attn2', layerNorm(ctx, 'norm2', x, { affine }), { ...attend, context }), x);
    h = layerNorm(ctx, 'norm3', x, { affine });
    h = feedForward(ctx, 'ff', gates ? modulate(h, shift2!, scale2!) : h, { activation: o.activation, dropout });
    return add(gates ? mul(h, gate2!) : h, x);
  });
}

/** x·(1 + scale) + shift, the latter two [N,1,C]. */
export const modulate = (x: Tensor, offset: Tensor, factor: Tensor): Tensor => add(mul(x, shift(factor, 1)), offset);

export interface FeatureTransformerOptions extends TransformerBlockOptions {
  readonly layers: number;
  readonly groups: number;
  /** Linear projections on both sides instead of 1x1 convolutions: the same arithmetic, other weight shapes. */
  readonly linearProjection: boolean;
}

/** Transformer2DModel on a feature map: group norm (eps 1e-6 whatever the U-Net's is), projection, blocks over the pixels, projection, residual. x [N,H,W,C]. */
export const featureTransformer = (ctx: ModelContext, name: string, x: Tensor, o: FeatureTransformerOptions): Tensor => module(ctx, name, () => featureTransformerLayers(ctx, x, o));

/** The layers of {@link featureTransformer}, at the current path. */
export function featureTransformerLayers(ctx: ModelContext, x: Tensor, o: FeatureTransformerOptions): Tensor {
  const [n, height, width, channels] = x.shape as [number, number, number, number];
  const inner = o.heads * o.headDim;
  const tokens = (h: Tensor): Tensor => reshape(h, [n, height * width, -1]);
  const pixels = (h: Tensor): Tensor => reshape(h, [n, height, width, -1]);
  const normed = groupNorm(ctx, 'norm', x, { groups: o.groups, eps: 1e-6 });
  let h = o.linearProjection ? linear(ctx, 'proj_in', tokens(normed), inner) : tokens(conv(ctx, 'proj_in', normed, inner, { kernel: 1 }));
  for (let i = 0; i < o.layers; i++) h = transformerBlock(ctx, `transformer_blocks.${i}`, h, o);
  h = o.linearProjection ? pixels(linear(ctx, 'proj_out', h, channels)) : conv(ctx, 'proj_out', pixels(h), channels, { kernel: 1 });
  return add(h, x);
}

/** Tokens of the two conditions of {@link dualTransformer} (diffusers fixes them: CLIP text and CLIP vision). */
const conditionLengths = [77, 257] as const;

/** diffusers' DualTransformer2DModel (Versatile Diffusion): one transformer for each of two conditions, which follow each other in the context; the mean of both. */
export function dualTransformer(ctx: ModelContext, name: string, x: Tensor, o: FeatureTransformerOptions): Tensor {
  return module(ctx, name, () => {
    const { states } = o.context!;
    const [first, both] = [conditionLengths[0], conditionLengths[0] + conditionLengths[1]];
    if (states.shape[1]! <= first) throw new BruitError('shape', `${ctx.graph.path}: dual_cross_attention splits encoder_hidden_states ${showShape(states.shape)} into ${first} tokens and the rest (at most ${conditionLengths[1]}), so it needs more than ${first}`);
    const parts = split(states, 1, [first, Math.min(states.shape[1]!, both) - first, ...(states.shape[1]! > both ? [states.shape[1]! - both] : [])]);
    // The second transformer encodes the first condition. Masks are not used here.
    const encode = (transformer: number, part: Tensor): Tensor => featureTransformer(ctx, `transformers.${transformer}`, x, { ...o, layers: 1, linearProjection: false, onlyCrossAttention: false, mask: undefined, context: { states: part } });
    return scale(add(encode(1, parts[0]!), encode(0, parts[1]!)), 0.5);
  });
}

export interface AddedKeysOptions {
  readonly heads: number;
  readonly headDim: number;
  readonly groups: number;
  readonly context: Context;
  /** Only the text has keys and values, not the pixels. */
  readonly onlyCrossAttention: boolean;
  /** Norm of the text before its projections. */
  readonly crossAttentionNorm: ContextNorm;
}

/** Attention over pixels with keys and values of the text put in front of the pixels' own (diffusers' AttnAddedKVProcessor: unCLIP, IF). x [N,H,W,C]. */
export function addedKeysAttention(ctx: ModelContext, name: string, x: Tensor, o: AddedKeysOptions): Tensor {
  return module(ctx, name, () => {
    const [n, height, width, channels] = x.shape as [number, number, number, number];
    const inner = o.heads * o.headDim;
    if (inner === 0) throw new BruitError('config', `${ctx.graph.path}: attention_head_dim ${o.headDim} is more than the block's ${channels} channels`);
    const pixels = height * width;
    const h = groupNorm(ctx, 'group_norm', reshape(x, [n, pixels, channels]), { groups: o.groups, eps: 1e-5 });
    const { states, mask } = o.context;
    let normed: Tensor | undefined;
    const text = (part: string): Tensor => hoistable(ctx, part, 'text', () => linear(ctx, part, (normed ??= normContext(ctx, states, o.crossAttentionNorm)), inner));
    let [k, v] = [text('add_k_proj'), text('add_v_proj')];
    const q = linear(ctx, 'to_q', h, inner);
    let bias = mask;
    if (!o.onlyCrossAttention) {
      [k, v] = [concat([k, linear(ctx, 'to_k', h, inner)], 1), concat([v, linear(ctx, 'to_v', h, inner)], 1)];
      bias = mask && pad(mask, 3, 0, pixels); // pixels are never masked
    }
    const y = linear(ctx, 'to_out.0', attentionOp(q, k, v, { heads: o.heads, ...(bias && { mask: bias }) }), channels);
    return add(reshape(y, x.shape), x);
  });
}

/** `norm_cross` of an Attention, under the current path. */
export function normContext(ctx: ModelContext, states: Tensor, kind: ContextNorm): Tensor {
  if (kind === null) return states;
  return kind === 'layer_norm' ? layerNorm(ctx, 'norm_cross', states) : groupNorm(ctx, 'norm_cross', states, { groups: 32, eps: 1e-5 });
}
