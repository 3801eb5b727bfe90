/** Residual, attention and resampling modules that the U-Net's blocks are made of (diffusers' ResnetBlock2D, Attention, Downsample2D, …). */
import { BruitError } from '../engine/errors';
import type { Tensor } from '../engine/graph';
import { attention } from '../engine/ops/attention';
import { avgPool2d } from '../engine/ops/avg_pool2d';
import { concat, split, transpose } from '../engine/ops/copy';
import { groupNorm as groupNormOp } from '../engine/ops/group_norm';
import { matmul } from '../engine/ops/matmul';
import { add, cast, mul, scale, shift, type PointwiseName } from '../engine/ops/pointwise';
import { reshape } from '../engine/ops/reshape';
import { softmax } from '../engine/ops/softmax';
import { upfirdn2d } from '../engine/ops/upfirdn2d';
import { upsampleNearest } from '../engine/ops/upsample_nearest';
import { activation, conv, groupNorm, hoistable, linear, module, type ModelContext } from './layers';

/** The filter of score-SDE's "fir" resampling. */
const firKernel = [1, 3, 3, 1];

/** FIR-filtered 2x downsampling of [N,H,W,C] (Karras et al. 2019; diffusers' downsample_2d). */
export const firDownsample = (x: Tensor): Tensor => upfirdn2d(x, firTaps(1), { up: 1, down: 2, padding: [1, 1] });

/** FIR-filtered 2x upsampling of [N,H,W,C]. */
export const firUpsample = (x: Tensor): Tensor => upfirdn2d(x, firTaps(4), { up: 2, down: 1, padding: [2, 1] });

/** The 4x4 outer product of the filter, summing to `gain`. */
export function firTaps(gain: number): number[][] {
  const sum = firKernel.reduce((a, b) => a + b, 0);
  return firKernel.map((a) => firKernel.map((b) => (a * b * gain) / (sum * sum)));
}

export const upsample2x = (x: Tensor): Tensor => upsampleNearest(x, [x.shape[1]! * 2, x.shape[2]! * 2]);

export interface ResnetOptions {
  readonly out: number;
  /** Time embedding [N, D], after its activation where the block has one. `undefined` where the block takes none (autoencoders). */
  readonly temb: Tensor | undefined;
  /** "ada_group": both norms are {@link adaGroupNorm}, and take the embedding before its activation. */
  readonly timeScaleShift: 'default' | 'scale_shift' | 'ada_group';
  readonly groups: number;
  readonly groupsOut?: number;
  readonly eps: number;
  readonly act: PointwiseName;
  readonly dropout: number;
  readonly outputScale?: number;
  /** Resampling inside the block: of both the residual and the shortcut. */
  readonly resample?: (x: Tensor) => Tensor;
  /** A 1x1 convolution on the shortcut even where the channels agree. */
  readonly forceShortcut?: boolean;
  /** Channels of the second convolution's result and of the block's, where they are not `out`. */
  readonly convOut?: number;
  /** False: the shortcut's convolution has no bias. */
  readonly shortcutBias?: boolean;
}

/** diffusers' AdaGroupNorm: x̂·(1 + scale) + shift, both from the time embedding [N, D]; x̂ by a group norm without weights. x [N,H,W,C]. */
export function adaGroupNorm(ctx: ModelContext, name: string, x: Tensor, temb: Tensor, o: { readonly groups: number; readonly eps: number }): Tensor {
  return module(ctx, name, () => {
    const channels = x.shape[3]!;
    if (!(o.groups > 0 && channels % o.groups === 0)) throw new BruitError('config', `group norm ${ctx.graph.path}: ${channels} channels do not divide into ${o.groups} groups`);
    const time = hoistable(ctx, 'linear', 'time', () => linear(ctx, 'linear', temb, 2 * channels));
    const [factor, offset] = split(reshape(time, [time.shape[0]!, 1, 1, 2 * channels]), 3, [channels, channels]) as [Tensor, Tensor];
    const unit = (value: number): Tensor => ctx.graph.constant(value ? 'ones' : 'zeros', [channels], new Float32Array(channels).fill(value));
    return add(mul(groupNormOp(x, unit(1), unit(0), { ...o, silu: false }), shift(factor, 1)), offset);
  });
}

/** ResnetBlock2D: norm, act, conv, time embedding, norm, act, dropout, conv, plus the shortcut. x [N,H,W,C] → [N,H',W',out]. */
export function resnet(ctx: ModelContext, name: string, x: Tensor, o: ResnetOptions): Tensor {
  return module(ctx, name, () => {
    const { temb, convOut = o.out } = o;
    const ada = o.timeScaleShift === 'ada_group';
    const norm = (part: string, input: Tensor, groups: number): Tensor =>
      ada ? activation(adaGroupNorm(ctx, part, input, temb!, { groups, eps: o.eps }), o.act) : groupNorm(ctx, part, input, { groups, eps: o.eps, act: o.act });
    let h = norm('norm1', x, o.groups);
    let shortcut = x;
    if (o.resample) {
      h = o.resample(h);
      shortcut = o.resample(shortcut);
    }
    h = conv(ctx, 'conv1', h, o.out);
    const groups = o.groupsOut ?? o.groups;
    const scaleShift = o.timeScaleShift === 'scale_shift';
    const projected = temb && !ada && hoistable(ctx, 'time_emb_proj', 'time', () => linear(ctx, 'time_emb_proj', temb, scaleShift ? 2 * o.out : o.out));
    // Of each image, or one for all.
    const time = projected && reshape(projected, [projected.shape[0]!, 1, 1, -1]);
    if (time && scaleShift) {
      const [factor, offset] = split(time, 3, [o.out, o.out]) as [Tensor, Tensor];
      h = groupNorm(ctx, 'norm2', h, { groups, eps: o.eps });
      h = activation(add(mul(h, shift(factor, 1)), offset), o.act);
    } else {
      h = norm('norm2', time ? add(h, time) : h, groups);
    }
    if (o.dropout > 0 && ctx.dropout) h = ctx.dropout(h, o.dropout);
    // Before conv2, whose store then adds it.
    if (o.forceShortcut || x.shape[3] !== convOut) shortcut = conv(ctx, 'conv_shortcut', shortcut, convOut, { kernel: 1, bias: o.shortcutBias ?? true });
    const y = add(conv(ctx, 'conv2', h, convOut), shortcut);
    return o.outputScale === undefined || o.outputScale === 1 ? y : scale(y, 1 / o.outputScale);
  });
}

export interface AttentionOptions {
  readonly heads: number;
  /** Width of a head; heads · headDim need not be the channels (diffusers divides without remainder). */
  readonly headDim: number;
  /** `undefined` where the module has no group norm (the mid block with scale_shift). */
  readonly groups: number | undefined;
  readonly eps: number;
  readonly outputScale?: number;
}

/** Self-attention over pixels with its own norm and residual (diffusers' Attention with residual_connection). x [N,H,W,C]. */
export function selfAttention(ctx: ModelContext, name: string, x: Tensor, o: AttentionOptions): Tensor {
  return module(ctx, name, () => {
    const [n, height, width, channels] = x.shape as [number, number, number, number];
    let h = reshape(x, [n, height * width, channels]);
    if (o.groups !== undefined) h = groupNorm(ctx, 'group_norm', h, { groups: o.groups, eps: o.eps });
    const inner = o.heads * o.headDim;
    if (inner === 0) throw new BruitError('config', `${ctx.graph.path}: attention_head_dim ${o.headDim} is more than the block's ${channels} channels`);
    const q = linear(ctx, 'to_q', h, inner);
    const k = linear(ctx, 'to_k', h, inner);
    const v = linear(ctx, 'to_v', h, inner);
    h = linear(ctx, 'to_out.0', o.headDim > 256 ? wideAttention(q, k, v, o.heads) : attention(q, k, v, { heads: o.heads }), channels);
    // Added as tokens, where the layer's store can do it.
    const y = reshape(add(h, reshape(x, h.shape)), x.shape);
    return o.outputScale === undefined || o.outputScale === 1 ? y : scale(y, 1 / o.outputScale);
  });
}

/**
 * Attention by heads that are too wide for the kernel's registers (the autoencoders' one head of 512), from products and a softmax: q [B,T,heads·D],
 * k and v [B,M,heads·D] → [B,T,heads·D]. Queries are taken in slices, so that no matrix of scores has more than `scores` numbers. Scores and
 * probabilities are f32 whatever the operands are: q·k of trained models exceeds f16.
 */
export function wideAttention(q: Tensor, k: Tensor, v: Tensor, heads: number, scores = 2 ** 24): Tensor {
  const [b, t, channels] = q.shape as [number, number, number];
  const m = k.shape[1]!;
  const dim = channels / heads;
  const byHead = (x: Tensor, rows: number): Tensor => reshape(transpose(reshape(x, [b, rows, heads, dim]), [0, 2, 1, 3]), [b * heads, rows, dim]);
  const [queries, keys, values] = [scale(cast(byHead(q, t), 'f32'), 1 / Math.sqrt(dim)), byHead(k, m), byHead(v, m)];
  const rows = Math.max(1, Math.floor(scores / (b * heads * m)));
  const sizes = Array.from({ length: Math.ceil(t / rows) }, (_, i) => Math.min(rows, t - i * rows));
  const parts = split(queries, 1, sizes).map((part) => matmul(softmax(matmul(part, keys, { transposeB: true })), values));
  return cast(reshape(transpose(reshape(concat(parts, 1), [b, heads, t, dim]), [0, 2, 1, 3]), q.shape), q.dtype as 'f32' | 'f16');
}

/** Downsample2D with convolution: stride 2; `padding` 0 pads right and bottom by one, as TensorFlow's "same" does. */
export function downsampleConv(ctx: ModelContext, name: string, x: Tensor, padding: number): Tensor {
  return module(ctx, name, () => conv(ctx, 'conv', x, x.shape[3]!, { stride: 2, padding: padding === 0 ? [0, 1, 0, 1] : padding }));
}

export const downsampleAverage = (x: Tensor): Tensor => avgPool2d(x, { kernel: 2, stride: 2 });

/** Upsample2D with convolution, to twice the size or to that of the skip connection where it is odd. */
export function upsampleConv(ctx: ModelContext, name: string, x: Tensor, size: readonly [number, number]): Tensor {
  const [, height, width, channels] = x.shape as [number, number, number, number];
  const twice = size[0] === 2 * height && size[1] === 2 * width;
  return module(ctx, name, () => (twice ? conv(ctx, 'conv', x, channels, { upsample: true }) : conv(ctx, 'conv', upsampleNearest(x, size), channels)));
}
