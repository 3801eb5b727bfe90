/**
 * The K blocks (diffusers' KDownBlock2D, KCrossAttnDownBlock2D, KUpBlock2D, KCrossAttnUpBlock2D): those of k-diffusion's U-Nets, which the
 * latent upscaler of Stable Diffusion has. Every norm takes scale and shift from the time embedding, resampling is a fixed filter, and an up block
 * reads one skip connection only.
 */
import { BruitError, check } from '../engine/errors';
import type { Tensor } from '../engine/graph';
import { concat, slice } from '../engine/ops/copy';
import { add, type PointwiseName } from '../engine/ops/pointwise';
import { reshape } from '../engine/ops/reshape';
import { upfirdn2d } from '../engine/ops/upfirdn2d';
import { showShape } from '../engine/shape';
import { adaGroupNorm, firTaps, resnet, type ResnetOptions } from './blocks';
import { module, type ModelContext } from './layers';
import { attentionLayer, type Context } from './transformer';
import { withResidual, type Residual } from './unet_blocks';

export const kDownTypes = ['KDownBlock2D', 'KCrossAttnDownBlock2D'] as const;
export const kUpTypes = ['KUpBlock2D', 'KCrossAttnUpBlock2D'] as const;
type KDownType = (typeof kDownTypes)[number];
type KUpType = (typeof kUpTypes)[number];

export const isKType = (type: string): type is KDownType | KUpType => type.startsWith('K');

/** Channels of a group of the norms. */
const groupSize = 32;

export interface KBlockOptions {
  readonly out: number;
  /** The block keeps its resolution. */
  readonly last: boolean;
  readonly layers: number;
  /** Time embedding [N, D] before any activation. */
  readonly emb: Tensor;
  readonly eps: number;
  readonly act: PointwiseName;
  readonly dropout: number;
  /** Width of a head in the cross-attention blocks. */
  readonly headDim: number;
  /** The text; without it the second attention is over the pixels, too. */
  readonly context?: Context | undefined;
  /** Mask of attention over the pixels. */
  readonly mask?: Tensor | undefined;
}

/** One down block at the current path. h [N,H,W,C] → [N,⌊H/2⌋,⌊W/2⌋,out]; appends a skip connection for each residual block. */
export function kDownBlock(ctx: ModelContext, type: KDownType, h: Tensor, o: KBlockOptions & { readonly residuals: Residual[] }): Tensor {
  const attends = type === 'KCrossAttnDownBlock2D';
  for (let j = 0; j < o.layers; j++) {
    h = kResnet(ctx, `resnets.${j}`, h, o, { out: o.out });
    if (attends) h = kAttention(ctx, `attentions.${j}`, h, o, o.last);
    o.residuals.push(attends && o.last ? undefined : h);
  }
  return o.last ? h : module(ctx, 'downsamplers.0', () => kDownsample(h));
}

export interface KUpOptions extends KBlockOptions {
  /** Channels of the next up block. */
  readonly next: number;
  /** As many as `layers`. */
  readonly residuals: readonly Residual[];
}

/** One up block at the current path. h [N,H,W,C] → [N,2H,2W,next]. */
export function kUpBlock(ctx: ModelContext, type: KUpType, h: Tensor, o: KUpOptions): Tensor {
  const attends = type === 'KCrossAttnUpBlock2D';
  // Not where the block stands tells the first one, but that all widths agree: as checkpoints were made.
  const first = attends && o.next === o.out && o.out === o.emb.shape[1];
  const residual = o.residuals[o.residuals.length - 1];
  if (residual) h = withResidual(ctx, h, residual);
  const wanted = first ? o.out : 2 * o.out;
  if (h.shape[3] !== wanted) throw new BruitError('config', `${ctx.graph.path}: ${type} takes ${wanted} channels here, skip connection included, but is given ${h.shape[3]}: block_out_channels, time_embedding_dim and the types of the blocks do not go together`);
  for (let j = 0; j < o.layers; j++) {
    const to = j === o.layers - 1 ? o.next : o.out;
    h = kResnet(ctx, `resnets.${j}`, h, o, attends ? { out: o.out, convOut: to } : { out: to });
    if (attends) h = kAttention(ctx, `attentions.${j}`, h, o, first);
  }
  return o.last ? h : module(ctx, 'upsamplers.0', () => kUpsample(h));
}

function kResnet(ctx: ModelContext, name: string, x: Tensor, o: KBlockOptions, widths: Pick<ResnetOptions, 'out' | 'convOut'>): Tensor {
  const groups = (channels: number): number => Math.floor(channels / groupSize);
  return resnet(ctx, name, x, { ...widths, temb: o.emb, timeScaleShift: 'ada_group', groups: groups(x.shape[3]!), groupsOut: groups(o.out), eps: o.eps, act: o.act, dropout: o.dropout, shortcutBias: false });
}

/** KAttentionBlock: attention over the pixels, where the block has it, and over the text; no feed-forward part. x [N,H,W,C]. */
function kAttention(ctx: ModelContext, name: string, x: Tensor, o: KBlockOptions, overPixels: boolean): Tensor {
  return module(ctx, name, () => {
    const [n, height, width, channels] = x.shape as [number, number, number, number];
    const layer = { heads: Math.floor(channels / o.headDim), headDim: o.headDim, bias: true, mask: o.mask };
    const attend = (norm: string, attention: string, h: Tensor, context?: Partial<Parameters<typeof attentionLayer>[3]>): Tensor => {
      const normed = adaGroupNorm(ctx, norm, h, o.emb, { groups: Math.max(1, Math.floor(channels / groupSize)), eps: 1e-5 });
      const y = attentionLayer(ctx, attention, reshape(normed, [n, height * width, channels]), { ...layer, ...context });
      return add(reshape(y, h.shape), h);
    };
    const h = overPixels ? attend('norm1', 'attn1', x) : x;
    return attend('norm2', 'attn2', h, { context: o.context, contextNorm: 'layer_norm' });
  });
}

/** One more row and column on each side, mirrored about the edge pixels (torch's "reflect"). */
function reflectPad(x: Tensor): Tensor {
  const along = (h: Tensor, axis: number): Tensor => {
    const size = h.shape[axis]!;
    check(size > 1, 'shape', () => `${h.graph.path}: an image of ${showShape(x.shape)} [N,H,W,C] is too small to be resampled: it needs two rows and columns to mirror`);
    return concat([slice(h, axis, 1, 1), h, slice(h, axis, size - 2, 1)], axis);
  };
  return along(along(x, 1), 2);
}

/** KDownsample2D. */
export const kDownsample = (x: Tensor): Tensor => upfirdn2d(reflectPad(x), firTaps(1), { down: 2 });

/** KUpsample2D. */
export const kUpsample = (x: Tensor): Tensor => upfirdn2d(reflectPad(x), firTaps(4), { up: 2, padding: [0, -1] });
