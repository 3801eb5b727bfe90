/** Down, middle and up blocks that the U-Nets share: residual blocks, some attention after each, and a change of resolution. */
import { BruitError } from '../engine/errors';
import type { Tensor } from '../engine/graph';
import { concat } from '../engine/ops/copy';
import { downsampleAverage, downsampleConv, resnet, upsample2x, upsampleConv, type ResnetOptions } from './blocks';
import type { ModelContext } from './layers';

/** What follows each residual block. */
export type AttentionKind = 'self' | 'transformer' | 'added_keys';

interface BlockKind {
  readonly attention?: AttentionKind;
  /** Resamples by a convolution, or inside a residual block. */
  readonly resample: 'conv' | 'resnet';
}

export const downKinds = {
  DownBlock2D: { resample: 'conv' },
  AttnDownBlock2D: { attention: 'self', resample: 'conv' },
  CrossAttnDownBlock2D: { attention: 'transformer', resample: 'conv' },
  ResnetDownsampleBlock2D: { resample: 'resnet' },
  SimpleCrossAttnDownBlock2D: { attention: 'added_keys', resample: 'resnet' },
} as const satisfies Record<string, BlockKind>;

export const upKinds = {
  UpBlock2D: { resample: 'conv' },
  AttnUpBlock2D: { attention: 'self', resample: 'conv' },
  CrossAttnUpBlock2D: { attention: 'transformer', resample: 'conv' },
  ResnetUpsampleBlock2D: { resample: 'resnet' },
  SimpleCrossAttnUpBlock2D: { attention: 'added_keys', resample: 'resnet' },
} as const satisfies Record<string, BlockKind>;

export type DownKind = keyof typeof downKinds;
export type UpKind = keyof typeof upKinds;

/** A skip connection; `undefined` where the down block leaves it out, as the last one with K attention does. */
export type Residual = Tensor | undefined;

/** `h` and the skip connection as the channels of one image. */
export function withResidual(ctx: ModelContext, h: Tensor, residual: Residual): Tensor {
  if (!residual) throw new BruitError('config', `${ctx.graph.path} needs a skip connection where its down block makes none: its type does not go with that of the down block`);
  if (residual.shape[1] !== h.shape[1] || residual.shape[2] !== h.shape[2]) {
    throw new BruitError('shape', `${ctx.graph.path}: features of ${h.shape[1]}x${h.shape[2]} meet a skip connection of ${residual.shape[1]}x${residual.shape[2]}: this U-Net wants heights and widths that divide by two at each of its resolutions`);
  }
  return concat([h, residual], 3);
}

/** Residual blocks without their width. */
export type ResnetBase = Omit<ResnetOptions, 'out'>;

export interface BlockOptions {
  readonly out: number;
  /** The block keeps its resolution. */
  readonly last: boolean;
  readonly resnet: ResnetBase;
  /** The attention `attentions.J` after residual block J, of the kind that the block's type has. */
  readonly attend: (kind: AttentionKind, name: string, h: Tensor) => Tensor;
  /** In place of the type's own way (UNet2DModel's downsample_type and upsample_type). */
  readonly resample?: BlockKind['resample'];
}

/** One down block at the current path; appends the skip connections to `residuals`. h [N,H,W,C] → [N,H/2,W/2,out]. */
export function downBlock(ctx: ModelContext, kind: BlockKind, h: Tensor, o: BlockOptions & { readonly layers: number; readonly downsamplePadding: number; readonly residuals: Residual[] }): Tensor {
  for (let j = 0; j < o.layers; j++) {
    h = resnet(ctx, `resnets.${j}`, h, { ...o.resnet, out: o.out });
    if (kind.attention) h = o.attend(kind.attention, `attentions.${j}`, h);
    o.residuals.push(h);
  }
  if (o.last) return h;
  h = (o.resample ?? kind.resample) === 'resnet' ? resnet(ctx, 'downsamplers.0', h, { ...o.resnet, out: o.out, resample: downsampleAverage }) : downsampleConv(ctx, 'downsamplers.0', h, o.downsamplePadding);
  o.residuals.push(h);
  return h;
}

/** One up block at the current path: takes all of `residuals`, the last first, and doubles the size, or meets `size` where the skip connections' is odd. */
export function upBlock(ctx: ModelContext, kind: BlockKind, h: Tensor, o: BlockOptions & { readonly residuals: readonly Residual[]; readonly size: readonly [number, number] | undefined }): Tensor {
  [...o.residuals].reverse().forEach((residual, j) => {
    h = resnet(ctx, `resnets.${j}`, withResidual(ctx, h, residual), { ...o.resnet, out: o.out });
    if (kind.attention) h = o.attend(kind.attention, `attentions.${j}`, h);
  });
  if (o.last) return h;
  if ((o.resample ?? kind.resample) === 'resnet') return resnet(ctx, 'upsamplers.0', h, { ...o.resnet, out: o.out, resample: upsample2x });
  return upsampleConv(ctx, 'upsamplers.0', h, o.size ?? [h.shape[1]! * 2, h.shape[2]! * 2]);
}

/** The middle block at the current path: two residual blocks, and attention between them where there is any. */
export function midBlock(ctx: ModelContext, h: Tensor, { resnet: base, attend }: { readonly resnet: ResnetBase; readonly attend: ((name: string, h: Tensor) => Tensor) | undefined }): Tensor {
  const out = h.shape[3]!;
  h = resnet(ctx, 'resnets.0', h, { ...base, out });
  if (attend) h = attend('attentions.0', h);
  return resnet(ctx, 'resnets.1', h, { ...base, out });
}

/** Takes the skip connections of the next up block from the end of the list, and the size of the one after them. */
export function takeResiduals(residuals: Residual[], count: number): { residuals: Residual[]; size: readonly [number, number] | undefined } {
  const used = residuals.splice(residuals.length - count);
  const below = residuals[residuals.length - 1];
  return { residuals: used, size: below && [below.shape[1]!, below.shape[2]!] };
}
